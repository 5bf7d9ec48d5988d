"""ImageNet 256 by class, LDM-16 (395.003M parameters in the UNet).

    python train.py --config=configs/imagenet_class_ldm16.py \\
        --workdir=runs/imagenet16 --config.data.path=DIR \\
        --config.first_stage.path=FIRST_STAGE

FIRST_STAGE: configs/vq_f16.py. Batch 112, learning rate 4.5e-5, 2M iterations on one
A100. The result is plotted only (paper, figure 6; 100 DDIM steps). A row of table 13.
"""

from configs import second_stages


def get_config(arg: str = ""):
    return second_stages.class_study(arg, 16, learning_rate=4.5e-5, batch_size=112)
