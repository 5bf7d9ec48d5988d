"""What all configs share: defaults of both stages, and the `:smoke` size.

A section is exactly the keyword arguments of a constructor (see
lDM_jax/from_config/networks.py). Configs are locked: an unknown key raises.
"""

from ml_collections import ConfigDict


def autoencoder() -> ConfigDict:
    """Defaults of stage 1 (Rombach et al. 2022, appendix G)."""
    config = _shared(stage="autoencoder")
    config.autoencoder = first_stage_network()
    config.loss = dict(
        pixel_loss="l1",
        perceptual_weight=1.0,
        lpips_weights="",
        kl_weight=1e-6,
        codebook_weight=1.0,
        codebook_decay=0.0,
        restart_below=0.0,
    )
    config.discriminator = dict(
        width=64,
        num_layers=3,
        norm="batch",
        dtype="float32",
        start_steps=50_001,
        weight=0.5,
        factor=1.0,
        loss="hinge",
    )
    config.optimizer.update(dict(name="adam", b1=0.5, b2=0.9, weight_decay=0.0))
    return config


def first_stage_network(**changes) -> ConfigDict:
    """An autoencoder section; the defaults are the released kl-f4's network."""
    section = dict(
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
    return ConfigDict({**section, **changes})


def diffusion() -> ConfigDict:
    """Defaults of stage 2 (Rombach et al. 2022, tables 12 to 15)."""
    config = _shared(stage="diffusion")
    config.task = "unconditional"
    config.num_classes = 0
    config.null_class = True
    config.first_stage = dict(path="", scale=0.0, network=ConfigDict())
    config.unet = dict(
        width=224,
        width_mults=(1, 2, 3, 4),
        num_res_blocks=2,
        attn_factors=(8, 4, 2),
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
    config.text = dict(
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
    # within_boxes: an object's tokens are attended to in its box alone
    config.layout = dict(within_boxes=False)
    config.rescaler = dict(num_stages=2, width=3)
    config.low_res = dict(kind="bicubic", factor=4, fold=1)
    config.masks = dict(kind="mixed")
    config.process = dict(
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
    config.loss = dict(
        loss="l2",
        weighting="uniform",
        min_snr_gamma=0.0,
        log_variance=False,
        drop_rate=0.0,
    )
    config.data.cache_latents = False
    config.data.cache_draws = 0  # of what is random, where latents are cached: 0 is 1
    config.train.update(
        dict(
            ema_stds=(),
            ema_snapshot_every_steps=0,
            fd_every_steps=0,
            fd_images=1000,
            fd_extractor="",
        )
    )
    config.sample = dict(
        sampler="ddim", steps=50, spacing="leading", guidance=1.0, eta=0.0
    )
    return config


def as_classifier(config: ConfigDict) -> ConfigDict:
    """A diffusion config as that of a classifier of the same noisy latents."""
    config.update(dict(stage="classifier", task="class"))
    config.unet.context_width = 0
    for section in ("text", "layout", "rescaler", "low_res", "masks", "sample", "loss"):
        del config[section]
    for name in ("ema_stds", "ema_snapshot_every_steps"):
        del config.train[name]
    for name in ("fd_every_steps", "fd_images", "fd_extractor"):
        del config.train[name]
    return config


def _shared(*, stage: str) -> ConfigDict:
    config = ConfigDict()
    config.stage = stage
    config.seed = 0
    config.data = dict(
        source="emoji",
        path="",
        data_dir="",
        about="",
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
        scenes=ConfigDict(),
    )
    config.optimizer = dict(
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
    config.init_from = dict(path="", only=())
    config.mesh = dict(data=-1, fsdp=1, tensor=1)
    config.train = dict(
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
    return config


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
