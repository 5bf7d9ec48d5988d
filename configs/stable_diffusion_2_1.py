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

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str = ""):
    config = common.diffusion(
        task="text",
        data=dict(size_px=768, **common.CAPTIONS),
        first_stage=dict(scale=0.18215, network=common.first_stage_network("kl_f8")),
        unet=dict(
            width=320,
            width_mults=(1, 2, 4, 4),
            attn_factors=(4, 2, 1),
            head_channels=64,
            context_width=1024,
            linear_projections=True,
        ),
        # a ConfigDict takes the place of the default section
        text=ConfigDict(
            dict(
                kind="clip",
                path="",
                pad="zero",
                network=dict(
                    width=1024,
                    depth=24,
                    num_heads=16,
                    activation="gelu",
                    output_layer="penultimate",
                ),
            )
        ),
        process=dict(linear_start=0.00085, linear_end=0.012, prediction="v"),
        loss=dict(drop_rate=0.1),
        optimizer=dict(learning_rate=1e-4, warmup_steps=10_000),
        train=dict(batch_size=2048, num_steps=210_000),
        sample=dict(guidance=7.5),
    )
    return common.finish(config, arg)
