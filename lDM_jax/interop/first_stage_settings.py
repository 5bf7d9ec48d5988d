"""Hyper-parameters of other programs <-> sections of our configs.

Owns what a YAML of the original program and a `config.json` of diffusers mean here:
plain dicts on both sides, no weights, no network. A key that would change the network
in a way we cannot follow is a UserError that names it; nothing is guessed.

    original: ddconfig of `AutoencoderKL`, `VQModel`, `VQModelInterface`
    diffusers: `AutoencoderKL`, `VQModel`
"""

from collections.abc import Mapping
from typing import Any

from lDM_jax.core.errors import UserError
from lDM_jax.interop import validate

ORIGINAL_GROUPS = 32
# Keys of a ddconfig or of its model that are fine at these values and no other.
PLAIN = {
    "resamp_with_conv": (True,),
    "use_linear_attn": (False,),
    "give_pre_end": (False,),
    "tanh_out": (False,),
    "attn_type": ("vanilla", "none"),
    "in_channels": (3,),
    "out_ch": (3,),
}
DDCONFIG = {*PLAIN, "ch", "ch_mult", "num_res_blocks", "attn_resolutions", "dropout"}
DDCONFIG |= {"resolution", "z_channels", "double_z"}
DIFFUSERS_SCALE = 0.18215  # AutoencoderKL's own default
# What may stand in a diffusers config without changing what we compute.
HARMLESS = {"sample_size", "scaling_factor", "force_upcast"}
FIXED = {
    "in_channels": (3,),
    "out_channels": (3,),
    "act_fn": ("silu",),
    "norm_type": ("group",),
    "shift_factor": (None, 0, 0.0),
    "latents_mean": (None,),
    "latents_std": (None,),
    "use_quant_conv": (True,),
    "use_post_quant_conv": (True,),
    "lookup_from_codebook": (False,),
}
READ = {"block_out_channels", "layers_per_block", "latent_channels", "vq_embed_dim"}
READ |= {"down_block_types", "up_block_types", "num_vq_embeddings", "norm_num_groups"}
READ |= {"mid_block_add_attention"}
DOWN = ("DownEncoderBlock2D", "AttnDownEncoderBlock2D")
UP = ("UpDecoderBlock2D", "AttnUpDecoderBlock2D")


def original_first_stage(params: Mapping, *, is_kl: bool) -> dict:
    """config.autoencoder of the `params` of an original first stage.

    attn_resolutions become downsampling factors: 2^i where resolution // 2^i is among
    them. `attn_type: none` is without attention in the middle too.
    """
    ddconfig = validate.table(params, "ddconfig")
    validate.demand_known(ddconfig, DDCONFIG, "ddconfig")
    validate.demand(ddconfig, PLAIN, "ddconfig.")
    validate.demand(ddconfig, {"double_z": (is_kl,)}, "ddconfig.")
    validate.demand(params, {"remap": (None,), "colorize_nlabels": (None,)}, "params.")
    mults = validate.integers(ddconfig, "ch_mult")
    resolution = validate.integer(ddconfig, "resolution")
    attended = validate.integers(ddconfig, "attn_resolutions", empty=True)
    attends = ddconfig.get("attn_type", "vanilla") != "none"
    factors = [
        2**level for level in range(len(mults)) if resolution // 2**level in attended
    ]
    return section(
        width=validate.integer(ddconfig, "ch"),
        width_mults=mults,
        num_res_blocks=validate.integer(ddconfig, "num_res_blocks"),
        z_channels=validate.integer(ddconfig, "z_channels"),
        latent_channels=validate.integer(params, "embed_dim"),
        num_codes=0 if is_kl else validate.integer(params, "n_embed"),
        attn_factors=factors if attends else [],
        mid_attn=attends,
        dropout=validate.rate(ddconfig, "dropout"),
        num_groups=ORIGINAL_GROUPS,
        legacy_beta=not is_kl,
    )


def diffusers_first_stage(config: Mapping) -> dict:
    """config.autoencoder of diffusers' config.json; `_class_name` tells KL from VQ."""
    is_kl = config.get("_class_name") == "AutoencoderKL"
    known = {*HARMLESS, *FIXED, *READ}
    validate.demand_known(config, known, "config.json", newer=True)
    validate.demand(config, FIXED, "config.json: ")
    widths = validate.integers(config, "block_out_channels")
    if any(width % widths[0] for width in widths):
        raise UserError(
            f"config.json: block_out_channels = {widths} are no multiples of the first"
        )
    down = validate.names(config, "down_block_types", DOWN, len(widths))
    up = validate.names(config, "up_block_types", UP, len(widths))
    attended = [2**level for level, kind in enumerate(down) if kind == DOWN[1]]
    if attended != [2**i for i, kind in enumerate(up[::-1]) if kind == UP[1]]:
        raise UserError(
            "config.json: down_block_types and up_block_types attend at different "
            "resolutions, which is not supported"
        )
    z_channels = validate.integer(config, "latent_channels")
    embedded = config.get("vq_embed_dim") is not None
    latent = validate.integer(config, "vq_embed_dim") if embedded else z_channels
    return section(
        width=widths[0],
        width_mults=[width // widths[0] for width in widths],
        num_res_blocks=validate.integer(config, "layers_per_block"),
        z_channels=z_channels,
        latent_channels=latent,
        num_codes=0 if is_kl else validate.integer(config, "num_vq_embeddings"),
        attn_factors=attended,
        mid_attn=bool(config.get("mid_block_add_attention", True)),
        dropout=0.0,
        num_groups=validate.integer(config, "norm_num_groups"),
        legacy_beta=False,
    )


def diffusers_scale(config: Mapping) -> float:
    """The latent scale of diffusers' config.json; 0 where it says nothing (VQ)."""
    is_kl = config.get("_class_name") == "AutoencoderKL"
    scale = config.get("scaling_factor")
    if scale is None:
        return DIFFUSERS_SCALE if is_kl else 0.0
    if type(scale) not in (int, float) or not 0 < scale < float("inf"):
        raise UserError("config.json: scaling_factor must be a positive number")
    return float(scale)


def to_diffusers_first_stage(section: Mapping, *, scale: float, size_px: int) -> dict:
    """diffusers' config.json of config.autoencoder."""
    is_kl = not section["num_codes"]
    if is_kl and section["z_channels"] != section["latent_channels"]:
        raise UserError(
            f"diffusers' AutoencoderKL has no place for z_channels "
            f"({section['z_channels']}) other than latent_channels "
            f"({section['latent_channels']})"
        )
    levels = range(len(section["width_mults"]))
    attends = [2**level in section["attn_factors"] for level in levels]
    config = dict(
        _class_name="AutoencoderKL" if is_kl else "VQModel",
        act_fn="silu",
        block_out_channels=[section["width"] * m for m in section["width_mults"]],
        down_block_types=[DOWN[level] for level in attends],
        in_channels=3,
        latent_channels=section["z_channels"],
        layers_per_block=section["num_res_blocks"],
        mid_block_add_attention=section["mid_attn"],
        norm_num_groups=section["num_groups"],
        out_channels=3,
        sample_size=size_px,
        scaling_factor=scale or 1.0,
        up_block_types=[UP[level] for level in reversed(attends)],
    )
    if not is_kl:
        config["num_vq_embeddings"] = section["num_codes"]
        config["vq_embed_dim"] = section["latent_channels"]
    return config


def data_section(size_px: int) -> dict:
    """config.data of a converted model, which only says how large its pictures are."""
    data = dict(source="emoji", path="", size_px=size_px, flip=0.0, limit=0)
    return data | dict(background="white", num_workers=0)


def first_stage_config(section: dict, *, size_px: int, scale: float) -> dict:
    """The config stored beside a first stage; no latent_scale where it is not known."""
    config = dict(stage="autoencoder", seed=0, autoencoder=section)
    noted = {"latent_scale": scale} if scale else {}
    return config | {"data": data_section(size_px)} | noted


def section(**values: Any) -> dict:
    """A network's section with its dtype, if its numbers make a network."""
    if len(values["width_mults"]) > 8 or values["num_res_blocks"] > 64:
        raise UserError("more than 8 levels, or more than 64 blocks a level")
    for mult in values["width_mults"]:
        width, groups = values["width"] * mult, values["num_groups"]
        if width > 2**16:
            raise UserError(f"{width} channels are more than a network has")
        if width % groups:
            raise UserError(f"{width} channels do not divide into {groups} groups")
    return values | {"dtype": "float32"}
