"""VQ first stage, f = 2, 2048 codes of 2 channels.

    python train.py --config=configs/vq_f2.py --workdir=runs/vq_f2 \\
        --config.data.path=DIR

Batch 8, 533,066 iterations, both unpublished. Result after training on OpenImages, on
ImageNet validation: R-FID 0.16, PSNR 30.85, SSIM 0.91 (paper, table 8).

The paper gives no more than f, codes and channels: network and recipe follow vq_f4, one
level fewer. With --config.autoencoder.num_codes=64: R-FID 0.40, PSNR 29.13 (paper).
"""

from configs import common


def get_config(arg: str = ""):
    config = common.autoencoder(
        data=common.OPENIMAGES,
        autoencoder=common.first_stage_network("vq_f2"),
        discriminator=dict(start_steps=0, weight=0.75),
        optimizer=dict(learning_rate=4.5e-6 * 8),
        train=dict(batch_size=8, num_steps=533_066, ema_decay=0.0),
    )
    return common.finish(config, arg)
