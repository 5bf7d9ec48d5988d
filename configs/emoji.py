"""Embedded emoji at 64 px, text to image: LDM-8 on the shipped first stage.

    python train.py --config=configs/emoji.py --workdir=runs/emoji
    python sample.py --model=runs/emoji --prompt="red heart"

With --config.data.path=DIR it trains on a folder of images and captions instead.
Trains UNet and text transformer from random weights as a rectified flow, the best of
the recipes of benchmarks/recipes.py (README). Two CPU cores took 13 min 22 s when the
process was still the discrete one with v; prompt accuracy 53.1 % (measured; `python -m
lDM_jax.tools.evaluate prompts --model runs/emoji`). The shipped `emoji` is the same
network on the discrete process with v, 8,000 steps, the first 3,999 on a cosine that
was to end at 12,000: 96.3 % (measured; the same with `--model emoji`).
"""

from configs import common


def get_config(arg: str = ""):
    config = common.emoji(
        "text",
        process=dict(kind="rectified_flow"),
        sample=dict(sampler="euler"),
    )
    return common.finish(config, arg)
