"""ImageNet 256 by class, LDM-8 (394.984M parameters in the UNet; released).

    python train.py --config=configs/imagenet_class_ldm8.py --workdir=runs/imagenet8 \\
        --config.data.path=DIR --config.first_stage.path=FIRST_STAGE

DIR: see IMAGENET in configs/common.py.
FIRST_STAGE: configs/vq_f8.py. Batch 64, learning rate
6.4e-5 = 1e-6 x 64, 4.8M iterations (2M for table 13). Result with 200 DDIM steps: FID
17.41, IS 72.92 after 2.9M iterations, FID 15.51, IS 79.03 after 4.8M (paper, table 10);
eta 1 (release). One head: the release's config asks for 32 channels a head, the program
it was trained with ignored that.
"""

from configs import common


def get_config(arg: str = ""):
    config = common.diffusion(
        task="class",
        num_classes=1000,
        null_class=False,
        data=common.IMAGENET,
        first_stage=dict(scale=1.0, network=common.first_stage_network("vq_f8")),
        unet=dict(
            width=256,
            width_mults=(1, 2, 4),
            attn_factors=(4, 2, 1),
            num_heads=1,
            head_channels=0,
            context_width=512,
        ),
        optimizer=dict(learning_rate=1e-6 * 64),
        train=dict(batch_size=64, num_steps=4_800_000),
        sample=dict(steps=200, eta=1.0),
    )
    return common.finish(config, arg)
