"""The device mesh and where arrays live on it; `jit` + NamedSharding, nothing ambient.

Axes: `data` (batches only) and `fsdp` (batches, and parameters in pieces). Batches are
split over both axes; with fsdp > 1 every large array of the state is split along its
largest axis that divides.
"""

import math
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from lDM_jax.arrays import Batch, UserError

SHARD_FROM_ELEMENTS = 2**16


def make_mesh(data: int = -1, fsdp: int = 1) -> Mesh:
    """Mesh ("data", "fsdp") over all devices; one size may be -1 to fill.

    Raises UserError when the sizes do not multiply to the number of devices.
    """
    count = jax.device_count()
    sizes = {"data": data, "fsdp": fsdp}
    open_axes = [name for name, size in sizes.items() if size == -1]
    known = math.prod(size for size in sizes.values() if size != -1)
    if len(open_axes) == 1 and known > 0:
        sizes[open_axes[0]] = count // known
    if math.prod(sizes.values()) != count or min(sizes.values()) < 1:
        raise UserError(
            f"mesh data={data}, fsdp={fsdp} does not fill {count} devices: the sizes "
            "must multiply to that number, and one of them may be -1"
        )
    shape, names = tuple(sizes.values()), tuple(sizes)
    return jax.make_mesh(shape, names, axis_types=(AxisType.Auto,) * len(names))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same values on every device."""
    return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows split over all devices."""
    return NamedSharding(mesh, P(("data", "fsdp")))


def state_sharding(mesh: Mesh, abstract: Any) -> Any:
    """A NamedSharding for every leaf of an abstract state."""
    pieces = mesh.shape["fsdp"]

    def rule(leaf) -> NamedSharding:
        axes = [i for i, size in enumerate(leaf.shape) if size % pieces == 0]
        if pieces == 1 or math.prod(leaf.shape) < SHARD_FROM_ELEMENTS or not axes:
            return replicated(mesh)
        largest = max(axes, key=lambda axis: leaf.shape[axis])
        return NamedSharding(mesh, P(*[None] * largest, "fsdp"))

    return jax.tree.map(rule, abstract)


def check_batch_size(mesh: Mesh, batch_size: int) -> None:
    """UserError unless the rows of a batch split evenly over the devices."""
    if batch_size % mesh.size:
        raise UserError(
            f"config.train.batch_size = {batch_size} does not split over {mesh.size} "
            f"devices; valid: multiples of {mesh.size}"
        )


def put_batch(mesh: Mesh, batch: dict[str, np.ndarray]) -> Batch:
    """Host-local rows -> global arrays; every process gives its own rows."""
    sharding = batch_sharding(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, rows)
        for name, rows in batch.items()
    }
