"""Scenes of embedded emoji at 64 px, KL first stage with f = 4.

    python train.py --config=configs/emoji_scenes_autoencoder.py \\
        --workdir=runs/scenes_ae
    python -m lDM_jax.tools.evaluate recon --model runs/scenes_ae

Scenes hold up to four emoji of a quarter to half the width, which an f = 8 stage
blurs. The first stage of the layout, semantic, super-resolution and inpainting configs;
the shipped `emoji_scenes_kl_f4` was made by this command (one stop and resume on the
way): 25.77 dB on 512 held-out scenes (measured; `evaluate recon`).
"""

from configs import common


def get_config(arg: str = ""):
    config = common.autoencoder(
        data=dict(source="scenes", size_px=64, scenes=dict(max_objects=4)),
        autoencoder=dict(
            width=16,
            width_mults=(1, 2, 4),
            num_res_blocks=1,
            z_channels=4,
            latent_channels=4,
            num_groups=8,
        ),
        loss=dict(
            pixel_loss="l2",
            perceptual_weight=0.0,
            kl_weight=3e-3,
            codebook_decay=0.99,
            restart_below=0.02,
        ),
        discriminator=dict(
            width=16, num_layers=2, start_steps=2000, weight=0.1, factor=0.0
        ),
        optimizer=dict(
            learning_rate=1e-3, schedule="cosine", warmup_steps=100, b1=0.9, b2=0.99
        ),
        train=dict(
            batch_size=8,
            num_steps=2000,
            ema_decay=0.995,
            log_every_steps=20,
            preview_every_steps=300,
            eval_every_steps=300,
            checkpoint_every_steps=150,
        ),
    )
    return common.finish(config, arg)
