"""KL first stage, f = 16, 16 channels.

    python train.py --config=configs/kl_f16.py --workdir=runs/kl_f16 \\
        --config.data.path=DIR

Batch 6, 442,998 iterations (released config and README). Result after training on
OpenImages, on ImageNet validation: R-FID 0.87, PSNR 24.08, SSIM 0.68 (paper, table 8).

With --config.autoencoder.z_channels=8 --config.autoencoder.latent_channels=8: R-FID
2.63, PSNR 21.94 (paper).
"""

from configs import common


def get_config(arg: str = ""):
    config = common.autoencoder(
        data=common.OPENIMAGES,
        autoencoder=common.first_stage_network("kl_f16"),
        discriminator=dict(start_steps=50_001, weight=0.5),
        optimizer=dict(learning_rate=4.5e-6 * 6),
        train=dict(batch_size=6, num_steps=442_998, ema_decay=0.0),
    )
    return common.finish(config, arg)
