"""What `train.py --dry_run` prints: config, parameters, memory a device, FLOPs.

Everything is abstract (jax.eval_shape, jaxprs): no parameter is allocated and no data
read, so that the largest published model is summarized on any machine. The training
state is divided as `core.sharding` divides it, frozen networks are whole on every
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
from lDM_jax.from_config import abstract
from lDM_jax.training import flops
from lDM_jax.training.build import AbstractRun, abstract_run
from lDM_jax.training.state import TrainState

WIDTH = 88
TIME = jax.ShapeDtypeStruct((1,), jnp.int32)


@dataclasses.dataclass(frozen=True)
class Figures:
    """What there is to tell of one config.

    state: abstract, what training carries; frozen: trees of parameters by name; passes:
    (name, forward passes an image, FLOPs of one).
    """

    shape_lines: list[str]
    state: TrainState
    frozen: dict[str, Any]
    passes: list[tuple[str, float, int]]


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
    """The figures of a stage of either kind."""
    kinds = {
        "autoencoder": autoencoder_figures,
        "diffusion": diffusion_figures,
        "classifier": classifier_figures,
    }
    return kinds[config.stage](config, abstract_run(config))


def training_flops(config: ConfigDict, devices: Any) -> float:
    """Training FLOPs of one image; 0 where the devices' peak is not known anyway."""
    if not flops.peak_of(list(devices)):
        return 0.0
    return float(sum(times * count for _, times, count in figures_of(config).passes))


def autoencoder_figures(config: ConfigDict, run: AbstractRun) -> Figures:
    """Stage 1: autoencoder, discriminator, LPIPS."""
    stage, state, x = run.stage, run.state, run.batch["image"]
    network, batch_size = stage.network, config.train.batch_size
    moments = jax.eval_shape(
        lambda params, x: network.apply(params, x, method="moments"), state.params, x
    )
    lines = [
        f"image {rows(batch_size, x)} -> moments {rows(batch_size, moments)}, "
        f"f = {network.factor}"
    ]
    passes = [("autoencoder", 3, flops.count(network.apply, state.params, x))]
    if stage.adversary is not None:
        variables = state.discriminator.variables
        lines.append(
            f"discriminator: {size(variables['params']) / 1e6:.3f}M parameters beside "
            f"these, awake from step {stage.adversary.start_steps}"
        )
        judge = stage.adversary.network.apply
        passes.append(("discriminator", 7, flops.count(judge, variables, x)))
    if "lpips" in run.frozen:
        compare = stage.objective.perceptual.apply
        pair = flops.count(compare, run.frozen["lpips"], x, x)
        passes.append(("LPIPS", 3, pair // 2))
    return Figures(lines, state, named(run.frozen), passes)


def diffusion_figures(config: ConfigDict, run: AbstractRun) -> Figures:
    """Stage 2: UNet and conditioner, first stage, text tower."""
    model, frozen, state = run.stage.model, run.frozen, run.state
    side, batch_size = config.data.size_px, config.train.batch_size
    z = abstract.floats(1, *run.stage.latent_shape)
    image = abstract.images(config)
    batch = {"image": image, **run.batch}
    cond = jax.eval_shape(model.condition, state.params, frozen, batch)
    passes = [("UNet", 3, flops.count(model.denoise, state.params, z, TIME, cond))]

    # What conditions is frozen up to the conditioner, which trains.
    encode = flops.count(model.codec.moments, frozen["first_stage"], image)
    fixed = encode * ("mask" in batch)
    for tower in model.towers:
        apply, tokens = tower.network.apply, batch[tower.reads]
        read = flops.count(apply, frozen[tower.name], tokens)
        fixed += read
        passes.append(("text tower", int(tower.writes not in batch), read))
    whole = flops.count(model.condition, state.params, frozen, batch)
    passes.append(("conditioner", 3, whole - fixed))
    encoded = ("moments" not in batch) + ("mask" in batch)
    passes.append(("first stage's encoder", encoded, encode))
    line = f"image ({batch_size}, {side}, {side}, 3) -> latents {rows(batch_size, z)}"
    conditions = {n: row for n, row in run.stage.conditions.items() if n != "image"}
    more = (f"{name} {rows(batch_size, row)}" for name, row in conditions.items())
    return Figures([line, *more], state, named(frozen), counted(passes))


def classifier_figures(config: ConfigDict, run: AbstractRun) -> Figures:
    """The classifier of noisy latents, and the first stage."""
    stage, state = run.stage, run.state
    z = abstract.floats(1, *stage.latent_shape)
    first_stage, image = run.frozen["first_stage"], abstract.images(config)
    encode = flops.count(stage.codec.moments, first_stage, image)
    encoded = int("moments" not in run.batch)
    passes = [
        ("classifier", 3, flops.count(stage.network.apply, state.params, z, TIME)),
        ("first stage's encoder", encoded, encode),
    ]
    count = config.num_classes
    line = f"latents {rows(config.train.batch_size, z)} -> {count} classes"
    return Figures([line], state, named(run.frozen), counted(passes))


def named(frozen: dict[str, Any]) -> dict[str, Any]:
    """The frozen networks that have parameters, under names for people."""
    names = {"first_stage": "first stage", "text": "text tower", "lpips": "LPIPS"}
    return {names.get(n, n): tree for n, tree in frozen.items() if size(tree)}


def counted(passes: list) -> list:
    """The passes that cost something."""
    return [entry for entry in passes if entry[1] * entry[2]]


def rows(count: int, row: Any) -> tuple[int, ...]:
    """The shape of `count` such rows."""
    return (count, *row.shape[1:])


def size(tree: Any) -> int:
    """Elements of all arrays."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


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
    state = dict(vars(figures.state))
    params = bytes_a_device(state.pop("params"), mesh)
    ema = bytes_a_device((state.pop("ema"), state.pop("profiles", ())), mesh)
    game = ", discriminator" * bool(state.get("discriminator"))
    leaves = jax.tree.leaves(figures.frozen)
    frozen = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)
    parts = {
        "parameters": params,
        "EMA": ema,
        "gradients": params,
        f"moments{game}": bytes_a_device(state, mesh),
        "frozen": frozen,
    }
    text = ", ".join(f"{name} {count / 2**30:.2f}" for name, count in parts.items())
    total, pieces = sum(parts.values()) / 2**30, mesh.shape["fsdp"]
    return [
        f"memory a device without activations: {total:.2f} GiB "
        f"(state over fsdp={pieces})",
        *textwrap.wrap(text, WIDTH, initial_indent="    ", subsequent_indent="    "),
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
    fixed = math.prod(count for count in sizes.values() if count != -1)
    if fixed < 1 or list(sizes.values()).count(-1) > 1:
        raise UserError(f"config.mesh = {sizes}: sizes above 0, and at most one -1")
    filled = max(jax.device_count() // fixed, 1)
    shape = tuple(filled if count == -1 else count for count in sizes.values())
    return AbstractMesh(shape, tuple(sizes))


def bytes_a_device(tree: Any, mesh: AbstractMesh) -> int:
    """Bytes of the largest share of a tree that one device holds."""
    shardings = jax.tree.leaves(state_sharding(mesh, tree))
    return sum(
        math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf, sharding in zip(jax.tree.leaves(tree), shardings, strict=True)
    )


def flops_lines(passes: list[tuple[str, float, int]]) -> list[str]:
    """Training FLOPs of one image, and of which passes."""
    total = sum(times * count for _, times, count in passes)
    text = ", ".join(f"{name} {times} x {n / 1e9:.4g}" for name, times, n in passes)
    return [
        f"training FLOPs an image: {total / 1e9:.4g} G (forward passes x GFLOP)",
        *textwrap.wrap(text, WIDTH, initial_indent="    ", subsequent_indent="    "),
    ]
