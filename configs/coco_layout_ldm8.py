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

from configs import data, second_stages


def get_config(arg: str = ""):
    return second_stages.layout(
        arg,
        first_stage="vq_f8",
        unet=dict(
            width=192,
            transformer_depth=2,
            dropout=0.1,
            **second_stages.SMALL_UNET,
        ),
        batch_size=48,
        num_steps=170_000,
        sample=dict(steps=100),
        data=data.COCO,
    )
