"""VQ first stage without attention, f = 4, 8192 codes of 3 channels.

    python train.py --config=configs/vq_f4_noattn.py --workdir=runs/vq_f4_noattn \\
        --config.data.path=DIR

Batch 8, 658,131 iterations (released config and README). Result after training on
OpenImages, on ImageNet validation: R-FID 1.06, PSNR 25.21, SSIM 0.76 (paper, table 8).
"""

from configs import first_stages


def get_config(arg: str = ""):
    return first_stages.recipe(
        "vq_f4_noattn",
        arg,
        batch_size=8,
        num_steps=658_131,
        disc_start_steps=11,
        disc_weight=0.75,
    )
