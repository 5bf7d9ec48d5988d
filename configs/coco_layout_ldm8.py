"""COCO 256, layout to image, LDM-8 (312.242M parameters in the UNet; not released).

    python train.py --config=configs/coco_layout_ldm8.py --workdir=runs/coco \\
        --config.data.path=DIR --config.first_stage.path=FIRST_STAGE

FIRST_STAGE: configs/vq_f8.py. Batch 48, learning rate 4.8e-5, 170k iterations on one
A100, dropout 0.1. Result: FID 42.06 with 100 DDIM steps (paper, table 9). Table 15 says
345M in all; with the 16 layers of text transformer of table 17 and a word predictor it
is 371.1M, with 8 layers (--config.text.depth=8) 345.9M. Attention resolutions, betas
and loss are not published: 32, 16, 8 and those of openimages_layout_ldm4.
"""

from configs import second_stages


def get_config(arg: str = ""):
    return second_stages.recipe(
        arg,
        task="layout",
        first_stage="vq_f8",
        unet=dict(
            width=192,
            num_heads=1,
            context_width=512,
            transformer_depth=2,
            dropout=0.1,
            **second_stages.SMALL_UNET,
        ),
        text=dict(width=512, depth=16, max_length=92, vocab_size=8192),
        learning_rate=4.8e-5,
        batch_size=48,
        num_steps=170_000,
        betas=(0.0015, 0.0205),
        loss="l1",
        sample=dict(steps=100),
    )
