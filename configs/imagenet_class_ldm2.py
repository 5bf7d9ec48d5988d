"""ImageNet 256 by class, LDM-2 (390.889M parameters in the UNet).

    python train.py --config=configs/imagenet_class_ldm2.py --workdir=runs/imagenet2 \\
        --config.data.path=DIR --config.first_stage.path=FIRST_STAGE

DIR: see IMAGENET in configs/common.py.
FIRST_STAGE: configs/vq_f2.py. Batch 9, learning rate 6.3e-5, 2M iterations on one A100.
The result is plotted only (paper, figure 6; 100 DDIM steps). A row of table 13.
"""

from configs import common


def get_config(arg: str = ""):
    config = common.diffusion(
        task="class",
        num_classes=1000,
        null_class=False,
        data=common.IMAGENET,
        first_stage=dict(scale=1.0, network=common.first_stage_network("vq_f2")),
        unet=dict(
            width=192,
            width_mults=(1, 2, 2, 4, 4),
            attn_factors=(16, 8, 4),
            num_heads=1,
            head_channels=0,
            context_width=512,
        ),
        optimizer=dict(learning_rate=6.3e-5),
        train=dict(batch_size=9, num_steps=2_000_000),
        sample=dict(steps=100),
    )
    return common.finish(config, arg)
