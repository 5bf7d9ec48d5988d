"""VQ first stage, f = 16, 16384 codes of 8 channels.

    python train.py --config=configs/vq_f16.py --workdir=runs/vq_f16 \\
        --config.data.path=DIR

Batch 14, 1,101,166 iterations (released config and README). Result after training on
OpenImages, on ImageNet validation: R-FID 5.15, PSNR 20.83, SSIM 0.54 (paper, table 8).
"""

from configs import first_stages


def get_config(arg: str = ""):
    return first_stages.recipe(
        "vq_f16",
        arg,
        batch_size=14,
        num_steps=1_101_166,
        disc_start_steps=250_001,
        disc_weight=0.75,
        disc_num_layers=2,
    )
