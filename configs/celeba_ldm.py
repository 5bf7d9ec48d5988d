"""CelebA 256, unconditional LDM-f for f = 1, 2, 4, 8, 16, 32: the study of table 14.

    python train.py --config=configs/celeba_ldm.py:8 --workdir=runs/celeba8 \\
        --config.data.path=DIR --config.first_stage.path=FIRST_STAGE

DIR: CelebA, see `about` below.
The argument is f, 4 if there is none. FIRST_STAGE: configs/vq_f<f>.py; f = 1 sees
pixels and has none. 500k iterations on one A100; batch and learning rate are below. The
result is plotted only (paper, figure 7). At f = 32 table 13 gives the latents 32
channels, table 8 the first stage 16, which is what vq_f32 has.
"""

from configs import common

# f: first stage, batch size, learning rate, the UNet's shape.
ROWS = {
    1: ("identity", 9, 9e-5, (192, (1, 1, 2, 2, 4, 4), (32, 16, 8))),
    2: ("vq_f2", 11, 1.1e-4, (192, (1, 2, 2, 4, 4), (16, 8, 4))),
    4: ("vq_f4", 48, 9.6e-5, (224, (1, 2, 3, 4), (8, 4, 2))),
    8: ("vq_f8", 96, 9.6e-5, (256, (1, 2, 4), (4, 2, 1))),
    16: ("vq_f16", 128, 1.3e-4, (256, (1, 2, 4), (4, 2, 1))),
    32: ("vq_f32", 128, 1.3e-4, (256, (1, 2, 4), (4, 2, 1))),
}


def get_config(arg: str = ""):
    choice, arg = common.choose(arg, *map(str, ROWS))
    first_stage, batch_size, learning_rate, shape = ROWS[int(choice or 4)]
    width, width_mults, attn_factors = shape
    config = common.diffusion(
        data=dict(
            source="folder",
            about="CelebA (mmlab.ie.cuhk.edu.hk/projects/CelebA.html): a folder with "
            "its pictures; or source 'tfds' and path 'celeb_a'",
            filter="linear",
        ),
        first_stage=dict(scale=1.0),
        unet=dict(width=width, width_mults=width_mults, attn_factors=attn_factors),
        optimizer=dict(learning_rate=learning_rate),
        train=dict(batch_size=batch_size, num_steps=500_000),
        sample=dict(steps=100),
    )
    if first_stage == "identity":
        config.first_stage.path = "identity"
    else:
        config.first_stage.network = common.first_stage_network(first_stage)
    return common.finish(config, arg)
