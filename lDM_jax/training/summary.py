"""What `train.py --dry_run` prints: config, parameters, memory a device, FLOPs.

Everything is abstract (jax.eval_shape, jaxprs): no parameter is allocated and no data
read, so that the largest published model is summarised on any machine. The training
state is divided as `training.sharding` divides it, frozen networks are whole on every
device. Activations are not counted: they depend on the compiler.

Training FLOPs of an image are counted in forward passes: one and the two of its
gradient of what trains, one of what is frozen. In stage 1 the discriminator sees both
pictures (six passes) and passes a second gradient back to the decoder, and LPIPS sees
both and passes a gradient back through one.
"""

import dataclasses
import math
import textwrap
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict
from jax.sharding import AbstractMesh
from ml_collections import ConfigDict

from lDM_jax.core.errors import UserError
from lDM_jax.core.sharding import sharding_table, state_sharding
from lDM_jax.diffusion.codec import Codec
from lDM_jax.from_config import networks
from lDM_jax.from_config.task_settings import task_of, task_settings
from lDM_jax.models.autoencoder import Identity
from lDM_jax.models.lpips import LPIPS
from lDM_jax.tasks.registry import example_shapes
from lDM_jax.training import build, flops
from lDM_jax.training.state import TrainState, with_profiles

WIDTH = 88


@dataclasses.dataclass
class Figures:
    """What there is to tell of one config.

    state: abstract `TrainState`; player: the discriminator's, or None; frozen: trees of
    parameters by name; passes: (name, forward passes an image, FLOPs of one).
    """

    shape_lines: list[str]
    state: TrainState
    player: Any = None
    frozen: dict[str, Any] = dataclasses.field(default_factory=dict)
    passes: list[tuple[str, float, int]] = dataclasses.field(default_factory=list)


def summary(config: ConfigDict) -> str:
    """The text of `--dry_run`. Raises UserError exactly where training would."""
    figures = figures_of(config)
    count = size(figures.state.params)
    return "\n".join(
        [
            *config_lines(config),
            "",
            *parameter_table(figures.state.params),
            f"{'total':<40}{count:>16,}   {count / 1e6:.3f}M",
            *(
                f"{f'{name} (frozen)':<40}{size(tree):>16,}"
                for name, tree in figures.frozen.items()
            ),
            "",
            *figures.shape_lines,
            *memory_lines(config, figures),
            *sharding_lines(config, figures),
            *flops_lines(figures.passes),
        ]
    )


def figures_of(config: ConfigDict) -> Figures:
    """The figures of either stage."""
    kinds = {
        "autoencoder": autoencoder_figures,
        "diffusion": diffusion_figures,
        "classifier": classifier_figures,
    }
    return networks.lookup(kinds, config.stage, "config.stage")(config)


def training_flops(config: ConfigDict, devices: Any) -> float:
    """Training FLOPs of one image; 0 where the devices' peak is not known anyway."""
    if not flops.peak_of(list(devices)):
        return 0.0
    return float(sum(times * count for _, times, count in figures_of(config).passes))


def autoencoder_figures(config: ConfigDict) -> Figures:
    """Stage 1: autoencoder, discriminator, LPIPS."""
    network = networks.autoencoder(config.autoencoder)
    networks.check_pixels(config, network.factor)
    optimizer = build.optimizer(config)
    x = floats(1, config.data.size_px, config.data.size_px, network.image_channels)
    params = jax.eval_shape(network.init, random_key(), x)
    moments = jax.eval_shape(
        lambda params, x: network.apply(params, x, method="moments"), params, x
    )
    batch = config.train.batch_size
    found = Figures(
        [
            f"image {rows(batch, x)} -> moments {rows(batch, moments)}, "
            f"f = {network.factor}"
        ],
        state=train_state(params, optimizer),
        passes=[("autoencoder", 3, flops.count(network.apply, params, x))],
    )
    adversary = build.adversary(config)
    if adversary is not None:
        found.player = jax.eval_shape(adversary.init, random_key(), x)
        variables = found.player.variables
        found.shape_lines.append(
            f"discriminator: {size(variables['params']) / 1e6:.3f}M parameters beside "
            f"these, awake from step {adversary.start_steps}"
        )
        found.passes.append(
            ("discriminator", 7, flops.count(adversary.network.apply, variables, x))
        )
    if config.loss.perceptual_weight:
        lpips = LPIPS()
        found.frozen["LPIPS"] = jax.eval_shape(lpips.init, random_key(), x, x)
        pair = flops.count(lpips.apply, found.frozen["LPIPS"], x, x)
        found.passes.append(("LPIPS", 3, pair // 2))
    return found


def diffusion_figures(config: ConfigDict) -> Figures:
    """Stage 2: UNet and conditioner, first stage, text tower."""
    codec = networks.abstract_codec(config)
    networks.check_pixels(config, codec.factor)
    optimizer = build.optimizer(config)
    side, batch_size = config.data.size_px, config.train.batch_size
    model = networks.model(config, codec)
    condition = example_shapes(task_of(config), task_settings(config), rows=1)
    z = floats(1, *codec.latent_shape(side, side))
    params = jax.eval_shape(model.init, random_key(), condition, z)
    batch = {"image": floats(1, side, side, 3), **condition}

    frozen = {"first_stage": codec_params(codec, batch["image"])}
    for tower in model.towers:
        tokens = condition[tower.reads]
        frozen[tower.name] = jax.eval_shape(tower.network.init, random_key(), tokens)
    cond = jax.eval_shape(model.condition, params, frozen, batch)
    t = jax.ShapeDtypeStruct((1,), jnp.int32)
    passes = [("UNet", 3, flops.count(model.denoise, params, z, t, cond))]

    # What conditions is frozen up to the conditioner, which trains.
    encode = flops.count(codec.moments, frozen["first_stage"], batch["image"])
    encoded = (not config.data.cache_latents) + ("mask" in condition)
    fixed = encode * ("mask" in condition)
    for tower in model.towers:
        read = flops.count(
            tower.network.apply, frozen[tower.name], condition[tower.reads]
        )
        fixed += read
        passes.append(("text tower", 1, read))
    whole = flops.count(model.condition, params, frozen, batch)
    passes.append(("conditioner", 3, whole - fixed))
    passes.append(("first stage's encoder", encoded, encode))
    lines = [
        f"image ({batch_size}, {side}, {side}, 3) -> latents {rows(batch_size, z)}"
    ]
    lines += [
        f"{name} {rows(batch_size, row)}"
        for name, row in condition.items()
        if name != "image"
    ]
    names = {"first_stage": "first stage", "text": "text tower"}
    return Figures(
        lines,
        state=train_state(params, optimizer, len(config.train.get("ema_stds", ()))),
        frozen={names[name]: tree for name, tree in frozen.items() if size(tree)},
        passes=[entry for entry in passes if entry[1] * entry[2]],
    )


def classifier_figures(config: ConfigDict) -> Figures:
    """The classifier of noisy latents, and the first stage."""
    codec, network = networks.abstract_codec(config), networks.classifier(config)
    networks.check_pixels(config, codec.factor)
    side, batch_size = config.data.size_px, config.train.batch_size
    z = floats(1, *codec.latent_shape(side, side))
    t = jax.ShapeDtypeStruct((1,), jnp.int32)
    params = jax.eval_shape(network.init, random_key(), z, t)
    image = floats(1, side, side, 3)
    first_stage = codec_params(codec, image)
    encode = flops.count(codec.moments, first_stage, image)
    encoded = int(not config.data.cache_latents)
    passes = [
        ("classifier", 3, flops.count(network.apply, params, z, t)),
        ("first stage's encoder", encoded, encode),
    ]
    return Figures(
        [f"latents {rows(batch_size, z)} -> {config.num_classes} classes"],
        state=train_state(params, build.optimizer(config)),
        frozen={"first stage": first_stage} if size(first_stage) else {},
        passes=[entry for entry in passes if entry[1] * entry[2]],
    )


def codec_params(codec: Codec, image: Any) -> dict:
    """The first stage's abstract parameters; none for pixels."""
    if isinstance(codec.autoencoder, Identity):
        return {}
    return jax.eval_shape(codec.autoencoder.init, random_key(), image)


def random_key() -> Any:
    """An abstract random key."""
    return jax.eval_shape(lambda: jax.random.key(0))


def floats(*shape: int) -> jax.ShapeDtypeStruct:
    """An abstract f32 array."""
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def rows(count: int, row: Any) -> tuple[int, ...]:
    """The shape of `count` such rows."""
    return (count, *row.shape[1:])


def size(tree: Any) -> int:
    """Elements of all arrays."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def train_state(params: dict, optimizer: Any, profiles: int = 0) -> TrainState:
    """The abstract state that training would carry, with that many more averages."""

    def create(params):
        return with_profiles(TrainState.create(params, optimizer), profiles)

    return jax.eval_shape(create, params)


def config_lines(config: ConfigDict) -> list[str]:
    """One paragraph a section: `name  key=value, ...`."""
    plain, lines = [], []
    for name, value in config.to_dict().items():
        if isinstance(value, dict):
            text = ", ".join(f"{k}={v!r}" for k, v in value.items())
            lines += textwrap.wrap(
                f"{name:<14}{text}", WIDTH, subsequent_indent=" " * 14
            )
        else:
            plain.append(f"{name}={value!r}")
    return [", ".join(plain), *lines]


def parameter_table(params: dict) -> list[str]:
    """Parameters of each part of each network, one line a part."""
    sums: dict[str, int] = {}
    for names, leaf in flatten_dict(params).items():
        network, *parts = (name for name in names[:-1] if name != "params")
        if network == "unet":
            network = f"unet {parts[0].split('_')[0]}"
        elif parts and network == "conditioner":
            network = f"conditioner {parts[0].removeprefix('encoders_')}"
        sums[network] = sums.get(network, 0) + math.prod(leaf.shape)
    return [f"{name:<40}{count:>16,}" for name, count in sums.items()]


def memory_lines(config: ConfigDict, figures: Figures) -> list[str]:
    """Memory of the training state and of frozen networks on each device."""
    mesh = planned_mesh(config.mesh)
    params, ema, rest = (
        bytes_a_device(tree, mesh)
        for tree in (
            figures.state.params,
            (figures.state.ema, getattr(figures.state, "profiles", ())),
            (figures.state.opt_state, figures.player),
        )
    )
    frozen = sum(
        math.prod(leaf.shape) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(figures.frozen)
    )
    parts = {
        "parameters": params,
        "EMA": ema,
        "gradients": params,
        "moments, discriminator" if figures.player else "moments": rest,
        "frozen": frozen,
    }
    shown = ", ".join(f"{name} {gib(count)}" for name, count in parts.items())
    total, pieces = gib(sum(parts.values())), mesh.shape["fsdp"]
    return [
        f"memory a device without activations: {total} GiB (state over fsdp={pieces})",
        *textwrap.wrap(shown, WIDTH, initial_indent="    ", subsequent_indent="    "),
    ]


def sharding_lines(config: ConfigDict, figures: Figures) -> list[str]:
    """Which rule splits how much of the state; nothing on a mesh that splits none."""
    mesh = planned_mesh(config.mesh)
    if mesh.shape["fsdp"] * mesh.shape.get("tensor", 1) == 1:
        return []
    return sharding_table(mesh, figures.state)


def planned_mesh(section: ConfigDict) -> AbstractMesh:
    """The mesh of config.mesh without its devices; -1 fills those of this machine."""
    sizes = dict(section)
    known = math.prod(count for count in sizes.values() if count != -1)
    if known < 1 or list(sizes.values()).count(-1) > 1:
        raise UserError(f"config.mesh = {sizes}: sizes above 0, and at most one -1")
    filled = max(jax.device_count() // known, 1)
    shape = tuple(filled if count == -1 else count for count in sizes.values())
    return AbstractMesh(shape, tuple(sizes))


def bytes_a_device(tree: Any, mesh: AbstractMesh) -> int:
    """Bytes of the largest share of a tree that one device holds."""
    shardings = jax.tree.leaves(state_sharding(mesh, tree))
    return sum(
        math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf, sharding in zip(jax.tree.leaves(tree), shardings, strict=True)
    )


def gib(count: int) -> str:
    """Bytes in GiB."""
    return f"{count / 2**30:.2f}"


def flops_lines(passes: list[tuple[str, float, int]]) -> list[str]:
    """Training FLOPs of one image, and of which passes."""
    total = sum(times * count for _, times, count in passes)
    shown = ", ".join(
        f"{name} {times} x {count / 1e9:.4g}" for name, times, count in passes
    )
    return [
        f"training FLOPs an image: {total / 1e9:.4g} G (forward passes x GFLOP)",
        *textwrap.wrap(shown, WIDTH, initial_indent="    ", subsequent_indent="    "),
    ]
