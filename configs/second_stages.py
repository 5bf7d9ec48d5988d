"""What the configs of the published second stages share: one recipe (shared file).

Rombach et al. 2022, tables 12 to 15, and the released configs; where the two disagree,
the release counts and the config's docstring says so. Resolutions of attention are
written as downsampling factors of the latents. A learning rate is the release's base
rate times the batch of one device. Two blocks a level, 1000 timesteps, AdamW with
weight decay 0.01, EMA 0.9999. FIRST_STAGE in a command is a weights directory, trained
with the config of that name or converted.
"""

from ml_collections import ConfigDict

from configs import common, data, first_stages

# Blocks of the networks that several tables repeat.
F4_UNET = dict(width_mults=(1, 2, 3, 4), attn_factors=(8, 4, 2))
SR_UNET = dict(width=160, width_mults=(1, 2, 2, 4), attn_factors=(8,))
TEXT_F4_UNET = dict(width=192, width_mults=(1, 2, 3, 5), attn_factors=(8, 4, 2))
SMALL_UNET = dict(width_mults=(1, 2, 4), attn_factors=(4, 2, 1))

# The compression studies, tables 13 and 14: f -> first stage, width, multiples,
# attention factors. LDM-4 differs between the two in its multiples.
STUDY = {
    1: ("identity", 192, (1, 1, 2, 2, 4, 4), (32, 16, 8)),
    2: ("vq_f2", 192, (1, 2, 2, 4, 4), (16, 8, 4)),
    4: ("vq_f4", 192, (1, 2, 3, 5), (8, 4, 2)),
    8: ("vq_f8", 256, (1, 2, 4), (4, 2, 1)),
    16: ("vq_f16", 256, (1, 2, 4), (4, 2, 1)),
    32: ("vq_f32", 256, (1, 2, 4), (4, 2, 1)),
}
# Text towers: config.text besides kind and path.
CLIP_VIT_L = dict(network=dict(width=768, depth=12, num_heads=12))
CLIP_VIT_H = dict(
    pad="zero",
    network=dict(
        width=1024,
        depth=24,
        num_heads=16,
        activation="gelu",
        output_layer="penultimate",
    ),
)


def choose(arg: str, *valid: str) -> tuple[str, str]:
    """(choice, rest): "big,smoke" -> ("big", "smoke"); a choice of "" is none.

    Raises ValueError for other words than `valid` and "smoke", and for two choices.
    """
    words = [word for word in arg.split(",") if word]
    chosen = [word for word in words if word in valid]
    rest = [word for word in words if word not in valid]
    if len(chosen) > 1 or any(word != "smoke" for word in rest):
        names = ", ".join(repr(word) for word in (*valid, "smoke"))
        raise ValueError(
            f"config argument {arg!r} is unknown; valid: {names}, joined by a comma"
        )
    return "".join(chosen), "".join(rest[:1])


def recipe(
    arg: str,
    *,
    first_stage: str,
    unet: dict,
    learning_rate: float,
    batch_size: int,
    num_steps: int,
    betas: tuple[float, float] = (0.0015, 0.0195),
    loss: str = "l2",
    drop_rate: float = 0.0,
    warmup_steps: int = 0,
    scale: float = 1.0,
    sample: dict | None = None,
    **changes,
) -> ConfigDict:
    """The config of a published second stage; `arg` as `common.finish`.

    first_stage: a name of `first_stages.NETWORKS`, or "identity". scale: of the
    latents; 0 measures it. betas: linear_start, linear_end. changes: whole values of
    the config, or tables of some values of a section.
    """
    config = common.diffusion()
    config.data.update(dict(source="folder", size_px=256))
    config.first_stage.scale = scale
    if first_stage == "identity":
        config.first_stage.path = "identity"
    else:
        config.first_stage.network = first_stages.network(first_stage)
    heads = dict(head_channels=0) if "num_heads" in unet else {}
    config.unet.update({**unet, **heads})
    start, end = betas
    config.process.update(dict(linear_start=start, linear_end=end))
    config.loss.update(dict(loss=loss, drop_rate=drop_rate))
    config.optimizer.update(
        dict(learning_rate=learning_rate, warmup_steps=warmup_steps)
    )
    config.train.update(dict(batch_size=batch_size, num_steps=num_steps))
    config.sample.update(sample or {})
    for name, value in changes.items():
        if isinstance(value, dict):
            config[name].update(value)
        else:
            config[name] = value
    return common.finish(config, arg)


def unconditional_ldm4(arg: str, *, batch_size: int, **row) -> ConfigDict:
    """Faces and bedrooms, table 12: one network, a learning rate of 2e-6 x batch."""
    return recipe(
        arg,
        first_stage="vq_f4",
        unet=dict(width=224, **F4_UNET),
        learning_rate=2e-6 * batch_size,
        batch_size=batch_size,
        **row,
    )


def layout(arg: str, *, unet: dict, **row) -> ConfigDict:
    """Layout to image, table 15: boxes as tokens, read by 16 layers of transformer."""
    return recipe(
        arg,
        task="layout",
        unet=dict(num_heads=1, context_width=512, **unet),
        text=dict(width=512, depth=16, max_length=92, vocab_size=8192),
        learning_rate=4.8e-5,
        betas=(0.0015, 0.0205),
        loss="l1",
        **row,
    )


def class_study(arg: str, f: int, **changes) -> ConfigDict:
    """A row of table 13: ImageNet by class, one head, 2M iterations."""
    first_stage, width, mults, factors = STUDY[f]
    unet = dict(
        width=width,
        width_mults=mults,
        attn_factors=factors,
        num_heads=1,
        context_width=512,
    )
    row = dict(
        task="class",
        num_classes=1000,
        null_class=False,
        first_stage=first_stage,
        unet=unet,
        num_steps=2_000_000,
        data=data.IMAGENET,
        sample=dict(steps=100),
    )
    return recipe(arg, **{**row, **changes})


def stable_diffusion(
    arg: str, *, unet: dict, text: dict, size_px: int, num_steps: int, **changes
) -> ConfigDict:
    """A Stable Diffusion: four levels, a frozen CLIP tower whose weights are given."""
    shape = dict(width=320, width_mults=(1, 2, 4, 4), attn_factors=(4, 2, 1))
    return recipe(
        arg,
        task="text",
        first_stage="kl_f8",
        scale=0.18215,
        unet={**shape, **unet},
        text=ConfigDict(dict(kind="clip", path="", **text)),
        data={**data.CAPTIONS, "size_px": size_px},
        learning_rate=1e-4,
        warmup_steps=10_000,
        batch_size=2048,
        num_steps=num_steps,
        betas=(0.00085, 0.012),
        drop_rate=0.1,
        sample=dict(steps=50, guidance=7.5),
        **changes,
    )
