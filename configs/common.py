"""What all configs share: defaults of every section, shared tables, the `:smoke` size.

A config is the defaults of its stage with the changes that its file lists, so that its
recipe is read in two files: its own and this one. A section is exactly the keyword
arguments of a constructor (see lDM_jax/from_config/networks.py). Configs are locked: an
unknown key raises.

Reading order: the sections, the stages made of them, the published first stages and
data sets, the recipe of the embedded data, then the arguments of a config.
"""

from ml_collections import ConfigDict

DATA = dict(
    source="emoji",
    path="",
    data_dir="",
    about="",  # ends the error of data that cannot be found
    size_px=256,
    crop="center",
    resize_px=0,
    filter="bicubic",
    flip=0.0,
    background="white",
    min_px=16,
    max_bad_share=0.05,
    num_workers=0,
    limit=0,
    classes=(),  # noted by training: the names of the data's classes
    scenes={},
)
OPTIMIZER = dict(
    name="adamw",
    learning_rate=1e-4,
    schedule="constant",
    warmup_steps=0,
    decay_from_steps=0,
    b1=0.9,
    b2=0.999,
    eps=1e-8,
    weight_decay=0.01,
    decay_mask="",
    clip_norm=0.0,
)
TRAIN = dict(
    batch_size=48,
    num_steps=400_000,
    accumulate_steps=1,
    ema_decay=0.9999,
    ema_std=0.0,
    max_skipped_steps=10,
    skip_spike_sigmas=0.0,
    log_every_steps=100,
    preview_every_steps=5000,
    eval_every_steps=5000,
    checkpoint_every_steps=5000,
    keep_checkpoints=2,
    keep_every_steps=0,
    keep_best=0,
    best_metric="loss",
    best_mode="min",
    wandb="",
)
TRAIN_DIFFUSION = dict(
    ema_stds=(),
    ema_snapshot_every_steps=0,
    fd_every_steps=0,
    fd_images=1000,
    fd_extractor="",
)
FIRST_STAGE = dict(  # the released kl_f4
    width=128,
    width_mults=(1, 2, 4),
    num_res_blocks=2,
    z_channels=3,
    latent_channels=3,
    num_codes=0,
    attn_factors=(),
    mid_attn=True,
    dropout=0.0,
    num_groups=32,
    legacy_beta=False,
    dtype="float32",
)
FIRST_STAGE_LOSS = dict(
    pixel_loss="l1",
    perceptual_weight=1.0,
    lpips_weights="",
    kl_weight=1e-6,
    codebook_weight=1.0,
    codebook_decay=0.0,
    restart_below=0.0,
)
DISCRIMINATOR = dict(
    width=64,
    num_layers=3,
    norm="batch",
    dtype="float32",
    start_steps=50_001,
    weight=0.5,
    factor=1.0,
    loss="hinge",
)
UNET = dict(
    width=224,
    width_mults=(1, 2, 3, 4),
    num_res_blocks=2,
    attn_factors=(8, 4, 2),  # resolutions with attention, as downsampling factors
    num_heads=0,
    head_channels=32,
    context_width=0,
    transformer_depth=1,
    linear_projections=False,
    vector_width=0,
    scale_shift=False,
    res_resample=False,
    qk_norm=False,
    dropout=0.0,
    num_groups=32,
    remat=False,
    remat_policy="nothing",
    dtype="float32",
)
TEXT = dict(
    kind="bert",
    width=512,
    depth=16,
    num_heads=8,
    head_width=64,
    max_length=77,
    vocab_size=30_522,
    token_std=0.02,
    position_std=0.02,
)
PROCESS = dict(
    kind="discrete",
    num_timesteps=1000,
    schedule="linear",
    linear_start=0.0015,
    linear_end=0.0195,
    prediction="eps",
    zero_terminal_snr=False,
    # of kind "rectified_flow"
    time_distribution="logit_normal",
    logit_mean=0.0,
    logit_std=1.0,
    # of kind "edm"
    sigma_data=0.5,
    sigma_min=0.002,
    sigma_max=80.0,
    p_mean=-0.4,
    p_std=1.0,
)
DIFFUSION_LOSS = dict(
    loss="l2",
    weighting="uniform",
    min_snr_gamma=0.0,
    log_variance=False,
    drop_rate=0.0,
)
SAMPLE = dict(sampler="ddim", steps=50, spacing="leading", guidance=1.0, eta=0.0)


def autoencoder(**changes) -> ConfigDict:
    """Stage 1 (Rombach et al. 2022, appendix G) with changes, see `change`."""
    config = _shared(stage="autoencoder")
    config.autoencoder = FIRST_STAGE
    config.loss = FIRST_STAGE_LOSS
    config.discriminator = DISCRIMINATOR
    config.optimizer.update(dict(name="adam", b1=0.5, b2=0.9, weight_decay=0.0))
    return change(config, changes)


def diffusion(**changes) -> ConfigDict:
    """Stage 2 (Rombach et al. 2022, tables 12 to 15) with changes, see `change`."""
    config = _shared(stage="diffusion")
    config.task = "unconditional"
    config.num_classes = 0
    config.null_class = True
    config.first_stage = dict(path="", scale=0.0, network={})  # scale 0: measured
    config.unet = UNET
    config.text = TEXT
    # within_boxes: an object's tokens are attended to in its box alone
    config.layout = dict(within_boxes=False)
    config.rescaler = dict(num_stages=2, width=3)
    config.low_res = dict(kind="bicubic", factor=4, fold=1)
    config.masks = dict(kind="mixed")
    config.process = PROCESS
    config.loss = DIFFUSION_LOSS
    config.data.cache_latents = False
    config.data.cache_draws = 0  # of what is random, where latents are cached: 0 is 1
    config.train.update(TRAIN_DIFFUSION)
    config.sample = SAMPLE
    return change(config, changes)


def as_classifier(config: ConfigDict) -> ConfigDict:
    """A diffusion config as that of a classifier of the same noisy latents."""
    config.update(dict(stage="classifier", task="class"))
    config.unet.context_width = 0
    for section in ("text", "layout", "rescaler", "low_res", "masks", "sample", "loss"):
        del config[section]
    for name in TRAIN_DIFFUSION:
        del config.train[name]
    return config


def change(config: ConfigDict, changes: dict) -> ConfigDict:
    """Set values of a config, in place; a dict changes some values of a section."""
    for name, value in changes.items():
        if isinstance(value, dict):
            config[name].update(value)
        else:
            config[name] = value
    return config


def _shared(*, stage: str) -> ConfigDict:
    config = ConfigDict()
    config.stage = stage
    config.seed = 0
    config.data = DATA
    config.optimizer = OPTIMIZER
    config.init_from = dict(path="", only=())
    config.mesh = dict(data=-1, fsdp=1, tensor=1)
    config.train = TRAIN
    return config


# The published first stages (Rombach et al. 2022, table 8 and the released configs).
_VQ_F8 = dict(
    width_mults=(1, 2, 2, 4),
    z_channels=4,
    latent_channels=4,
    attn_factors=(8,),
    legacy_beta=True,
)
_F16 = dict(width_mults=(1, 1, 2, 2, 4), attn_factors=(16,))
_F32 = dict(width_mults=(1, 1, 2, 2, 4, 4), attn_factors=(16, 32))
FIRST_STAGES = {
    "kl_f2": dict(width_mults=(1, 2), z_channels=2, latent_channels=2),
    "kl_f4": dict(),
    "kl_f8": dict(width_mults=(1, 2, 4, 4), z_channels=4, latent_channels=4),
    "kl_f16": dict(z_channels=16, latent_channels=16, **_F16),
    "kl_f32": dict(z_channels=64, latent_channels=64, **_F32),
    "vq_f2": dict(
        width_mults=(1, 2),
        z_channels=2,
        latent_channels=2,
        num_codes=2048,
        legacy_beta=True,
    ),
    "vq_f4": dict(num_codes=8192, legacy_beta=True),
    "vq_f4_noattn": dict(num_codes=8192, mid_attn=False, legacy_beta=True),
    "vq_f8": dict(num_codes=16384, **_VQ_F8),
    "vq_f8_n256": dict(num_codes=256, **_VQ_F8),
    "vq_f16": dict(
        z_channels=8, latent_channels=8, num_codes=16384, legacy_beta=True, **_F16
    ),
    "vq_f32": dict(
        z_channels=16, latent_channels=16, num_codes=16384, legacy_beta=True, **_F32
    ),
}


def first_stage_network(name: str = "kl_f4", **changes) -> ConfigDict:
    """The autoencoder section of a published first stage, with changes."""
    return ConfigDict({**FIRST_STAGE, **FIRST_STAGES[name], **changes})


# Published data sets that several configs train on, cut as the original's loaders cut
# them: taming-transformers resizes the shorter side by linear interpolation without
# antialiasing and mirrors nothing. Its loader of OpenImages was not released: of it the
# extent before the crop is known.
IMAGENET = dict(
    source="folder",
    about="ImageNet (image-net.org, ILSVRC2012): a folder with train/ and val/, each "
    "with a sub-folder a class; or source 'tfds' and path 'imagenet2012'",
    crop="random",
    filter="linear",
)
OPENIMAGES = dict(
    source="folder",
    about="OpenImages (storage.googleapis.com/openimages/web): a folder with its "
    "pictures",
    crop="random",
    resize_px=384,
    filter="linear",
)
CAPTIONS = dict(
    source="folder",
    about="pictures with captions: photo.jpg beside photo.txt, or a metadata.jsonl; "
    "tar shards become source 'array_record' by lDM_jax.tools.convert_webdataset",
)

# The recipe of the tasks on the embedded emoji, for minutes on a CPU.
EMOJI = dict(
    data=dict(size_px=64, cache_latents=True),
    first_stage=dict(path="emoji_kl_f8"),
    unet=dict(
        width=64,
        width_mults=(1, 2),
        attn_factors=(2,),
        num_heads=4,
        head_channels=0,
        context_width=128,
        num_groups=16,
    ),
    text=dict(
        width=128, depth=2, num_heads=4, head_width=32, max_length=24, token_std=1.0
    ),
    process=dict(prediction="v"),
    loss=dict(drop_rate=0.1),
    optimizer=dict(
        learning_rate=6e-4, schedule="cosine", warmup_steps=100, clip_norm=1.0, b2=0.99
    ),
    train=dict(
        batch_size=32,
        num_steps=2400,
        ema_decay=0.998,
        log_every_steps=20,
        preview_every_steps=1200,
        eval_every_steps=1200,
        checkpoint_every_steps=400,
    ),
    sample=dict(guidance=3.0),
)


def emoji(task: str, **changes) -> ConfigDict:
    """A task on the embedded emoji: the recipe `EMOJI` with changes."""
    return change(diffusion(task=task, **EMOJI), changes)


def scenes(task: str, **changes) -> ConfigDict:
    """A task on scenes of two to four emoji: `EMOJI`, one level deeper, with changes.

    The first stage is that of configs/emoji_scenes_autoencoder.py (f = 4, latents 16 x
    16 x 4).
    """
    network = first_stage_network(
        width=16, num_res_blocks=1, z_channels=4, latent_channels=4, num_groups=8
    )
    config = emoji(
        task,
        data=dict(source="scenes", scenes=dict(num_scenes=12_000, max_objects=4)),
        first_stage=dict(path="emoji_scenes_kl_f4", network=network),
        unet=dict(
            width=48, width_mults=(1, 2, 2), num_res_blocks=1, attn_factors=(2, 4)
        ),
    )
    return change(config, changes)


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


def finish(config: ConfigDict, arg: str) -> ConfigDict:
    """Apply the config argument ("" or "smoke"), lock, return.

    Raises ValueError for another argument, naming the valid ones.
    """
    if arg == "smoke":
        _shrink(config)
    elif arg:
        raise ValueError(f"config argument {arg!r} is unknown; valid: 'smoke'")
    return config.lock()


def _shrink(config: ConfigDict) -> None:
    """Twenty steps on a CPU in a minute: same structure, toy widths, embedded data."""
    source = "scenes" if config.data.source == "scenes" else "emoji"
    source = "scenes" if config.get("task") in ("layout", "semantic") else source
    config.data.update(dict(source=source, path="", size_px=32, num_workers=0))
    config.data.update(dict(crop="center", resize_px=0))
    config.data.limit = 64
    config.optimizer.warmup_steps = 0
    config.train.update(
        dict(
            batch_size=4,
            num_steps=20,
            log_every_steps=5,
            preview_every_steps=20,
            eval_every_steps=20,
            checkpoint_every_steps=10,
        )
    )
    if config.stage == "autoencoder":
        config.autoencoder.update(dict(width=8, num_res_blocks=1, num_groups=4))
        config.discriminator.update(dict(width=8, num_layers=1, start_steps=10))
        config.loss.perceptual_weight = 0.0
        return
    config.first_stage.path = "random"
    heads = dict(num_heads=2, head_channels=0)
    config.unet.update(dict(width=8, num_res_blocks=1, num_groups=4, **heads))
    config.unet.transformer_depth = 1
    config.unet.width_mults = config.unet.width_mults[:4]
    if config.unet.context_width:
        config.unet.context_width = 16
        toy = dict(width=16, depth=1, num_heads=2)
        if config.text.kind == "clip":
            config.text.path = "random"
            config.text.network.update(toy)
        else:
            config.text.update(dict(**toy, head_width=8))
    if config.stage == "diffusion":
        config.rescaler.num_stages = 2
        config.sample.steps = 4
