"""KL first stage, f = 32, 64 channels.

    python train.py --config=configs/kl_f32.py --workdir=runs/kl_f32 \\
        --config.data.path=DIR

Batch 6, 406,763 iterations (released config and README). Result after training on
OpenImages, on ImageNet validation: R-FID 2.04, PSNR 22.27, SSIM 0.61 (paper, table 8).

With --config.autoencoder.z_channels=16 --config.autoencoder.latent_channels=16: R-FID
7.3, PSNR 20.38 (paper).
"""

from configs import first_stages


def get_config(arg: str = ""):
    return first_stages.recipe(
        "kl_f32",
        arg,
        batch_size=6,
        num_steps=406_763,
        disc_start_steps=50_001,
        disc_weight=0.5,
    )
