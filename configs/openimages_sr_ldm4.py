"""OpenImages 64 -> 256 px, super-resolution LDM-4 of real pictures (released).

    python train.py --config=configs/openimages_sr_ldm4.py --workdir=runs/sr_real \\
        --config.data.path=DIR --config.first_stage.path=FIRST_STAGE

DIR: see OPENIMAGES_SR in configs/data.py.
FIRST_STAGE: configs/vq_f4.py; the UNet has 113.623M parameters. Small pictures are made
by the light BSR degradation of crops of 0.5 to 1 times the shorter side. Batch 64,
learning rate 6.4e-5 = 1e-6 x 64 (release; it is not in the paper's tables). The
iterations are not published: 860k, as in imagenet_sr_ldm4. No figure is published.
"""

from configs import data, second_stages


def get_config(arg: str = ""):
    return second_stages.recipe(
        arg,
        task="super_resolution",
        first_stage="vq_f4",
        unet=second_stages.SR_UNET,
        learning_rate=6.4e-5,
        batch_size=64,
        num_steps=860_000,
        betas=(0.0015, 0.0155),
        sample=dict(steps=100, eta=1.0),
        data=data.OPENIMAGES_SR,
        low_res=dict(kind="bsr_light"),
    )
