"""VQ first stage, f = 4, 8192 codes of 3 channels.

    python train.py --config=configs/vq_f4.py --workdir=runs/vq_f4 \\
        --config.data.path=DIR

Batch 8, 533,066 iterations (released config and README). Result after training on
OpenImages, on ImageNet validation: R-FID 0.58, PSNR 27.43, SSIM 0.82 (paper, table 8).

With --config.autoencoder.num_codes=256: R-FID 0.47, PSNR 26.43 (paper).
"""

from configs import common


def get_config(arg: str = ""):
    config = common.autoencoder(
        data=common.OPENIMAGES,
        autoencoder=common.first_stage_network("vq_f4"),
        discriminator=dict(start_steps=0, weight=0.75),
        optimizer=dict(learning_rate=4.5e-6 * 8),
        train=dict(batch_size=8, num_steps=533_066, ema_decay=0.0),
    )
    return common.finish(config, arg)
