"""KL first stage, f = 4, 3 channels.

    python train.py --config=configs/kl_f4.py --workdir=runs/kl_f4 \\
        --config.data.path=DIR

Batch 10, 176,991 iterations (released config and README). Result after training on
OpenImages, on ImageNet validation: R-FID 0.27, PSNR 27.53, SSIM 0.82 (paper, table 8).
"""

from configs import common


def get_config(arg: str = ""):
    config = common.autoencoder(
        data=common.OPENIMAGES,
        autoencoder=common.first_stage_network("kl_f4"),
        discriminator=dict(start_steps=50_001, weight=0.5),
        optimizer=dict(learning_rate=4.5e-6 * 10),
        train=dict(batch_size=10, num_steps=176_991, ema_decay=0.0),
    )
    return common.finish(config, arg)
