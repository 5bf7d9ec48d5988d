"""KL first stage, f = 2, 2 channels.

    python train.py --config=configs/kl_f2.py --workdir=runs/kl_f2 \\
        --config.data.path=DIR

Batch 10, 176,991 iterations, both unpublished. Result after training on OpenImages, on
ImageNet validation: R-FID 0.086, PSNR 32.47, SSIM 0.93 (paper, table 8).

The paper gives no more than f and the channels: network and recipe follow kl_f4, one
level fewer.
"""

from configs import common


def get_config(arg: str = ""):
    config = common.autoencoder(
        data=common.OPENIMAGES,
        autoencoder=common.first_stage_network("kl_f2"),
        discriminator=dict(start_steps=50_001, weight=0.5),
        optimizer=dict(learning_rate=4.5e-6 * 10),
        train=dict(batch_size=10, num_steps=176_991, ema_decay=0.0),
    )
    return common.finish(config, arg)
