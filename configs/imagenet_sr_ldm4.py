"""ImageNet 64 -> 256 px, super-resolution LDM-4 (113.623M parameters in the UNet).

    python train.py --config=configs/imagenet_sr_ldm4.py --workdir=runs/sr \\
        --config.data.path=DIR --config.first_stage.path=FIRST_STAGE

DIR: see IMAGENET in configs/common.py.
FIRST_STAGE: configs/vq_f4.py; with it 169M, as the paper counts. Small images are
made by bicubic interpolation. Batch 64, learning rate 6.4e-5, 860k iterations on one
A100. Result with 100 DDIM steps: FID 2.8 (validation) and 4.8 (training features), IS
166.3, PSNR 24.4, SSIM 0.69 (paper, table 5). Network, betas and 32 channels a head are
those of the released model for real images (openimages_sr_ldm4); table 15 says one
head.

`:big` is the model of 552M, which is not released: FID 2.4 and 4.3, IS 174.9, PSNR
24.7, SSIM 0.71 (paper, table 5). Its network is not published; this one is as wide as
the big inpainting model and has multiples that bring it to 552.0M with the first stage.
"""

from configs import common


def get_config(arg: str = ""):
    choice, arg = common.choose(arg, "big")
    config = common.diffusion(
        task="super_resolution",
        data={**common.IMAGENET, "crop": "share", "min_px": 256},
        first_stage=dict(scale=1.0, network=common.first_stage_network("vq_f4")),
        unet=dict(width=160, width_mults=(1, 2, 2, 4), attn_factors=(8,)),
        process=dict(linear_end=0.0155),
        optimizer=dict(learning_rate=1e-6 * 64),
        train=dict(batch_size=64, num_steps=860_000),
        sample=dict(steps=100, eta=1.0),
    )
    if choice == "big":
        config.unet.update(dict(width=256, width_mults=(1, 3, 4, 4), res_resample=True))
    return common.finish(config, arg)
