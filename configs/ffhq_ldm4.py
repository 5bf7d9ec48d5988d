"""FFHQ 256, unconditional LDM-4 (274.056M parameters in the UNet).

    python train.py --config=configs/ffhq_ldm4.py --workdir=runs/ffhq \\
        --config.data.path=DIR --config.first_stage.path=FIRST_STAGE

DIR: see FFHQ in configs/data.py.
FIRST_STAGE: configs/vq_f4.py. Batch 42, learning rate 8.4e-5 = 2e-6 x 42, 635k
iterations on one A100. Result: FID 4.98, precision 0.73, recall 0.50 with 200 DDIM
steps (paper, table 1); eta 1 (release).
"""

from configs import data, second_stages


def get_config(arg: str = ""):
    return second_stages.unconditional_ldm4(
        arg,
        batch_size=42,
        num_steps=635_000,
        sample=dict(steps=200, eta=1.0),
        data=data.FFHQ,
    )
