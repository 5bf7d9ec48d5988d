"""Conceptual Captions 256, text to image, LDM-4 (403.624M parameters in the UNet).

    python train.py --config=configs/cc_text_ldm4.py --workdir=runs/captions \\
        --config.data.path=DIR --config.first_stage.path=FIRST_STAGE

DIR: see CAPTIONS in configs/common.py.
FIRST_STAGE: configs/vq_f4.py. Batch 28, learning rate 5.6e-5 = 2e-6 x 28 (release; it
is not in the paper's tables). The iterations are not published: 1M here. Result: FID
16.79, IS 13.89 with 100 DDIM steps, eta 0 (the release's table; authors' figure). One
head: the release's config asks for 32 channels a head, the program it was trained with
ignored that.
"""

from configs import common


def get_config(arg: str = ""):
    config = common.diffusion(
        task="text",
        data=common.CAPTIONS,
        first_stage=dict(scale=1.0, network=common.first_stage_network("vq_f4")),
        unet=dict(
            width=192,
            width_mults=(1, 2, 3, 5),
            attn_factors=(8, 4, 2),
            num_heads=1,
            head_channels=0,
            context_width=640,
        ),
        text=dict(width=640, depth=32),
        optimizer=dict(learning_rate=2e-6 * 28),
        train=dict(batch_size=28, num_steps=1_000_000),
        sample=dict(steps=100),
    )
    return common.finish(config, arg)
