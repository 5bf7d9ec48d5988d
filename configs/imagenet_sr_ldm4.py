"""ImageNet 64 -> 256 px, super-resolution LDM-4 (113.623M parameters in the UNet).

    python train.py --config=configs/imagenet_sr_ldm4.py --workdir=runs/sr \\
        --config.data.path=DIR --config.first_stage.path=FIRST_STAGE

DIR: see IMAGENET_SR in configs/data.py.
FIRST_STAGE: configs/vq_f4.py; with it 169M, as the paper counts. Small pictures are
made by bicubic interpolation. Batch 64, learning rate 6.4e-5, 860k iterations on one
A100. Result with 100 DDIM steps: FID 2.8 (validation) and 4.8 (training features), IS
166.3, PSNR 24.4, SSIM 0.69 (paper, table 5). Network, betas and 32 channels a head are
those of the released model for real pictures (openimages_sr_ldm4); table 15 says one
head.

`:big` is the model of 552M, which is not released: FID 2.4 and 4.3, IS 174.9, PSNR
24.7, SSIM 0.71 (paper, table 5). Its network is not published; this one is as wide as
the big inpainting model and has multiples that bring it to 552.0M with the first stage.
"""

from configs import data, second_stages

BIG_UNET = dict(
    width=256, width_mults=(1, 3, 4, 4), attn_factors=(8,), res_resample=True
)


def get_config(arg: str = ""):
    choice, arg = second_stages.choose(arg, "big")
    return second_stages.recipe(
        arg,
        task="super_resolution",
        first_stage="vq_f4",
        unet=BIG_UNET if choice == "big" else second_stages.SR_UNET,
        learning_rate=6.4e-5,
        batch_size=64,
        num_steps=860_000,
        betas=(0.0015, 0.0155),
        sample=dict(steps=100, eta=1.0),
        data=data.IMAGENET_SR,
    )
