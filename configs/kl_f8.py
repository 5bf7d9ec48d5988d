"""KL first stage, f = 8, 4 channels.

    python train.py --config=configs/kl_f8.py --workdir=runs/kl_f8 \\
        --config.data.path=DIR

Batch 4, 246,803 iterations (released config and README). Result after training on
OpenImages, on ImageNet validation: R-FID 0.90, PSNR 24.19, SSIM 0.69 (paper, table 8).
"""

from configs import first_stages


def get_config(arg: str = ""):
    return first_stages.recipe(
        "kl_f8",
        arg,
        batch_size=4,
        num_steps=246_803,
        disc_start_steps=50_001,
        disc_weight=0.5,
    )
