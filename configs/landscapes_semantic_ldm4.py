"""Landscapes 256, label map to image, LDM-4 (215.229M parameters in the UNet).

    python train.py --config=configs/landscapes_semantic_ldm4.py \\
        --workdir=runs/landscapes --config.data.path=DIR \\
        --config.first_stage.path=FIRST_STAGE

DIR: see LANDSCAPES in configs/data.py. The shorter side is resized to 384 px (768 for
`:512`) and a random square of 256 cut out of picture and map alike. The original's data
and loader were not released: what is known are that extent and the number of labels.
Maps of your own with fewer labels: --config.num_classes.
FIRST_STAGE: configs/vq_f4.py. Maps of 182 labels become three channels at the extent of
the latents. Batch 48, learning rate 4.8e-5, 360k iterations on one A100 (paper, table
15, which says f = 8 and one head; the release has f = 4 and eight). No figure is
published.

`:512` is the released fine-tuning at 512 px: batch 8, learning rate 8e-6 = 1e-6 x 8, to
be started from the model at 256 px (--config.init_from.path). Its iterations are not
published: 100k here.
"""

from configs import data, second_stages


def get_config(arg: str = ""):
    choice, arg = second_stages.choose(arg, "512")
    recipe = dict(learning_rate=4.8e-5, batch_size=48, num_steps=360_000)
    if choice == "512":
        recipe = dict(learning_rate=8e-6, batch_size=8, num_steps=100_000)
    return second_stages.recipe(
        arg,
        task="semantic",
        num_classes=182,
        rescaler=dict(num_stages=2, width=3),
        first_stage="vq_f4",
        unet=dict(width=128, width_mults=(1, 4, 8), attn_factors=(), num_heads=8),
        data=data.LANDSCAPES_512 if choice == "512" else data.LANDSCAPES,
        betas=(0.0015, 0.0205),
        loss="l1",
        sample=dict(steps=200),
        **recipe,
    )
