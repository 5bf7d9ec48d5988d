"""LSUN-Churches 256, unconditional LDM-8 (294.967M parameters in the UNet).

    python train.py --config=configs/churches_ldm8.py --workdir=runs/churches \\
        --config.data.path=DIR --config.first_stage.path=FIRST_STAGE

DIR: LSUN churches, see `about` below.
FIRST_STAGE: configs/kl_f8.py; the latent scale is measured (the release holds its own).
Batch 96, 500k iterations on one A100, learning rate 5e-5 after 10,000 steps of warm-up,
absolute error, half of the images mirrored. Result: FID 4.02, precision 0.64, recall
0.52 with 200 DDIM steps (paper, table 1); 400 steps, eta 0 (release, followed here).
"""

from configs import common


def get_config(arg: str = ""):
    config = common.diffusion(
        data=dict(
            source="folder",
            about="LSUN churches (github.com/fyu/lsun): its pictures exported to a "
            "folder; or source 'tfds' and path 'lsun/church_outdoor'",
            flip=0.5,
        ),
        first_stage=dict(scale=0.0, network=common.first_stage_network("kl_f8")),
        unet=dict(
            width=192,
            width_mults=(1, 2, 2, 4, 4),
            attn_factors=(8, 4, 2, 1),
            num_heads=8,
            head_channels=0,
            scale_shift=True,
            res_resample=True,
        ),
        process=dict(linear_end=0.0155),
        loss=dict(loss="l1"),
        optimizer=dict(learning_rate=5e-5, warmup_steps=10_000),
        train=dict(batch_size=96, num_steps=500_000),
        sample=dict(steps=400),
    )
    return common.finish(config, arg)
