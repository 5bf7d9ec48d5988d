"""LAION 256, text to image, LDM-8 of 1.45B parameters (872.300M in the UNet).

    python train.py --config=configs/laion_text_ldm8.py --workdir=runs/laion \\
        --config.data.path=DIR --config.first_stage.path=FIRST_STAGE

DIR: see CAPTIONS in configs/common.py.
FIRST_STAGE: configs/kl_f8.py. The text transformer trains with the UNet: 542.9M, with
the release's unused word predictor 581.994M. Batch 680, learning rate 1e-4, 390k
iterations. Result on MS-COCO with 250 DDIM steps: FID 23.31, IS 20.03; with guidance
1.5 FID 12.63, IS 30.29 (paper, table 2). How often the caption was dropped is not
published: 0.1.
"""

from configs import common


def get_config(arg: str = ""):
    config = common.diffusion(
        task="text",
        data=common.CAPTIONS,
        first_stage=dict(scale=0.18215, network=common.first_stage_network("kl_f8")),
        unet=dict(
            width=320,
            width_mults=(1, 2, 4, 4),
            attn_factors=(4, 2, 1),
            num_heads=8,
            head_channels=0,
            context_width=1280,
        ),
        text=dict(width=1280, depth=32),
        process=dict(linear_start=0.00085, linear_end=0.012),
        loss=dict(drop_rate=0.1),
        optimizer=dict(learning_rate=1e-4),
        train=dict(batch_size=680, num_steps=390_000),
        sample=dict(steps=250, guidance=1.5),
    )
    return common.finish(config, arg)
