"""VQ first stage, f = 32, 16384 codes of 16 channels.

    python train.py --config=configs/vq_f32.py --workdir=runs/vq_f32 \\
        --config.data.path=DIR

Batch 14, 1,101,166 iterations, both unpublished. Result after training on OpenImages,
on ImageNet validation: R-FID 31.83, PSNR 17.45, SSIM 0.41 (paper, table 8).

The paper gives no more than f, codes and channels: the network follows kl_f32, the
recipe vq_f16.
"""

from configs import common


def get_config(arg: str = ""):
    config = common.autoencoder(
        data=common.OPENIMAGES,
        autoencoder=common.first_stage_network("vq_f32"),
        discriminator=dict(start_steps=250_001, weight=0.75, num_layers=2),
        optimizer=dict(learning_rate=4.5e-6 * 14),
        train=dict(batch_size=14, num_steps=1_101_166, ema_decay=0.0),
    )
    return common.finish(config, arg)
