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
    kind, _, arg = arg.partition(",") if arg.startswith("vq") else ("kl", "", arg)
    return common.finish(base(num_codes=1024 if kind == "vq" else 0), arg)


def base(*, num_codes: int = 0):
    """The network and schedule, KL or with that many codes."""
    config = common.autoencoder()
    config.data.update(dict(source="emoji", size_px=64))
    config.autoencoder.update(
        dict(
            width=16,
            width_mults=(1, 4, 8, 8),
            num_res_blocks=1,
            z_channels=8,
            latent_channels=8,
            num_codes=num_codes,
            num_groups=8,
        )
    )
    # Without a download there are no LPIPS weights; with the file at hand:
    # --config.loss.perceptual_weight=1 --config.loss.lpips_weights=vgg16.pth
    config.loss.update(
        dict(
            pixel_loss="l2",
            perceptual_weight=0.0,
            kl_weight=3e-3,
            codebook_decay=0.99,
            restart_below=0.02,
        )
    )
    config.discriminator.update(
        dict(width=16, num_layers=2, start_steps=2000, weight=0.1)
    )
    config.optimizer.update(
        dict(
            learning_rate=1e-3,
            schedule="cosine",
            warmup_steps=100,
            b1=0.9,
            b2=0.99,
        )
    )
    config.train.update(
        dict(
            batch_size=8,
            num_steps=4000,
            ema_decay=0.995,
            log_every_steps=20,
            preview_every_steps=300,
            eval_every_steps=300,
            checkpoint_every_steps=150,
        )
    )
    return config
