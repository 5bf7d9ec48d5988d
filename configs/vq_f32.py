"""VQ first stage, f = 32, 16384 codes of 16 channels.

    python train.py --config=configs/vq_f32.py --workdir=runs/vq_f32 \\
        --config.data.path=DIR

Batch 14, 1,101,166 iterations, both unpublished. Result after training on OpenImages,
on ImageNet validation: R-FID 31.83, PSNR 17.45, SSIM 0.41 (paper, table 8).

The paper gives no more than f, codes and channels: the network follows kl_f32, the
recipe vq_f16.
"""

from configs import first_stages


def get_config(arg: str = ""):
    return first_stages.recipe(
        "vq_f32",
        arg,
        batch_size=14,
        num_steps=1_101_166,
        disc_start_steps=250_001,
        disc_weight=0.75,
        disc_num_layers=2,
    )
