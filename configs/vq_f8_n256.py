"""VQ first stage, f = 8, 256 codes of 4 channels.

    python train.py --config=configs/vq_f8_n256.py --workdir=runs/vq_f8_n256 \\
        --config.data.path=DIR

Batch 10, 1,608,649 iterations (released config and README). Result after training on
OpenImages, on ImageNet validation: R-FID 1.49, PSNR 22.35, SSIM 0.62 (paper, table 8).
"""

from configs import first_stages


def get_config(arg: str = ""):
    return first_stages.recipe(
        "vq_f8_n256",
        arg,
        batch_size=10,
        num_steps=1_608_649,
        disc_start_steps=250_001,
        disc_weight=0.75,
    )
