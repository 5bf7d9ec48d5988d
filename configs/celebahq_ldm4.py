"""CelebA-HQ 256, unconditional LDM-4 (274.056M parameters in the UNet).

    python train.py --config=configs/celebahq_ldm4.py --workdir=runs/celebahq \\
        --config.data.path=DIR --config.first_stage.path=FIRST_STAGE

DIR: CelebA-HQ, see `about` below.
FIRST_STAGE is a weights directory of configs/vq_f4.py, trained or converted.
Batch 48, learning rate 9.6e-5 = 2e-6 x 48, 410k iterations on one A100.
Result: FID 5.11, precision 0.72, recall 0.49 with 500 DDIM steps (paper, table 1; the
release says 200 steps, eta 0).
"""

from configs import common


def get_config(arg: str = ""):
    config = common.diffusion(
        data=dict(
            source="folder",
            about="CelebA-HQ (github.com/tkarras/progressive_growing_of_gans): a "
            "folder with its 30,000 pictures; or source 'tfds' and path "
            "'celeb_a_hq/256'",
            filter="linear",
        ),
        first_stage=dict(scale=1.0, network=common.first_stage_network("vq_f4")),
        unet=dict(width=224, width_mults=(1, 2, 3, 4), attn_factors=(8, 4, 2)),
        optimizer=dict(learning_rate=2e-6 * 48),
        train=dict(batch_size=48, num_steps=410_000),
        sample=dict(steps=200),
    )
    return common.finish(config, arg)
