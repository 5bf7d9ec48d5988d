"""A classifier of noisy latents: the 99 subgroups of the embedded emoji.

    python train.py --config=configs/emoji_classifier.py --workdir=runs/classifier
    python sample.py --model=runs/emoji_unconditional --classifier=runs/classifier \\
        --label=3 --classifier_scale=4

For classifier guidance of `configs/emoji_unconditional.py`; labels as in
`configs/emoji_class.py`.
"""

from configs import common


def get_config(arg: str = ""):
    config = common.as_classifier(common.emoji("class"))
    config.num_classes = 0  # as many as the data has
    config.unet.update(dict(width=32, dropout=0.1))
    config.train.num_steps = 1200
    return common.finish(config, arg)
