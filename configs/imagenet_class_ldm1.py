"""ImageNet 256 by class, LDM-1 (396.836M parameters in the UNet).

    python train.py --config=configs/imagenet_class_ldm1.py --workdir=runs/imagenet1 \\
        --config.data.path=DIR

DIR: see IMAGENET in configs/common.py.
The latent is the image, 256 x 256 x 3. Batch 7, learning rate 4.9e-5, 2M iterations
on one A100. The result is plotted only (paper, figure 6; 100 DDIM steps). A row of
table 13.
"""

from configs import common


def get_config(arg: str = ""):
    config = common.diffusion(
        task="class",
        num_classes=1000,
        null_class=False,
        data=common.IMAGENET,
        first_stage=dict(path="identity", scale=1.0),
        unet=dict(
            width=192,
            width_mults=(1, 1, 2, 2, 4, 4),
            attn_factors=(32, 16, 8),
            num_heads=1,
            head_channels=0,
            context_width=512,
        ),
        optimizer=dict(learning_rate=4.9e-5),
        train=dict(batch_size=7, num_steps=2_000_000),
        sample=dict(steps=100),
    )
    return common.finish(config, arg)
