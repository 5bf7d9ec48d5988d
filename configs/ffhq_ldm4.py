"""FFHQ 256, unconditional LDM-4 (274.056M parameters in the UNet).

    python train.py --config=configs/ffhq_ldm4.py --workdir=runs/ffhq \\
        --config.data.path=DIR --config.first_stage.path=FIRST_STAGE

DIR: FFHQ, see `about` below.
FIRST_STAGE: configs/vq_f4.py. Batch 42, learning rate 8.4e-5 = 2e-6 x 42, 635k
iterations on one A100. Result: FID 4.98, precision 0.73, recall 0.50 with 200 DDIM
steps (paper, table 1); eta 1 (release).
"""

from configs import common


def get_config(arg: str = ""):
    config = common.diffusion(
        data=dict(
            source="folder",
            about="FFHQ (github.com/NVlabs/ffhq-dataset): a folder with its 70,000 "
            "pictures",
            filter="linear",
        ),
        first_stage=dict(scale=1.0, network=common.first_stage_network("vq_f4")),
        unet=dict(width=224, width_mults=(1, 2, 3, 4), attn_factors=(8, 4, 2)),
        optimizer=dict(learning_rate=2e-6 * 42),
        train=dict(batch_size=42, num_steps=635_000),
        sample=dict(steps=200, eta=1.0),
    )
    return common.finish(config, arg)
