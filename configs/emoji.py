"""Embedded emoji at 64 px, text to image: LDM-8 on the shipped first stage.

    python train.py --config=configs/emoji.py --workdir=runs/emoji
    python sample.py --model=runs/emoji --prompt="red heart"

With --config.data.path=DIR it trains on a folder of pictures and captions instead.
Trains UNet and text transformer from random weights in a quarter of an hour on two
CPU cores, as a rectified flow: the best of the recipes of benchmarks/recipes.py
(README). The shipped `emoji` is the same network on the discrete process with v, 8,000
steps, the first 3,999 on a cosine that was to end at 12,000: 96.3 % prompt accuracy
(measured; `python -m lDM_jax.tools.evaluate prompts --model emoji`).
"""

from configs import common


def get_config(arg: str = ""):
    return common.finish(flow(base("text")), arg)


def flow(config):
    """config as a rectified flow, the best of the recipes in the README's table."""
    config.process.kind = "rectified_flow"
    config.sample.sampler = "euler"
    return config


def base(task: str):
    """The same network and schedule for another task of the embedded data."""
    config = common.diffusion()
    config.task = task
    config.data.update(dict(source="emoji", size_px=64, cache_latents=True))
    config.first_stage.path = "emoji_kl_f8"
    config.unet.update(
        dict(
            width=64,
            width_mults=(1, 2),
            num_res_blocks=2,
            attn_factors=(2,),
            num_heads=4,
            head_channels=0,
            context_width=128,
            num_groups=16,
        )
    )
    config.text.update(
        dict(
            width=128,
            depth=2,
            num_heads=4,
            head_width=32,
            max_length=24,
            token_std=1.0,
        )
    )
    config.process.update(dict(prediction="v"))
    config.loss.update(dict(drop_rate=0.1))
    config.optimizer.update(
        dict(
            learning_rate=6e-4,
            schedule="cosine",
            warmup_steps=100,
            clip_norm=1.0,
            b2=0.99,
        )
    )
    config.train.update(
        dict(
            batch_size=32,
            num_steps=2400,
            ema_decay=0.998,
            log_every_steps=20,
            preview_every_steps=1200,
            eval_every_steps=1200,
            checkpoint_every_steps=400,
        )
    )
    config.sample.update(dict(steps=50, guidance=3.0))
    return config
