"""VQ first stage, f = 16, 16384 codes of 8 channels.

    python train.py --config=configs/vq_f16.py --workdir=runs/vq_f16 \\
        --config.data.path=DIR

Batch 14, 1,101,166 iterations (released config and README). Result after training on
OpenImages, on ImageNet validation: R-FID 5.15, PSNR 20.83, SSIM 0.54 (paper, table 8).
"""

from configs import common


def get_config(arg: str = ""):
    config = common.autoencoder(
        data=common.OPENIMAGES,
        autoencoder=common.first_stage_network("vq_f16"),
        discriminator=dict(start_steps=250_001, weight=0.75, num_layers=2),
        optimizer=dict(learning_rate=4.5e-6 * 14),
        train=dict(batch_size=14, num_steps=1_101_166, ema_decay=0.0),
    )
    return common.finish(config, arg)
