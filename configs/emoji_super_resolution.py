"""Scenes of emoji from 16 to 64 px: super-resolution x4 (bicubic).

    python train.py --config=configs/emoji_super_resolution.py --workdir=runs/emoji_sr
    python sample.py --model=runs/emoji_sr --image=small.png

f = 4, so that the small image has the extent of the latents, as in the paper. The
shipped `emoji_super_resolution` is this with --config.train.num_steps=1500: 22.23 dB,
bicubic 21.33 (measured; `evaluate task --model emoji_super_resolution`).
"""

from configs import common


def get_config(arg: str = ""):
    config = common.scenes(
        "super_resolution",
        unet=dict(context_width=0),
        loss=dict(drop_rate=0.0),
        sample=dict(guidance=1.0),
    )
    return common.finish(config, arg)
