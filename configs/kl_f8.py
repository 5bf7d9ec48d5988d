"""KL first stage, f = 8, 4 channels.

    python train.py --config=configs/kl_f8.py --workdir=runs/kl_f8 \\
        --config.data.path=DIR

Batch 4, 246,803 iterations (released config and README). Result after training on
OpenImages, on ImageNet validation: R-FID 0.90, PSNR 24.19, SSIM 0.69 (paper, table 8).
"""

from configs import common


def get_config(arg: str = ""):
    config = common.autoencoder(
        data=common.OPENIMAGES,
        autoencoder=common.first_stage_network("kl_f8"),
        discriminator=dict(start_steps=50_001, weight=0.5),
        optimizer=dict(learning_rate=4.5e-6 * 4),
        train=dict(batch_size=4, num_steps=246_803, ema_decay=0.0),
    )
    return common.finish(config, arg)
