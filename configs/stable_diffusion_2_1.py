"""Stable Diffusion 2.1: text to image at 768 px (865.911M parameters in the UNet).

    python train.py --config=configs/stable_diffusion_2_1.py --workdir=runs/sd21 \\
        --config.data.path=DIR --config.first_stage.path=FIRST_STAGE \\
        --config.text.path=TEXT

FIRST_STAGE: configs/kl_f8.py; TEXT: the frozen tower of OpenCLIP ViT-H/14, read before
its last block; both are parts of a converted model. Predicts v. Batch 2048, learning
rate 1e-4 after 10,000 steps of warm-up, 55k + 155k iterations from version 2.0
(--config.init_from.path), one caption in ten dropped (model card, which tabulates no
result). The paper has no such model.
"""

from configs import second_stages


def get_config(arg: str = ""):
    return second_stages.stable_diffusion(
        arg,
        unet=dict(head_channels=64, context_width=1024, linear_projections=True),
        text=second_stages.CLIP_VIT_H,
        size_px=768,
        num_steps=210_000,
        process=dict(prediction="v"),
    )
