"""Embedded emoji at 64 px by subgroup (99 classes), on the shipped first stage.

    python train.py --config=configs/emoji_class.py --workdir=runs/emoji_class
    python sample.py --model=runs/emoji_class --label=3 --seeds=0-15

The network of `configs/emoji.py`; labels are the sorted subgroups of the Unicode list.
"""

from configs import common, emoji


def get_config(arg: str = ""):
    config = emoji.base("class")
    config.num_classes = 99
    return common.finish(config, arg)
