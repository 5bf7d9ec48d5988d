"""VQ first stage, f = 2, 2048 codes of 2 channels.

    python train.py --config=configs/vq_f2.py --workdir=runs/vq_f2 \\
        --config.data.path=DIR

Batch 8, 533,066 iterations, both unpublished. Result after training on OpenImages, on
ImageNet validation: R-FID 0.16, PSNR 30.85, SSIM 0.91 (paper, table 8).

The paper gives no more than f, codes and channels: network and recipe follow vq_f4, one
level fewer. With --config.autoencoder.num_codes=64: R-FID 0.40, PSNR 29.13 (paper).
"""

from configs import first_stages


def get_config(arg: str = ""):
    return first_stages.recipe(
        "vq_f2",
        arg,
        batch_size=8,
        num_steps=533_066,
        disc_start_steps=0,
        disc_weight=0.75,
    )
