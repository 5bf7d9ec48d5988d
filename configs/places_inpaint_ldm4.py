"""Places 256, inpainting LDM-4 (215.230M parameters in the UNet).

    python train.py --config=configs/places_inpaint_ldm4.py --workdir=runs/inpaint \\
        --config.data.path=DIR --config.first_stage.path=FIRST_STAGE

DIR: see PLACES in configs/data.py.
FIRST_STAGE: configs/vq_f4_noattn.py. The UNet sees z_t, the latents of the masked
picture and the mask. Batch 128, learning rate 1e-6, 360k iterations on eight V100
(paper, table 15). Result on 30k crops of 512 px: FID 2.37, LPIPS 0.145 (paper, table 7,
"w/o attn"). Heads, betas and loss as released for `:big`; table 15 says one head.

`:big` is the released model of 387.246M, with attention: FID 2.40, LPIPS 0.142, after
half an epoch at 512 px 1.50 and 0.137 (paper, table 7). The release gives base rate
1e-6 and no batch: 1.28e-5 = 1e-6 x 128 x 0.1, its schedule's greatest multiple, after
1,000 steps of warm-up.
"""

from configs import data, second_stages


def get_config(arg: str = ""):
    choice, arg = second_stages.choose(arg, "big")
    recipe = dict(learning_rate=1e-6)
    unet = dict(width=128, width_mults=(1, 4, 8), attn_factors=(), num_heads=8)
    if choice == "big":
        recipe = dict(learning_rate=1.28e-5, warmup_steps=1000)
        unet = dict(width=256, num_heads=8, res_resample=True, **second_stages.F4_UNET)
    return second_stages.recipe(
        arg,
        task="inpaint",
        first_stage="vq_f4_noattn",
        unet=unet,
        batch_size=128,
        num_steps=360_000,
        betas=(0.0015, 0.0205),
        loss="l1",
        **recipe,
        data=data.PLACES,
    )
