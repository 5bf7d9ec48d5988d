"""LSUN-Bedrooms 256, unconditional LDM-4 (274.056M parameters in the UNet).

    python train.py --config=configs/bedrooms_ldm4.py --workdir=runs/bedrooms \\
        --config.data.path=DIR --config.first_stage.path=FIRST_STAGE

DIR: LSUN bedrooms, see `about` below.
FIRST_STAGE: configs/vq_f4.py. Batch 48, learning rate 9.6e-5 = 2e-6 x 48, 1.9M
iterations on one A100, half of the images mirrored. Result: FID 2.95, precision 0.66,
recall 0.48 with 200 DDIM steps (paper, table 1); eta 1 (release).
"""

from configs import common


def get_config(arg: str = ""):
    config = common.diffusion(
        data=dict(
            source="folder",
            about="LSUN bedrooms (github.com/fyu/lsun): its pictures exported to a "
            "folder; or source 'tfds' and path 'lsun/bedroom'",
            flip=0.5,
        ),
        first_stage=dict(scale=1.0, network=common.first_stage_network("vq_f4")),
        unet=dict(width=224, width_mults=(1, 2, 3, 4), attn_factors=(8, 4, 2)),
        optimizer=dict(learning_rate=2e-6 * 48),
        train=dict(batch_size=48, num_steps=1_900_000),
        sample=dict(steps=200, eta=1.0),
    )
    return common.finish(config, arg)
