"""Embedded emoji at 64 px by subgroup (99 classes), on the shipped first stage.

    python train.py --config=configs/emoji_class.py --workdir=runs/emoji_class
    python sample.py --model=runs/emoji_class --label=plant-flower --seeds=0-15

The network and the rectified flow of `configs/emoji.py`; labels are the sorted
subgroups of the Unicode list. With --config.data.path=DIR they are DIR's sub-folders,
as many as there are.
"""

from configs import common, emoji


def get_config(arg: str = ""):
    config = emoji.flow(emoji.base("class"))
    config.num_classes = 0  # as many as the data has
    return common.finish(config, arg)
