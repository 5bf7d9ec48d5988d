"""Scenes of embedded emoji at 64 px, KL first stage with f = 4.

    python train.py --config=configs/emoji_scenes_autoencoder.py \\
        --workdir=runs/scenes_ae
    python -m lDM_jax.tools.evaluate recon --model runs/scenes_ae

Scenes hold up to four emoji of a quarter to half the width, which an f = 8 stage
blurs. The first stage of the layout, semantic, super-resolution and inpainting configs;
the shipped `emoji_scenes_kl_f4` was made by this command (one stop and resume on the
way): 25.77 dB on 512 held-out scenes (measured; `evaluate recon`).
"""

from configs import common, emoji_autoencoder


def get_config(arg: str = ""):
    config = emoji_autoencoder.base()
    config.data.update(dict(source="scenes", scenes=dict(max_objects=4)))
    config.autoencoder.update(
        dict(width_mults=(1, 2, 4), z_channels=4, latent_channels=4)
    )
    config.discriminator.factor = 0.0
    config.train.num_steps = 2000
    return common.finish(config, arg)
