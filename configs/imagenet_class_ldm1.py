"""ImageNet 256 by class, LDM-1 (396.836M parameters in the UNet).

    python train.py --config=configs/imagenet_class_ldm1.py --workdir=runs/imagenet1 \\
        --config.data.path=DIR

The latent is the picture, 256 x 256 x 3. Batch 7, learning rate 4.9e-5, 2M iterations
on one A100. The result is plotted only (paper, figure 6; 100 DDIM steps). A row of
table 13.
"""

from configs import second_stages


def get_config(arg: str = ""):
    return second_stages.class_study(arg, 1, learning_rate=4.9e-5, batch_size=7)
