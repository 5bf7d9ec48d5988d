"""LSUN-Bedrooms 256, unconditional LDM-4 (274.056M parameters in the UNet).

    python train.py --config=configs/bedrooms_ldm4.py --workdir=runs/bedrooms \\
        --config.data.path=DIR --config.first_stage.path=FIRST_STAGE

DIR: see BEDROOMS in configs/data.py.
FIRST_STAGE: configs/vq_f4.py. Batch 48, learning rate 9.6e-5 = 2e-6 x 48, 1.9M
iterations on one A100, half of the pictures mirrored. Result: FID 2.95, precision 0.66,
recall 0.48 with 200 DDIM steps (paper, table 1); eta 1 (release).
"""

from configs import data, second_stages


def get_config(arg: str = ""):
    return second_stages.unconditional_ldm4(
        arg,
        batch_size=48,
        num_steps=1_900_000,
        data=data.BEDROOMS,
        sample=dict(steps=200, eta=1.0),
    )
