"""CelebA 256, unconditional LDM-f for f = 1, 2, 4, 8, 16, 32: the study of table 14.

    python train.py --config=configs/celeba_ldm.py:8 --workdir=runs/celeba8 \\
        --config.data.path=DIR --config.first_stage.path=FIRST_STAGE

DIR: see CELEBA in configs/data.py.
The argument is f, 4 if there is none. FIRST_STAGE: configs/vq_f<f>.py; f = 1 sees
pixels and has none. 500k iterations on one A100; batch and learning rate are below. The
result is plotted only (paper, figure 7). At f = 32 table 13 gives the latents 32
channels, table 8 the first stage 16, which is what vq_f32 has.
"""

from configs import data, second_stages

# f: batch size, learning rate.
ROWS = {
    1: (9, 9e-5),
    2: (11, 1.1e-4),
    4: (48, 9.6e-5),
    8: (96, 9.6e-5),
    16: (128, 1.3e-4),
    32: (128, 1.3e-4),
}


def get_config(arg: str = ""):
    choice, arg = second_stages.choose(arg, *map(str, ROWS))
    f = int(choice or 4)
    first_stage, width, mults, factors = second_stages.STUDY[f]
    unet = dict(width=width, width_mults=mults, attn_factors=factors)
    if f == 4:
        unet = dict(width=224, **second_stages.F4_UNET)
    batch_size, learning_rate = ROWS[f]
    return second_stages.recipe(
        arg,
        first_stage=first_stage,
        unet=unet,
        learning_rate=learning_rate,
        batch_size=batch_size,
        num_steps=500_000,
        sample=dict(steps=100),
        data=data.CELEBA,
    )
