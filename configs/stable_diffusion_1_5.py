"""Stable Diffusion 1.5: text to image at 512 px (859.521M parameters in the UNet).

    python train.py --config=configs/stable_diffusion_1_5.py --workdir=runs/sd15 \\
        --config.data.path=DIR --config.first_stage.path=FIRST_STAGE \\
        --config.text.path=TEXT

FIRST_STAGE: configs/kl_f8.py; TEXT: the frozen tower of CLIP ViT-L/14; both are parts
of a converted model. Batch 2048, learning rate 1e-4 after 10,000 steps of warm-up,
595k iterations from version 1.2 (--config.init_from.path), one caption in ten dropped
(model card, which tabulates no result). The paper has no such model.
"""

from configs import second_stages


def get_config(arg: str = ""):
    return second_stages.stable_diffusion(
        arg,
        unet=dict(num_heads=8, context_width=768),
        text=second_stages.CLIP_VIT_L,
        size_px=512,
        num_steps=595_000,
    )
