"""The device mesh and where arrays live on it; `jit` + NamedSharding, nothing ambient.

Axes: `data` (rows of a batch), `fsdp` (rows of a batch, and parameters in pieces) and
`tensor` (parameters of transformers in pieces that compute apart). A batch is split
over data and fsdp. The state (parameters, EMA, moments) is split by `RULES`, which are
looked up by the path of an array, so that a moment lies where its parameter lies:

    tensor   the layers into attention and feed-forward by their outputs, the layers
             out of them by their inputs: one sum over devices after each pair
    fsdp     every large array along its largest axis that divides and is still whole

The same program computes the same numbers on every mesh, up to rounding.
"""

import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from lDM_jax.core.arrays import Batch
from lDM_jax.core.errors import UserError

SHARD_FROM_ELEMENTS = 2**16
AXES = ("data", "fsdp", "tensor")
ROWS = ("data", "fsdp")


class Rule(NamedTuple):
    """Arrays whose path matches `pattern` are split over `tensor` along `axis`."""

    name: str
    pattern: str
    axis: int


RULES = (
    Rule("into attention", r"/to_[qkv]/kernel$", -1),
    Rule("out of attention", r"/to_out/kernel$", -2),
    Rule("into feed-forward", r"/(ff/proj|ff_in_\d+)/(kernel|bias)$", -1),
    Rule("out of feed-forward", r"/(ff/out|ff_out_\d+)/kernel$", -2),
)


def mesh_sizes(count: int, **sizes: int) -> dict[str, int]:
    """Sizes of data, fsdp and tensor that fill `count` devices; one -1 is filled in.

    Raises UserError when they do not multiply to `count`.
    """
    unknown = sorted(sizes.keys() - set(AXES))
    if unknown:
        raise UserError(f"config.mesh has {unknown}; valid: {', '.join(AXES)}")
    filled = {name: sizes.get(name, 1) for name in AXES}
    open_axes = [name for name, size in filled.items() if size == -1]
    fixed = math.prod(size for size in filled.values() if size != -1)
    if len(open_axes) == 1 and fixed > 0:
        filled[open_axes[0]] = count // fixed
    if math.prod(filled.values()) != count or min(filled.values()) < 1:
        asked = ", ".join(f"{name}={size}" for name, size in sizes.items())
        raise UserError(
            f"mesh {asked} does not fill {count} devices: the sizes must multiply to "
            "that number, and one of them may be -1"
        )
    return filled


def make_mesh(
    data: int = -1,
    fsdp: int = 1,
    tensor: int = 1,
    *,
    devices: Sequence[Any] | None = None,
) -> Mesh:
    """Mesh over all devices, or over `devices`; one size may be -1 to fill.

    Raises UserError when the sizes do not multiply to the number of devices, or when
    `tensor` would need one row of a batch on two hosts.
    """
    count = len(devices) if devices is not None else jax.device_count()
    sizes = mesh_sizes(count, data=data, fsdp=fsdp, tensor=tensor)
    if jax.process_count() > 1 and jax.local_device_count() % sizes["tensor"]:
        raise UserError(
            f"mesh tensor={sizes['tensor']} must divide the {jax.local_device_count()} "
            "devices of one process"
        )
    return jax.make_mesh(
        tuple(sizes.values()), AXES, (AxisType.Auto,) * len(AXES), devices=devices
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """The same values on every device."""
    return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows split over data and fsdp; the same rows on the devices of `tensor`."""
    return NamedSharding(mesh, P(ROWS))


def path_name(path: Sequence[Any]) -> str:
    """ "opt_state/0/mu/unet/..." of a leaf's path."""
    return jax.tree_util.keystr(tuple(path), simple=True, separator="/")


def state_sharding(mesh: Mesh | AbstractMesh, abstract: Any) -> Any:
    """A NamedSharding for every leaf of an abstract state, by the module's rules."""

    def place(path, leaf) -> NamedSharding:
        return NamedSharding(mesh, placement(mesh, path_name(path), leaf.shape)[1])

    return jax.tree.map_with_path(place, abstract)


def placement(
    mesh: Mesh | AbstractMesh, path: str, shape: tuple[int, ...]
) -> tuple[str, P]:
    """(name of the rule, PartitionSpec) of one array of the state."""
    names: list[str | None] = [None] * len(shape)
    used, large = "", math.prod(shape) >= SHARD_FROM_ELEMENTS
    pieces = mesh.shape.get("tensor", 1)
    for rule in RULES if pieces > 1 else ():
        if re.search(rule.pattern, f"/{path}") and shape[rule.axis] % pieces == 0:
            names[rule.axis], used = "tensor", rule.name
            break
    pieces = mesh.shape["fsdp"]
    axes = [i for i, size in enumerate(shape) if size % pieces == 0 and not names[i]]
    if pieces > 1 and large and axes:
        names[max(axes, key=lambda axis: shape[axis])] = "fsdp"
        used = used or "large, along the largest axis"
    while names and names[-1] is None:
        names.pop()
    return used or "whole on every device", P(*names)


def sharding_table(mesh: Mesh | AbstractMesh, abstract: Any) -> list[str]:
    """Lines for people: rule, how it splits, arrays, elements, share of a device."""
    groups: dict[tuple[str, str], list[float]] = {}
    for path, leaf in jax.tree.leaves_with_path(abstract):
        rule, spec = placement(mesh, path_name(path), leaf.shape)
        split = " x ".join(str(name) for name in spec if name) or "-"
        share = math.prod(NamedSharding(mesh, spec).shard_shape(leaf.shape))
        row = groups.setdefault((rule, split), [0, 0, 0])
        for index, value in enumerate((1, math.prod(leaf.shape), share)):
            row[index] += value
    sizes = ", ".join(f"{name}={size}" for name, size in mesh.shape.items())
    return [
        f"mesh {sizes}",
        f"{'rule':<32}{'split over':<15}{'arrays':>8}{'elements':>16}    on a device",
        *(
            f"{rule:<32}{split:<15}{arrays:>8,}{whole:>16,}{share:>15,}"
            for (rule, split), (arrays, whole, share) in sorted(groups.items())
        ),
    ]


def check_batch_size(mesh: Mesh, batch_size: int, accumulate_steps: int = 1) -> None:
    """UserError unless the rows of every part of a batch split over the devices."""
    if accumulate_steps < 1:
        raise UserError(
            f"config.train.accumulate_steps = {accumulate_steps}; it must be at least 1"
        )
    devices = mesh.shape["data"] * mesh.shape["fsdp"]
    if batch_size % (devices * accumulate_steps):
        parts = f" in {accumulate_steps} parts" if accumulate_steps > 1 else ""
        raise UserError(
            f"config.train.batch_size = {batch_size}{parts} does not split over "
            f"{devices} devices; valid: multiples of {devices * accumulate_steps}"
        )


def put_batch(mesh: Mesh, batch: dict[str, np.ndarray]) -> Batch:
    """Host-local rows -> global arrays; every process gives its own rows."""
    sharding, hosts = batch_sharding(mesh), jax.process_count()
    return {
        name: jax.make_array_from_process_local_data(
            sharding, rows, (hosts * len(rows), *rows.shape[1:])
        )
        for name, rows in batch.items()
    }


def put_replicated(mesh: Mesh, tree: Any) -> Any:
    """The same host-local values on every device of every process."""
    if jax.process_count() == 1:
        return jax.device_put(tree, replicated(mesh))
    return jax.tree.map(lambda leaf: put_whole(replicated(mesh), leaf), tree)


def put_whole(sharding: NamedSharding, leaf: Any) -> jax.Array:
    """An array that every process holds whole -> a global one, split as it says."""
    values = np.asarray(leaf)
    return jax.make_array_from_callback(values.shape, sharding, lambda at: values[at])
