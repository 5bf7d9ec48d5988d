"""VQ first stage, f = 8, 16384 codes of 4 channels.

    python train.py --config=configs/vq_f8.py --workdir=runs/vq_f8 \\
        --config.data.path=DIR

Batch 10, 971,043 iterations (released config and README). Result after training on
OpenImages, on ImageNet validation: R-FID 1.14, PSNR 23.07, SSIM 0.65 (paper, table 8).
"""

from configs import first_stages


def get_config(arg: str = ""):
    return first_stages.recipe(
        "vq_f8",
        arg,
        batch_size=10,
        num_steps=971_043,
        disc_start_steps=1,
        disc_weight=0.6,
        disc_num_layers=2,
    )
