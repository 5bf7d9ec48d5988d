"""VQ first stage without attention, f = 4, 8192 codes of 3 channels.

    python train.py --config=configs/vq_f4_noattn.py --workdir=runs/vq_f4_noattn \\
        --config.data.path=DIR

Batch 8, 658,131 iterations (released config and README). Result after training on
OpenImages, on ImageNet validation: R-FID 1.06, PSNR 25.21, SSIM 0.76 (paper, table 8).
"""

from configs import common


def get_config(arg: str = ""):
    config = common.autoencoder(
        data=common.OPENIMAGES,
        autoencoder=common.first_stage_network("vq_f4_noattn"),
        discriminator=dict(start_steps=11, weight=0.75),
        optimizer=dict(learning_rate=4.5e-6 * 8),
        train=dict(batch_size=8, num_steps=658_131, ema_decay=0.0),
    )
    return common.finish(config, arg)
