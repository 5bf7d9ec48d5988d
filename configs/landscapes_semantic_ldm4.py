"""Landscapes 256, label map to image, LDM-4 (215.229M parameters in the UNet).

    python train.py --config=configs/landscapes_semantic_ldm4.py \\
        --workdir=runs/landscapes --config.data.path=DIR \\
        --config.first_stage.path=FIRST_STAGE

DIR: see `about` below. The shorter side is resized to 384 px (768 for
`:512`) and a random square of 256 cut out of image and map alike. The original's data
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

from configs import common


def get_config(arg: str = ""):
    choice, arg = common.choose(arg, "512")
    config = common.diffusion(
        task="semantic",
        num_classes=182,
        data=dict(
            source="folder",
            about="landscapes with label maps: images/a.jpg and segmentation/a.png, "
            "grey or with a palette, whose values are labels 0 .. 181",
            crop="random",
            resize_px=384,
        ),
        first_stage=dict(scale=1.0, network=common.first_stage_network("vq_f4")),
        unet=dict(
            width=128,
            width_mults=(1, 4, 8),
            attn_factors=(),
            num_heads=8,
            head_channels=0,
        ),
        process=dict(linear_end=0.0205),
        loss=dict(loss="l1"),
        optimizer=dict(learning_rate=4.8e-5),
        train=dict(batch_size=48, num_steps=360_000),
        sample=dict(steps=200),
    )
    if choice == "512":
        config.data.update(dict(resize_px=768, size_px=512))
        config.optimizer.learning_rate = 1e-6 * 8
        config.train.update(dict(batch_size=8, num_steps=100_000))
    return common.finish(config, arg)
