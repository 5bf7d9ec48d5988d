"""ImageNet 256 by class, LDM-32 (395.040M parameters in the UNet).

    python train.py --config=configs/imagenet_class_ldm32.py \\
        --workdir=runs/imagenet32 --config.data.path=DIR \\
        --config.first_stage.path=FIRST_STAGE

DIR: see IMAGENET in configs/common.py.
FIRST_STAGE: configs/vq_f32.py, whose latents have the 16 channels of table 8; table 13
says 32. Batch 112, learning rate 4.5e-5, 2M iterations on one A100. The result is
plotted only (paper, figure 6; 100 DDIM steps). A row of table 13.
"""

from configs import common


def get_config(arg: str = ""):
    config = common.diffusion(
        task="class",
        num_classes=1000,
        null_class=False,
        data=common.IMAGENET,
        first_stage=dict(scale=1.0, network=common.first_stage_network("vq_f32")),
        unet=dict(
            width=256,
            width_mults=(1, 2, 4),
            attn_factors=(4, 2, 1),
            num_heads=1,
            head_channels=0,
            context_width=512,
        ),
        optimizer=dict(learning_rate=4.5e-5),
        train=dict(batch_size=112, num_steps=2_000_000),
        sample=dict(steps=100),
    )
    return common.finish(config, arg)
