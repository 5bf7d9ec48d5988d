"""COCO 256, layout to image, LDM-8 (312.242M parameters in the UNet; not released).

    python train.py --config=configs/coco_layout_ldm8.py --workdir=runs/coco \\
        --config.data.path=DIR --config.first_stage.path=FIRST_STAGE

DIR: see lDM_jax/data/annotated.py.
FIRST_STAGE: configs/vq_f8.py. Batch 48, learning rate 4.8e-5, 170k iterations on one
A100, dropout 0.1. Result: FID 42.06 with 100 DDIM steps (paper, table 9). Table 15 says
345M in all; with the 16 layers of text transformer of table 17 and a word predictor it
is 371.1M, with 8 layers (--config.text.depth=8) 345.9M. Attention resolutions, betas
and loss are not published: 32, 16, 8 and those of openimages_layout_ldm4.
"""

from configs import common


def get_config(arg: str = ""):
    config = common.diffusion(
        task="layout",
        data=dict(source="coco", crop="random", filter="linear", flip=0.5),
        first_stage=dict(scale=1.0, network=common.first_stage_network("vq_f8")),
        unet=dict(
            width=192,
            width_mults=(1, 2, 4),
            attn_factors=(4, 2, 1),
            transformer_depth=2,
            dropout=0.1,
            num_heads=1,
            head_channels=0,
            context_width=512,
        ),
        text=dict(max_length=92, vocab_size=8192),
        process=dict(linear_end=0.0205),
        loss=dict(loss="l1"),
        optimizer=dict(learning_rate=4.8e-5),
        train=dict(batch_size=48, num_steps=170_000),
        sample=dict(steps=100),
    )
    return common.finish(config, arg)
