"""KL first stage, f = 4, 3 channels.

    python train.py --config=configs/kl_f4.py --workdir=runs/kl_f4 \\
        --config.data.path=DIR

Batch 10, 176,991 iterations (released config and README). Result after training on
OpenImages, on ImageNet validation: R-FID 0.27, PSNR 27.53, SSIM 0.82 (paper, table 8).
"""

from configs import first_stages


def get_config(arg: str = ""):
    return first_stages.recipe(
        "kl_f4",
        arg,
        batch_size=10,
        num_steps=176_991,
        disc_start_steps=50_001,
        disc_weight=0.5,
    )
