"""Scenes of emoji with free-form holes: inpainting.

    python train.py --config=configs/emoji_inpaint.py --workdir=runs/emoji_inpaint
    python sample.py --model=runs/emoji_inpaint --image=photo.png --mask=mask.png

Masks are drawn anew for every picture, so that latents cannot be cached.
"""

from configs import common, emoji, emoji_scenes


def get_config(arg: str = ""):
    config = emoji.flow(emoji_scenes.base("inpaint"))
    config.data.cache_latents = False
    config.unet.context_width = 0
    config.loss.drop_rate = 0.0
    config.sample.guidance = 1.0
    return common.finish(config, arg)
