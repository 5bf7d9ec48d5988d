"""OpenImages 64 -> 256 px, super-resolution LDM-4 of real images (released).

    python train.py --config=configs/openimages_sr_ldm4.py --workdir=runs/sr_real \\
        --config.data.path=DIR --config.first_stage.path=FIRST_STAGE

DIR: see OPENIMAGES in configs/common.py.
FIRST_STAGE: configs/vq_f4.py; the UNet has 113.623M parameters. Small images are made
by the light BSR degradation of crops of 0.5 to 1 times the shorter side. Batch 64,
learning rate 6.4e-5 = 1e-6 x 64 (release; it is not in the paper's tables). The
iterations are not published: 860k, as in imagenet_sr_ldm4. No figure is published.
"""

from configs import common


def get_config(arg: str = ""):
    config = common.diffusion(
        task="super_resolution",
        data={**common.OPENIMAGES, "crop": "share", "resize_px": 0, "min_px": 256},
        low_res=dict(kind="bsr_light"),
        first_stage=dict(scale=1.0, network=common.first_stage_network("vq_f4")),
        unet=dict(width=160, width_mults=(1, 2, 2, 4), attn_factors=(8,)),
        process=dict(linear_end=0.0155),
        optimizer=dict(learning_rate=1e-6 * 64),
        train=dict(batch_size=64, num_steps=860_000),
        sample=dict(steps=100, eta=1.0),
    )
    return common.finish(config, arg)
