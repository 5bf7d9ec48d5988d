"""Scenes of emoji from label maps: semantic synthesis.

    python train.py --config=configs/emoji_semantic.py --workdir=runs/emoji_semantic
    python sample.py --model=runs/emoji_semantic --segmentation=labels.png

Ten labels: the background (0) and the nine groups of `configs/emoji_layout.py`. The
shipped `emoji_semantic` is this with --config.train.num_steps=1500: 49.5 % of 192
objects recognized (measured; `evaluate task --model emoji_semantic`).
"""

from configs import common


def get_config(arg: str = ""):
    config = common.scenes(
        "semantic",
        num_classes=10,
        unet=dict(context_width=0),
        rescaler=dict(width=8),
    )
    return common.finish(config, arg)
