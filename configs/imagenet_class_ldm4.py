"""ImageNet 256 by class, LDM-4 (400.921M parameters in the UNet; released as v2).

    python train.py --config=configs/imagenet_class_ldm4.py --workdir=runs/imagenet \\
        --config.data.path=DIR --config.first_stage.path=FIRST_STAGE

DIR: see IMAGENET in configs/common.py.
FIRST_STAGE: configs/vq_f4.py. Batch 1200, learning rate 1e-4, 178k iterations. Result
with 250 DDIM steps: FID 10.56, IS 103.49; with guidance 1.25 FID 3.95, IS 178.22; with
guidance 1.5 FID 3.60, IS 247.67, precision 0.87, recall 0.48 (paper, tables 3 and 10).
How often the class was dropped and eta are not published: 0.1, and 1, with which others
have reproduced the result.

`:study` is the row of table 13 instead: batch 40, learning rate 8e-5, 2M iterations,
1000 classes without a null class. That table says 391M; the network it describes has
the 400.921M of the release.
"""

from configs import common


def get_config(arg: str = ""):
    choice, arg = common.choose(arg, "study")
    config = common.diffusion(
        task="class",
        num_classes=1000,
        data=common.IMAGENET,
        first_stage=dict(scale=1.0, network=common.first_stage_network("vq_f4")),
        unet=dict(
            width=192,
            width_mults=(1, 2, 3, 5),
            attn_factors=(8, 4, 2),
            num_heads=1,
            head_channels=0,
            context_width=512,
        ),
        loss=dict(drop_rate=0.1),
        optimizer=dict(learning_rate=1e-4),
        train=dict(batch_size=1200, num_steps=178_000),
        sample=dict(steps=250, guidance=1.5, eta=1.0),
    )
    if choice == "study":
        config.null_class = False
        config.loss.drop_rate = 0.0
        config.optimizer.learning_rate = 8e-5
        config.train.update(dict(batch_size=40, num_steps=2_000_000))
        config.sample.update(dict(steps=100, guidance=1.0, eta=0.0))
    return common.finish(config, arg)
