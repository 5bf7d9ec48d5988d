"""KL first stage, f = 32, 64 channels.

    python train.py --config=configs/kl_f32.py --workdir=runs/kl_f32 \\
        --config.data.path=DIR

Batch 6, 406,763 iterations (released config and README). Result after training on
OpenImages, on ImageNet validation: R-FID 2.04, PSNR 22.27, SSIM 0.61 (paper, table 8).

With --config.autoencoder.z_channels=16 --config.autoencoder.latent_channels=16: R-FID
7.3, PSNR 20.38 (paper).
"""

from configs import common


def get_config(arg: str = ""):
    config = common.autoencoder(
        data=common.OPENIMAGES,
        autoencoder=common.first_stage_network("kl_f32"),
        discriminator=dict(start_steps=50_001, weight=0.5),
        optimizer=dict(learning_rate=4.5e-6 * 6),
        train=dict(batch_size=6, num_steps=406_763, ema_decay=0.0),
    )
    return common.finish(config, arg)
