"""What conditions a second stage of the original program -> sections of our config.

Owns the meaning of cond_stage_config, conditioning_key and cond_stage_key, the part of
a `LatentDiffusion` in which models differ most; the rest is in `original.settings`. A
combination that is not in CONDITIONERS is a UserError.

    ClassEmbedder            task class
    UNet's own label_emb     task class, as a vector
    BERTEmbedder             task text; without its tokenizer, of a key ..bbox, layout
    FrozenCLIPEmbedder, FrozenOpenCLIPEmbedder   task text, Stable Diffusion 1.x, 2.x
    SpatialRescaler          task semantic
    Identity, concatenated   task super_resolution
    Identity, attended to    task retrieval: vectors from elsewhere
    __is_first_stage__       task inpaint
    __is_unconditional__     task unconditional

Reading order: Condition, `conditioner`, one function a kind, the table of them.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from lDM_jax.core.errors import UserError
from lDM_jax.interop import validate

ENCODERS = "ldm.modules.encoders.modules."
IDENTITY = "torch.nn.Identity"
# Frozen towers of Stable Diffusion: network, and what pads a prompt.
CLIP = "openai/clip-vit-large-patch14"
CLIP_VERSIONS = {CLIP: dict(width=768, depth=12, num_heads=12)}
OPENCLIP_VERSIONS = {"ViT-H-14": dict(width=1024, depth=24, num_heads=16)}


class Condition(NamedTuple):
    """What a conditioner is here.

    route: the kind that `original.read` has a table of names for; sections: additions
    to the config; extra: channels beside the latents; context: width, 0 for none;
    factor: pixels a position of what is concatenated, 0 where that is free.
    """

    route: str
    sections: dict
    extra: int = 0
    context: int = 0
    factor: int = 0
    notes: tuple[str, ...] = ()


class Beside(NamedTuple):
    """What else a conditioner's meaning depends on: latent channels, cond_stage_key."""

    unet_params: Mapping
    key: str
    channels: int


def conditioning_key(params: Mapping) -> str | None:
    """Where the condition goes: None, concat, crossattn or adm."""
    if params.get("cond_stage_config") == "__is_unconditional__":
        return None
    key = params.get("conditioning_key")
    if key is None:
        key = "concat" if validate.switch(params, "concat_mode", True) else "crossattn"
    if key not in ("concat", "crossattn", "adm"):
        raise UserError(
            f"conditioning_key = {validate.show(key)} is not supported; supported: "
            "concat, crossattn, adm"
        )
    return key


def conditioner(params: Mapping, unet_params: Mapping, channels: int) -> Condition:
    """What cond_stage_config and conditioning_key are here."""
    where = conditioning_key(params)
    config = params.get("cond_stage_config")
    if (unet_params.get("num_classes") is None) != (where != "adm"):
        raise UserError("unet_config.params.num_classes and conditioning_key adm: both")
    if where is None:
        return Condition("none", {})
    kind, inner = config, {}
    if config != "__is_first_stage__":
        kind, inner = validate.target(params, "cond_stage_config")
    if (kind, where) not in CONDITIONERS:
        valid = ", ".join(f"{kind} ({where})" for kind, where in CONDITIONERS)
        raise UserError(
            f"cond_stage_config {kind!r} ({where}) is not supported; valid: "
            f"{valid}, __is_unconditional__"
        )
    key = params.get("cond_stage_key", "image")
    return CONDITIONERS[kind, where](inner, Beside(unet_params, str(key), channels))


def class_table(inner: Mapping, beside: Beside) -> Condition:
    """`ClassEmbedder`: one context token a class."""
    rows = validate.integer(inner, "n_classes", 1000)
    null = rows == 1001 or bool(inner.get("ucg_rate"))
    note = f"the null class is the last of {rows}" if null else "no null class"
    sections = dict(task="class", num_classes=rows - null, null_class=null)
    if null:
        sections["sample"] = sample(guidance=3.0)
    width = validate.integer(inner, "embed_dim")
    return Condition("class", sections, context=width, notes=(f"classes: {note}",))


def class_vector(inner: Mapping, beside: Beside) -> Condition:
    """The UNet's own `label_emb`: a vector a class."""
    rows = validate.integer(beside.unet_params, "num_classes")
    sections = dict(task="class", num_classes=rows, null_class=False)
    return Condition("label_emb", sections)


def bert(inner: Mapping, beside: Beside) -> Condition:
    """`BERTEmbedder` of captions, or without its tokenizer of layouts (..bbox)."""
    validate.demand(inner, {"embedding_dropout": (0, 0.0)}, "cond_stage_config.params.")
    boxes = not validate.switch(inner, "use_tokenizer", True) and "bbox" in beside.key
    task = "layout" if boxes else "text"
    width = validate.integer(inner, "n_embed")
    section = dict(
        kind="bert",
        width=width,
        depth=validate.integer(inner, "n_layer"),
        num_heads=8,
        head_width=64,
        max_length=validate.integer(inner, "max_seq_len", 77),
        token_std=0.02,
        position_std=0.02,
        vocab_size=validate.integer(inner, "vocab_size", 30_522),
    )
    sections = dict(task=task, text=section, sample=sample(1.0 if boxes else 5.0))
    return Condition(task, sections, context=width)


def label_map(inner: Mapping, beside: Beside) -> Condition:
    """`SpatialRescaler` of a label map."""
    fixed = {"method": ("bilinear",), "multiplier": (0.5,), "bias": (False,)}
    validate.demand(inner, fixed, "cond_stage_config.params.")
    stages = validate.integer(inner, "n_stages", 1)
    width = validate.integer(inner, "out_channels")
    labels = validate.integer(inner, "in_channels")
    rescaler = dict(num_stages=stages, width=width)
    sections = dict(task="semantic", num_classes=labels, rescaler=rescaler)
    return Condition("rescaler", sections, extra=width, factor=2**stages)


def low_resolution(inner: Mapping, beside: Beside) -> Condition:
    """`Identity` that is concatenated: the small picture itself."""
    if beside.key != "LR_image":
        raise UserError(
            f"cond_stage_key = {beside.key!r} is not supported; supported: LR_image"
        )
    return Condition("none", dict(task="super_resolution"), extra=3)


def given_context(inner: Mapping, beside: Beside) -> Condition:
    """`Identity` that is attended to: vectors from elsewhere (retrieval)."""
    width = validate.integer(beside.unet_params, "context_dim")
    note = (
        f"task retrieval: the context (b n {width}) comes from a search over CLIP "
        "vectors, which is not part of the checkpoint"
    )
    return Condition("given", dict(task="retrieval"), context=width, notes=(note,))


def masked_image(inner: Mapping, beside: Beside) -> Condition:
    """The first stage as conditioner: latents of the masked picture, and the mask."""
    if beside.key != "masked_image":
        raise UserError(
            f"cond_stage_key = {beside.key!r} is not supported; supported: masked_image"
        )
    return Condition("first_stage", dict(task="inpaint"), extra=beside.channels + 1)


def clip_tower(inner: Mapping, beside: Beside) -> Condition:
    """`FrozenCLIPEmbedder`: Stable Diffusion 1.x."""
    validate.demand(inner, {"layer": ("last",)}, "cond_stage_config.params.")
    network = validate.choice(inner, "version", CLIP_VERSIONS, CLIP)
    return tower("clip", inner, network, pad="eos", activation="quick_gelu")


def openclip_tower(inner: Mapping, beside: Beside) -> Condition:
    """`FrozenOpenCLIPEmbedder`: Stable Diffusion 2.x."""
    network = validate.choice(inner, "arch", OPENCLIP_VERSIONS, "ViT-H-14")
    layer = validate.choice(inner, "layer", ("last", "penultimate"), "last")
    options = dict(activation="gelu", output_layer=layer)
    return tower("openclip", inner, network, pad="zero", **options)


def tower(route: str, inner: Mapping, network: dict, *, pad: str, **options):
    """The condition of a frozen tower, and the config of its directory."""
    length = validate.integer(inner, "max_length", 77)
    sections = dict(
        task="text",
        text=dict(kind="clip", path="./text", network={}),
        tower=tower_config(dict(network, max_length=length, **options), pad=pad),
        sample=sample(7.5),
    )
    return Condition(route, sections, context=network["width"])


def tower_config(network: dict, *, pad: str) -> dict:
    """The config of a frozen tower's directory."""
    return dict(stage="text", text=dict(kind="clip", network=network, pad=pad))


def sample(guidance: float) -> dict:
    """config.sample with the guidance that the published scripts take."""
    return dict(sampler="ddim", steps=50, spacing="leading", guidance=guidance, eta=0.0)


CONDITIONERS: dict[tuple[str, str], Callable[..., Condition]] = {
    (f"{ENCODERS}ClassEmbedder", "crossattn"): class_table,
    (f"{ENCODERS}BERTEmbedder", "crossattn"): bert,
    (f"{ENCODERS}SpatialRescaler", "concat"): label_map,
    (f"{ENCODERS}FrozenCLIPEmbedder", "crossattn"): clip_tower,
    (f"{ENCODERS}FrozenOpenCLIPEmbedder", "crossattn"): openclip_tower,
    (IDENTITY, "concat"): low_resolution,
    (IDENTITY, "crossattn"): given_context,
    (IDENTITY, "adm"): class_vector,
    ("__is_first_stage__", "concat"): masked_image,
}
