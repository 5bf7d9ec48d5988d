"""Places 256, inpainting LDM-4 (215.230M parameters in the UNet).

    python train.py --config=configs/places_inpaint_ldm4.py --workdir=runs/inpaint \\
        --config.data.path=DIR --config.first_stage.path=FIRST_STAGE

DIR: Places, see `about` below; its loader was not released, and of the crops no more
is known than that it trained on some.
FIRST_STAGE: configs/vq_f4_noattn.py. The UNet sees z_t, the latents of the masked
image and the mask. Batch 128, learning rate 1e-6, 360k iterations on eight V100
(paper, table 15). Result on 30k crops of 512 px: FID 2.37, LPIPS 0.145 (paper, table 7,
"w/o attn"). Heads, betas and loss as released for `:big`; table 15 says one head.

`:big` is the released model of 387.246M, with attention: FID 2.40, LPIPS 0.142, after
half an epoch at 512 px 1.50 and 0.137 (paper, table 7). The release gives base rate
1e-6 and no batch: 1.28e-5 = 1e-6 x 128 x 0.1, its schedule's greatest multiple, after
1,000 steps of warm-up.
"""

from configs import common


def get_config(arg: str = ""):
    choice, arg = common.choose(arg, "big")
    config = common.diffusion(
        task="inpaint",
        data=dict(
            source="folder",
            about="Places (places2.csail.mit.edu): a folder with its pictures; or "
            "source 'tfds' and path 'places365_small'",
            crop="random",
            resize_px=512,
        ),
        first_stage=dict(scale=1.0, network=common.first_stage_network("vq_f4_noattn")),
        unet=dict(
            width=128,
            width_mults=(1, 4, 8),
            attn_factors=(),
            num_heads=8,
            head_channels=0,
        ),
        process=dict(linear_end=0.0205),
        loss=dict(loss="l1"),
        optimizer=dict(learning_rate=1e-6),
        train=dict(batch_size=128, num_steps=360_000),
    )
    if choice == "big":
        config.unet.update(dict(width=256, width_mults=(1, 2, 3, 4), res_resample=True))
        config.unet.attn_factors = (8, 4, 2)
        config.optimizer.update(dict(learning_rate=1.28e-5, warmup_steps=1000))
    return common.finish(config, arg)
