"""VQ first stage, f = 8, 256 codes of 4 channels.

    python train.py --config=configs/vq_f8_n256.py --workdir=runs/vq_f8_n256 \\
        --config.data.path=DIR

Batch 10, 1,608,649 iterations (released config and README). Result after training on
OpenImages, on ImageNet validation: R-FID 1.49, PSNR 22.35, SSIM 0.62 (paper, table 8).
"""

from configs import common


def get_config(arg: str = ""):
    config = common.autoencoder(
        data=common.OPENIMAGES,
        autoencoder=common.first_stage_network("vq_f8_n256"),
        discriminator=dict(start_steps=250_001, weight=0.75),
        optimizer=dict(learning_rate=4.5e-6 * 10),
        train=dict(batch_size=10, num_steps=1_608_649, ema_decay=0.0),
    )
    return common.finish(config, arg)
