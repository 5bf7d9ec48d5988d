"""ImageNet 256 by class, LDM-4 (400.921M parameters in the UNet; released as v2).

    python train.py --config=configs/imagenet_class_ldm4.py --workdir=runs/imagenet \\
        --config.data.path=DIR --config.first_stage.path=FIRST_STAGE

DIR: see IMAGENET in configs/data.py.
FIRST_STAGE: configs/vq_f4.py. Batch 1200, learning rate
1e-4, 178k iterations. Result with 250 DDIM steps: FID 10.56, IS 103.49; with guidance
1.25 FID 3.95, IS 178.22; with guidance 1.5 FID 3.60, IS 247.67, precision 0.87, recall
0.48 (paper, tables 3 and 10). How often the class was dropped and eta are not
published: 0.1, and 1, with which others have reproduced the result.

`:study` is the row of table 13 instead: batch 40, learning rate 8e-5, 2M iterations,
1000 classes without a null class. That table says 391M; the network it describes has
the 400.921M of the release.
"""

from configs import second_stages


def get_config(arg: str = ""):
    choice, arg = second_stages.choose(arg, "study")
    if choice == "study":
        return second_stages.class_study(arg, 4, learning_rate=8e-5, batch_size=40)
    return second_stages.class_study(
        arg,
        4,
        learning_rate=1e-4,
        batch_size=1200,
        num_steps=178_000,
        null_class=True,
        drop_rate=0.1,
        sample=dict(steps=250, guidance=1.5, eta=1.0),
    )
