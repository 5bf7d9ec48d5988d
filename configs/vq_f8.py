"""VQ first stage, f = 8, 16384 codes of 4 channels.

    python train.py --config=configs/vq_f8.py --workdir=runs/vq_f8 \\
        --config.data.path=DIR

Batch 10, 971,043 iterations (released config and README). Result after training on
OpenImages, on ImageNet validation: R-FID 1.14, PSNR 23.07, SSIM 0.65 (paper, table 8).
"""

from configs import common


def get_config(arg: str = ""):
    config = common.autoencoder(
        data=common.OPENIMAGES,
        autoencoder=common.first_stage_network("vq_f8"),
        discriminator=dict(start_steps=1, weight=0.6, num_layers=2),
        optimizer=dict(learning_rate=4.5e-6 * 10),
        train=dict(batch_size=10, num_steps=971_043, ema_decay=0.0),
    )
    return common.finish(config, arg)
