"""Embedded emoji at 64 px, KL first stage with f = 8 (the shipped `emoji_kl_f8`).

    python train.py --config=configs/emoji_autoencoder.py --workdir=runs/emoji_ae

The argument `:vq` trains a VQ stage of the same size instead (small: `:vq,smoke`).

The discriminator wakes at half of the steps; `--config.discriminator.factor=0` trains
without it. So were the shipped weights: 2,000 steps of this schedule, then 700 with a
fresh Adam and a cosine from 5e-4 to 0 give 25.56 dB on the 177 held-out emoji
(measured; `python -m lDM_jax.tools.evaluate recon --model emoji_kl_f8`).
"""

from configs import common


def get_config(arg: str = ""):
    choice, arg = common.choose(arg, "vq")
    config = common.autoencoder(
        data=dict(size_px=64),
        autoencoder=dict(
            width=16,
            width_mults=(1, 4, 8, 8),
            num_res_blocks=1,
            z_channels=8,
            latent_channels=8,
            num_codes=1024 if choice == "vq" else 0,
            num_groups=8,
        ),
        # Without a download there are no LPIPS weights; with the file at hand:
        # --config.loss.perceptual_weight=1 --config.loss.lpips_weights=vgg16.pth
        loss=dict(
            pixel_loss="l2",
            perceptual_weight=0.0,
            kl_weight=3e-3,
            codebook_decay=0.99,
            restart_below=0.02,
        ),
        discriminator=dict(width=16, num_layers=2, start_steps=2000, weight=0.1),
        optimizer=dict(
            learning_rate=1e-3, schedule="cosine", warmup_steps=100, b1=0.9, b2=0.99
        ),
        train=dict(
            batch_size=8,
            num_steps=4000,
            ema_decay=0.995,
            log_every_steps=20,
            preview_every_steps=300,
            eval_every_steps=300,
            checkpoint_every_steps=150,
        ),
    )
    return common.finish(config, arg)
