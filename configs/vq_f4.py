"""VQ first stage, f = 4, 8192 codes of 3 channels.

    python train.py --config=configs/vq_f4.py --workdir=runs/vq_f4 \\
        --config.data.path=DIR

Batch 8, 533,066 iterations (released config and README). Result after training on
OpenImages, on ImageNet validation: R-FID 0.58, PSNR 27.43, SSIM 0.82 (paper, table 8).

With --config.autoencoder.num_codes=256: R-FID 0.47, PSNR 26.43 (paper).
"""

from configs import first_stages


def get_config(arg: str = ""):
    return first_stages.recipe(
        "vq_f4",
        arg,
        batch_size=8,
        num_steps=533_066,
        disc_start_steps=0,
        disc_weight=0.75,
    )
