"""CelebA-HQ 256, unconditional LDM-4 (274.056M parameters in the UNet).

    python train.py --config=configs/celebahq_ldm4.py --workdir=runs/celebahq \\
        --config.data.path=DIR --config.first_stage.path=FIRST_STAGE

DIR: see CELEBAHQ in configs/data.py.
FIRST_STAGE is a weights directory of configs/vq_f4.py, trained or converted.
Batch 48, learning rate 9.6e-5 = 2e-6 x 48, 410k iterations on one A100.
Result: FID 5.11, precision 0.72, recall 0.49 with 500 DDIM steps (paper, table 1; the
release says 200 steps, eta 0).
"""

from configs import data, second_stages


def get_config(arg: str = ""):
    return second_stages.unconditional_ldm4(
        arg,
        batch_size=48,
        num_steps=410_000,
        sample=dict(steps=200),
        data=data.CELEBAHQ,
    )
