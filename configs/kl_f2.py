"""KL first stage, f = 2, 2 channels.

    python train.py --config=configs/kl_f2.py --workdir=runs/kl_f2 \\
        --config.data.path=DIR

Batch 10, 176,991 iterations, both unpublished. Result after training on OpenImages, on
ImageNet validation: R-FID 0.086, PSNR 32.47, SSIM 0.93 (paper, table 8).

The paper gives no more than f and the channels: network and recipe follow kl_f4, one
level fewer.
"""

from configs import first_stages


def get_config(arg: str = ""):
    return first_stages.recipe(
        "kl_f2",
        arg,
        batch_size=10,
        num_steps=176_991,
        disc_start_steps=50_001,
        disc_weight=0.5,
    )
