"""ImageNet 256 by class, LDM-32 (395.040M parameters in the UNet).

    python train.py --config=configs/imagenet_class_ldm32.py \\
        --workdir=runs/imagenet32 --config.data.path=DIR \\
        --config.first_stage.path=FIRST_STAGE

FIRST_STAGE: configs/vq_f32.py, whose latents have the 16 channels of table 8; table 13
says 32. Batch 112, learning rate 4.5e-5, 2M iterations on one A100. The result is
plotted only (paper, figure 6; 100 DDIM steps). A row of table 13.
"""

from configs import second_stages


def get_config(arg: str = ""):
    return second_stages.class_study(arg, 32, learning_rate=4.5e-5, batch_size=112)
