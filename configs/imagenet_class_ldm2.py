"""ImageNet 256 by class, LDM-2 (390.889M parameters in the UNet).

    python train.py --config=configs/imagenet_class_ldm2.py --workdir=runs/imagenet2 \\
        --config.data.path=DIR --config.first_stage.path=FIRST_STAGE

FIRST_STAGE: configs/vq_f2.py. Batch 9, learning rate 6.3e-5, 2M iterations on one A100.
The result is plotted only (paper, figure 6; 100 DDIM steps). A row of table 13.
"""

from configs import second_stages


def get_config(arg: str = ""):
    return second_stages.class_study(arg, 2, learning_rate=6.3e-5, batch_size=9)
