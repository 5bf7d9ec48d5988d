"""Embedded emoji at 64 px by subgroup (99 classes), on the shipped first stage.

    python train.py --config=configs/emoji_class.py --workdir=runs/emoji_class
    python sample.py --model=runs/emoji_class --label=plant-flower --seeds=0-15

The network and the rectified flow of `configs/emoji.py`;
labels are the sorted subgroups of the Unicode list. With --config.data.path=DIR they
are DIR's subfolders, as many as there are. Result: 28.1 % of 128 samples are recognized
as of their subgroup, chance 1.0 % (measured; `python -m lDM_jax.tools.evaluate task
--model runs/emoji_class`).
"""

from configs import common


def get_config(arg: str = ""):
    config = common.emoji(
        "class",
        num_classes=0,  # as many as the data has
        process=dict(kind="rectified_flow"),
        sample=dict(sampler="euler"),
    )
    return common.finish(config, arg)
