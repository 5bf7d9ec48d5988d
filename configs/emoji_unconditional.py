"""Embedded emoji at 64 px without any condition, on the shipped first stage.

    python train.py --config=configs/emoji_unconditional.py \\
        --workdir=runs/emoji_unconditional
    python sample.py --model=runs/emoji_unconditional --seeds=0-15

The network of `configs/emoji.py` with attention blocks instead of cross-attention. With
--config.data.path=DIR it trains on a folder of pictures.
"""

from configs import common, emoji


def get_config(arg: str = ""):
    config = emoji.flow(emoji.base("unconditional"))
    config.unet.context_width = 0
    config.loss.drop_rate = 0.0
    config.sample.guidance = 1.0
    return common.finish(config, arg)
