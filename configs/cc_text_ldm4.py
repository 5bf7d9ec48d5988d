"""Conceptual Captions 256, text to image, LDM-4 (403.624M parameters in the UNet).

    python train.py --config=configs/cc_text_ldm4.py --workdir=runs/captions \\
        --config.data.path=DIR --config.first_stage.path=FIRST_STAGE

DIR: see CAPTIONS in configs/data.py.
FIRST_STAGE: configs/vq_f4.py. Batch 28, learning rate 5.6e-5 = 2e-6 x 28 (release; it
is not in the paper's tables). The iterations are not published: 1M here. Result: FID
16.79, IS 13.89 with 100 DDIM steps, eta 0 (the release's table; authors' figure). One
head: the release's config asks for 32 channels a head, the program it was trained with
ignored that.
"""

from configs import data, second_stages


def get_config(arg: str = ""):
    return second_stages.recipe(
        arg,
        task="text",
        first_stage="vq_f4",
        unet=dict(num_heads=1, context_width=640, **second_stages.TEXT_F4_UNET),
        text=dict(width=640, depth=32),
        learning_rate=5.6e-5,
        batch_size=28,
        num_steps=1_000_000,
        sample=dict(steps=100),
        data=data.CAPTIONS,
    )
