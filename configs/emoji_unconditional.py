"""Embedded emoji at 64 px without any condition, on the shipped first stage.

    python train.py --config=configs/emoji_unconditional.py \\
        --workdir=runs/emoji_unconditional
    python sample.py --model=runs/emoji_unconditional --seeds=0-15

The network of `configs/emoji.py` with attention blocks instead of cross-attention. With
--config.data.path=DIR it trains on a folder of images. Result: fd_emoji 2.57 (95 %:
2.18 to 2.96) of 384 samples against 3,290 training emoji (measured; `python -m
lDM_jax.tools.evaluate generate --model DIR --num 384 --extractor emoji --out DIR`).
"""

from configs import common


def get_config(arg: str = ""):
    config = common.emoji(
        "unconditional",
        unet=dict(context_width=0),
        process=dict(kind="rectified_flow"),
        loss=dict(drop_rate=0.0),
        sample=dict(sampler="euler", guidance=1.0),
    )
    return common.finish(config, arg)
