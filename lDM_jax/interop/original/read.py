"""Checkpoints of the original program -> our weights directories.

Owns what lies where in the state dict of a first stage or of a whole `LatentDiffusion`,
and the choice between trained and averaged weights. The YAML's meaning is in
`first_stage_settings` and `original.settings`, the names within a network in `names`
and `names_text`. A table over the whole file says for every entry where it
goes; `convert` then refuses what is missing, unexpected or misshapen.

Reading order: `read`, first stages, second stages, the tables, the schedule.
"""

import functools
from collections.abc import Callable, Mapping

import numpy as np

from lDM_jax.core.errors import UserError
from lDM_jax.diffusion.process import make_betas
from lDM_jax.from_config import networks
from lDM_jax.interop import first_stage_settings, names, names_text, validate
from lDM_jax.interop.converted import Converted, read_all, split
from lDM_jax.interop.original import settings as original_settings
from lDM_jax.interop.original.settings import SecondStage
from lDM_jax.models.bert_text import TextTransformer
from lDM_jax.models.clip_text import ClipText
from lDM_jax.weights import name_maps
from lDM_jax.weights.name_maps import Entry, Names

UNET_PREFIX = "model.diffusion_model."
FIRST_STAGE_PREFIX = "first_stage_model."
COND_PREFIX = "cond_stage_model."
# Paths of our parameters begin with the directory they go to.
UNET_ROOT = ("", "unet", "params")
COND_ROOT = ("", "conditioner", "params")
# Entries without a use, by the beginning of their names: what LitEma and DDIM keep
# besides, and the first stage's own training loss and averages.
TOLERATED = ("model_ema.decay", "model_ema.num_updates", "ddim_sigmas", "ddim_alphas")
TOLERATED += ("ddim_sqrt_one_minus_alphas", f"{FIRST_STAGE_PREFIX}loss.")
TOLERATED += (f"{FIRST_STAGE_PREFIX}model_ema.", f"{COND_PREFIX}loss.")
SECOND_STAGES = ("LatentDiffusion", "Layout2ImgDiffusion")


def read(
    target: str,
    params: Mapping,
    state_dict: name_maps.StateDict,
    *,
    weights: str = "",
    heads: str = "auto",
    scale: float | None = None,
) -> Converted:
    """The model that a YAML describes by its `target` and `params`.

    weights: "ema", "raw", or "" for the averages where the file has them. heads: see
    `original.settings.unet`. scale: the latent scale, where the user knows it.
    """
    reader = validate.choice({"model.target": target}, "model.target", READERS, "")
    model = reader(params, state_dict, weights=weights, heads=heads, scale=scale)
    model.config["converted_from"] = target
    return model


def averaged(state_dict: name_maps.StateDict, weights: str, averages: Names) -> bool:
    """Whether to take the averages. UserError when they are asked for and absent."""
    have = bool(averages.keys() & state_dict.keys())
    if weights == "ema" and not have:
        raise UserError(
            "averaged weights are asked for, but the checkpoint has no model_ema.* "
            "entries; --weights raw takes the others"
        )
    return have and weights != "raw"


def _first_stage(params, state_dict, *, is_kl: bool, weights: str, scale, heads):
    """`AutoencoderKL`, or `VQModel` whose EMA is taken where it has one (`use_ema`)."""
    del heads
    section = first_stage_settings.original_first_stage(params, is_kl=is_kl)
    table = names.autoencoder_names(networks.autoencoder(section))
    averages = name_maps.ema_names(table, root="")
    if params.get("use_ema") and weights != "raw":
        weights = "ema"
    beside = ("model_ema.",)
    if averaged(state_dict, weights, averages):
        table, beside = name_maps.unused(table) | averages, names.EMA_PREFIXES
    if scale is None and "scale_factor" in params:
        scale = validate.number(params, "scale_factor")
    config = first_stage_settings.first_stage_config(
        section, size_px=params["ddconfig"]["resolution"], scale=scale or 0.0
    )
    rooted = name_maps.prefixed(table, "", ("", "params"))
    arrays, report = read_all(state_dict, rooted, names.LOSS_PREFIXES + beside)
    return Converted(split(arrays, {"": config}), report)


def _second_stage(params, state_dict, *, weights: str, heads: str, scale):
    """`LatentDiffusion`, with its first stage and its conditioner."""
    stage = original_settings.second_stage(params, heads=heads)
    unet = unet_table(stage)
    raw = name_maps.prefixed(unet, UNET_PREFIX)
    averages = name_maps.ema_names(unet)
    ema = averaged(state_dict, weights, averages)
    unet = name_maps.unused(raw) | averages if ema else raw | name_maps.unused(averages)
    table = unet | first_stage_table(stage) | CONDITIONERS[stage.route](stage)
    steps = stage.config["process"]["num_timesteps"]
    table |= {name: Entry(None, "same", (steps,)) for name in (*SCHEDULE, *A_TIME)}
    table["scale_factor"] = Entry(None, "same", ())
    unsaid = (*SCHEDULE, "scale_factor")
    arrays, report = read_all(state_dict, table, TOLERATED, unsaid=unsaid)
    report.append(check_schedule(stage.config["process"], state_dict))
    scale, source = latent_scale(stage, state_dict, scale)
    stage.config["first_stage"]["scale"] = scale
    configs = {"": stage.config}
    if stage.first_stage:
        configs["first_stage"] = stage.first_stage | {"latent_scale": scale}
    if stage.text:
        configs["text"] = stage.text
    report.append(f"weights: {'averaged (model_ema.*)' if ema else 'as trained (raw)'}")
    report.append(f"latent scale: {scale:.8g} ({source})")
    return Converted(split(arrays, configs), report + stage.notes)


READERS: dict[str, Callable[..., Converted]] = {
    target: functools.partial(_first_stage, is_kl=is_kl)
    for target, is_kl in original_settings.FIRST_STAGES.items()
} | {f"ldm.models.diffusion.ddpm.{name}": _second_stage for name in SECOND_STAGES}


def latent_scale(
    stage: SecondStage, state_dict: name_maps.StateDict, chosen: float | None
) -> tuple[float, str]:
    """(scale, where it is from): the flag, the buffer, the YAML; else 1."""
    if chosen is not None:
        return chosen, "--scale"
    stored = None
    if "scale_factor" in state_dict:
        stored = float(np.asarray(state_dict["scale_factor"]))
        if not 0 < stored < float("inf"):
            raise UserError(f"the checkpoint's scale_factor is {stored}: give --scale")
    if stage.by_std and stored is None:
        raise UserError(
            "scale_by_std: the latent scale belongs to the checkpoint, which has no "
            "scale_factor: give --scale"
        )
    if stage.by_std or (stored is not None and stage.scale is None):
        return stored, "scale_factor of the checkpoint"
    if stored is not None and abs(stored / stage.scale - 1) > 1e-3:
        raise UserError(
            f"scale_factor is {stored:.8g} in the checkpoint and {stage.scale:.8g} in "
            "the YAML: give --scale"
        )
    if stage.scale is None:
        return 1.0, "the YAML and the checkpoint say nothing"
    return stage.scale, "scale_factor of the YAML"


# Tables: foreign names -> where our parameters go.
def unet_table(stage: SecondStage) -> Names:
    """Names below UNET_PREFIX. A `label_emb` is a conditioner here, a UNet's there."""
    unet = networks.unet(stage.config["unet"], out_channels=stage.out_channels)
    own = names.unet_names(unet, stage.in_channels)
    table = name_maps.prefixed(own, "", UNET_ROOT)
    if stage.route == "label_emb":
        rows, width = stage.config["num_classes"], 4 * stage.config["unet"]["width"]
        table["label_emb.weight"] = class_entry(rows, width)
    return table


def class_entry(rows: int, width: int) -> Entry:
    """The table of a class embedding."""
    path = (*COND_ROOT, "encoders_class", "embed", "embedding")
    return Entry(path, "same", (rows, width), (rows, width))


def first_stage_table(stage: SecondStage, prefix: str = FIRST_STAGE_PREFIX) -> Names:
    """The first stage's names below a prefix; empty for pixels."""
    if stage.first_stage is None:
        return {}
    network = networks.autoencoder(stage.first_stage["autoencoder"])
    table = names.autoencoder_names(network)
    return name_maps.prefixed(table, prefix, ("first_stage", "params"))


def _class(stage: SecondStage) -> Names:
    rows = stage.config["num_classes"] + stage.config["null_class"]
    width = stage.config["unet"]["context_width"]
    return {f"{COND_PREFIX}embedding.weight": class_entry(rows, width)}


def _tokens(stage: SecondStage) -> Names:
    section = {k: v for k, v in stage.config["text"].items() if k != "kind"}
    network = networks.construct(TextTransformer, section, "text")
    root = (*COND_ROOT, f"encoders_{stage.route}", "transformer")
    return name_maps.prefixed(names_text.text_names(network), COND_PREFIX, root)


def _rescaler(stage: SecondStage) -> Names:
    width, labels = stage.config["rescaler"]["width"], stage.config["num_classes"]
    path = (*COND_ROOT, "encoders_rescaler", "mapper", "kernel")
    entry = Entry(path, "conv1", (width, labels, 1, 1), (labels, width))
    return {f"{COND_PREFIX}channel_mapper.weight": entry}


def _same_first_stage(stage: SecondStage) -> Names:
    """The first stage once more, as the conditioner: the same object, stored twice."""
    return name_maps.unused(first_stage_table(stage, COND_PREFIX))


def _tower(make: Callable[..., Names], prefix: str) -> Callable[[SecondStage], Names]:
    def table(stage: SecondStage) -> Names:
        network = networks.construct(ClipText, stage.text["text"]["network"], "text")
        return name_maps.prefixed(make(network), prefix, ("text", "params"))

    return table


CONDITIONERS: dict[str, Callable[[SecondStage], Names]] = {
    **dict.fromkeys(("none", "given", "label_emb"), lambda stage: {}),
    "class": _class,
    "text": _tokens,
    "layout": _tokens,
    "rescaler": _rescaler,
    "first_stage": _same_first_stage,
    "clip": _tower(names_text.clip_names, names_text.SD1_PREFIX),
    "openclip": _tower(names_text.openclip_names, names_text.SD2_PREFIX),
}

# The schedule in a checkpoint: f32 tables over all times.
SCHEDULE = (
    "betas",
    "alphas_cumprod",
    "alphas_cumprod_prev",
    "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod",
    "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod",
    "posterior_variance",
    "posterior_log_variance_clipped",
    "posterior_mean_coef1",
    "posterior_mean_coef2",
)
A_TIME = ("logvar", "lvlb_weights")


def schedule(process: Mapping) -> dict[str, np.ndarray]:
    """The buffers that the original registers for config.process, f64 "T" each."""
    ends = {key: process[key] for key in ("linear_start", "linear_end")}
    betas = make_betas(process["num_timesteps"], process["schedule"], **ends)
    total = np.cumprod(1 - betas)
    before = np.append(1.0, total[:-1])
    variance = betas * (1 - before) / (1 - total)
    tables = (
        betas,
        total,
        before,
        np.sqrt(total),
        np.sqrt(1 - total),
        np.log(1 - total),
        np.sqrt(1 / total),
        np.sqrt(1 / total - 1),
        variance,
        np.log(np.maximum(variance, 1e-20)),
        betas * np.sqrt(before) / (1 - total),
        (1 - before) * np.sqrt(1 - betas) / (1 - total),
    )
    return dict(zip(SCHEDULE, tables, strict=True))


def check_schedule(process: Mapping, state_dict: name_maps.StateDict) -> str:
    """UserError if the checkpoint's tables are not those of the YAML's schedule."""
    agree = 0
    for name, expected in schedule(process).items():
        if name not in state_dict:
            continue
        stored = np.asarray(state_dict[name])
        rtol, atol = precision(stored)
        wrong = ~np.isclose(stored.astype(np.float64), expected, rtol=rtol, atol=atol)
        if wrong.any():
            t = int(np.argmax(wrong))
            raise UserError(
                f"the checkpoint's {name}[{t}] is {stored[t]:.8g}, but the YAML's "
                f"schedule gives {expected[t]:.8g}: they belong to different models"
            )
        agree += 1
    if not agree:
        return "schedule: as the YAML says; the checkpoint has no tables to check it by"
    return f"schedule: as the YAML says; {agree} tables of the checkpoint agree"


def precision(stored: np.ndarray) -> tuple[float, float]:
    """(relative, absolute) tolerance of numbers stored in f32, f16 or bf16."""
    if stored.dtype == np.float16:
        return 2e-3, 1e-6  # the smallest of these tables are subnormal
    bits = stored.astype(np.float32).view(np.uint32)
    if not (bits & 0xFFFF).any():
        return 2e-2, 1e-6  # widened from bf16, which has 8 bits
    return 1e-5, 1e-9
