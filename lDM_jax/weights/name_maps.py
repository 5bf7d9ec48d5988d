"""Weights of other programs <-> our parameter trees, by exact cover.

Owns the axis orders and the mechanics; the tables of names are in `interop`. Reads
no file and needs no torch: a state dict is a mapping from names to numpy arrays, such
as `torch_file.read` gives. `Lazy` arrays are read and turned one at a time, so that a
checkpoint may exceed the memory.

A *name map* (`Names`) says for every entry of a foreign state dict which parameter it
is, how its axes are ordered and what shape it has. It is made from our own parameters
(shapes only, nothing is allocated): a table translates each parameter's path. A map
thus misses no parameter, and `from_original` refuses what it does not cover.

`prefixed` places a map inside a larger checkpoint; `ema_names` gives LitEma's names.

Layouts, foreign <- ours (O outputs, I inputs, H W kernel extent):

    same    as it is            conv   OIHW <- HWIO
    linear  OI <- IO            conv1  OI11 <- IO           conv1d  OI1 <- IO

Reading order: layouts, entries, conversion, changes of maps, the maker of maps.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from lDM_jax.core.errors import UserError

Path = tuple[str, ...]
StateDict = Mapping[str, np.ndarray]


class Part(NamedTuple):
    """Block `index` of a parameter whose outputs are ordered heads x [0 | 1 | ..]."""

    index: int
    count: int
    heads: int


class Entry(NamedTuple):
    """Where a foreign entry of `shape` goes: our path under "params", and its layout.

    path None: the entry has no use here and may be absent. `ours` is the shape of
    the parameter; with `part` the entry is one block of it.
    """

    path: Path | None
    layout: str
    shape: tuple[int, ...]
    ours: tuple[int, ...] = ()
    part: Part | None = None


Names = dict[str, Entry]


class Lazy(NamedTuple):
    """An array that is made when asked for, so that one at a time is in memory."""

    shape: tuple[int, ...]
    make: Callable[[], np.ndarray]


def to_layout(array: np.ndarray, layout: str) -> np.ndarray:
    """Our axis order -> the foreign one."""
    if layout == "conv":
        return array.transpose(3, 2, 0, 1)
    if layout == "same":
        return array
    ones = {"linear": 0, "conv1d": 1, "conv1": 2}[layout]
    return array.T.reshape(array.T.shape + (1,) * ones)


def from_layout(array: np.ndarray, layout: str) -> np.ndarray:
    """The foreign axis order -> ours; the inverse of `to_layout`."""
    if layout == "conv":
        return array.transpose(2, 3, 1, 0)
    return array if layout == "same" else array.reshape(array.shape[:2]).T


def take_part(array: np.ndarray, part: Part) -> np.ndarray:
    """One block "... heads*width" of a parameter "... heads*count*width"."""
    split = array.reshape(*array.shape[:-1], part.heads, part.count, -1)
    return split[..., part.index, :].reshape(*array.shape[:-1], -1)


def join_parts(blocks: list[np.ndarray], heads: int) -> np.ndarray:
    """Blocks "... heads*width" in order -> the parameter "... heads*count*width"."""
    split = [block.reshape(*block.shape[:-1], heads, -1) for block in blocks]
    return np.stack(split, axis=-2).reshape(*blocks[0].shape[:-1], -1)


def from_original(
    state_dict: StateDict, names: Names, *, ignored: Sequence[str] = ()
) -> dict:
    """A foreign state dict -> variables {"params": ...}, f32 numpy, all at once."""
    lazies = lazy_from_original(state_dict, names, ignored=ignored)
    arrays = {path: lazy.make() for path, lazy in lazies.items()}
    return {"params": unflatten_dict(arrays)}


def lazy_from_original(
    state_dict: StateDict, names: Names, *, ignored: Sequence[str] = ()
) -> dict[Path, Lazy]:
    """A foreign state dict -> our parameters by path, f32, each read when it is made.

    Every entry is used once and every parameter filled once, but for entries whose
    names begin with one of `ignored`. Otherwise UserError with three lists of entries:
    missing, unexpected, mismatched (in shape).
    """
    shapes = shapes_of(state_dict)
    unknown = shapes.keys() - names.keys()
    unexpected = {name for name in unknown if not name.startswith(tuple(ignored))}
    mismatched = [
        f"{name} {shapes[name]} instead of {entry.shape}"
        for name, entry in names.items()
        if shapes.get(name, entry.shape) != entry.shape
    ]
    sources: dict[Path, list[tuple[str, Entry]]] = {}
    for name, entry in names.items():
        if entry.path is not None:
            sources.setdefault(entry.path, []).append((name, entry))
    needed = {name for parts in sources.values() for name, _ in parts}
    _report(needed - shapes.keys(), unexpected, mismatched)

    def lazy(parts: list[tuple[str, Entry]]) -> Lazy:
        def make() -> np.ndarray:
            arrays = [
                from_layout(np.asarray(state_dict[name], np.float32), entry.layout)
                for name, entry in parts
            ]
            first = parts[0][1].part
            whole = arrays[0] if first is None else join_parts(arrays, first.heads)
            return np.ascontiguousarray(whole)  # safetensors writes memory as it lies

        return Lazy(parts[0][1].ours, make)

    return {
        path: lazy(sorted(parts, key=lambda named: named[1].part or ()))
        for path, parts in sources.items()
    }


def shapes_of(state_dict: StateDict) -> dict[str, tuple[int, ...]]:
    """Shapes by name; a `torch_file.TorchFile` knows them without reading arrays."""
    if hasattr(state_dict, "shapes"):
        return dict(state_dict.shapes)
    return {name: np.shape(array) for name, array in state_dict.items()}


def to_original(variables: Mapping, names: Names) -> dict[str, np.ndarray]:
    """Variables {"params": ...} -> the foreign state dict, without entries of no use.

    UserError with the three lists when these are not exactly the map's parameters.
    """
    params = as_lazy(variables["params"])
    return {name: lazy.make() for name, lazy in lazy_to_original(params, names).items()}


def as_lazy(tree: Mapping) -> dict[Path, Lazy]:
    """Arrays of a nested dict that are there already, by path."""
    return {
        path: Lazy(np.shape(leaf), lambda leaf=leaf: np.asarray(leaf))
        for path, leaf in flatten_dict(tree).items()
    }


def lazy_to_original(params: Mapping[Path, Lazy], names: Names) -> dict[str, Lazy]:
    """Our parameters by path -> the foreign entries, each made when asked for.

    UserError with the three lists when these are not exactly the map's parameters.
    """
    needed = {entry.path for entry in names.values() if entry.path is not None}
    mismatched = [
        f"{name} from {params[entry.path].shape} instead of {entry.ours}"
        for name, entry in names.items()
        if entry.path in params and params[entry.path].shape != entry.ours
    ]
    missing = map("/".join, needed - params.keys())
    _report(missing, map("/".join, params.keys() - needed), mismatched)

    def lazy(entry: Entry) -> Lazy:
        def make() -> np.ndarray:
            array = params[entry.path].make()
            array = array if entry.part is None else take_part(array, entry.part)
            return np.ascontiguousarray(to_layout(array, entry.layout))

        return Lazy(entry.shape, make)

    return {name: lazy(e) for name, e in names.items() if e.path is not None}


def _report(missing, unexpected, mismatched) -> None:
    """Raise UserError with the three lists unless all are empty."""

    def show(items) -> str:
        items = sorted(items)
        text = ", ".join(items[:8]) or "none"
        return text + (f" and {len(items) - 8} more" if len(items) > 8 else "")

    missing, unexpected = list(missing), list(unexpected)
    if missing or unexpected or mismatched:
        raise UserError(
            f"weights do not fit the network: missing {show(missing)}; "
            f"unexpected {show(unexpected)}; mismatched {show(mismatched)}"
        )


def prefixed(names: Names, prefix: str, root: Path = ()) -> Names:
    """The same map where entries begin with `prefix` and our paths with `root`."""
    return {
        prefix + name: entry._replace(path=entry.path and root + entry.path)
        for name, entry in names.items()
    }


def unused(names: Names) -> Names:
    """The same map where no entry is used: they may be absent, but not misshapen."""
    return {name: entry._replace(path=None) for name, entry in names.items()}


def ema_names(names: Names, root: str = "diffusion_model.") -> Names:
    """LitEma's buffers: the names inside the averaged module, without their dots.

    root: where the map's network lies in that module; "" for a whole `VQModel`.
    """
    return {
        "model_ema." + f"{root}{name}".replace(".", ""): entry
        for name, entry in names.items()
    }


def split_qkv(names: Names, letter: str, heads: Callable[[int], int]) -> Names:
    """The same map where each `qkv` is three entries.

    letter: a name's pattern, such as "to_{}" for to_q. heads: how many lie one after
    the other in our `qkv`, by the width of one of the three; 1 where it is [q | k | v].
    """
    split: Names = {}
    for name, entry in names.items():
        before, qkv, after = name.partition(".qkv.")
        if not qkv:
            split[name] = entry
            continue
        shape = (entry.shape[0] // 3, *entry.shape[1:])
        for index, which in enumerate("qkv"):
            part = Part(index, 3, heads(shape[0]))
            third = f"{before}.{letter.format(which)}.{after}"
            split[third] = entry._replace(shape=shape, part=part)
    return split


# The maker of maps: our module path -> (foreign module, layout of its dense kernel).
Translate = Callable[[Path], tuple[str, str]]
LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight", "bias": "bias"}


def make_names(network: nn.Module, inputs: tuple, translate: Translate) -> Names:
    """The map of all parameters that `network.init(key, *inputs)` would make.

    A parameter held by a network itself (positions, codebook) counts as a module with a
    weight. The norm inside our `GroupNorm` and `LayerNorm` is no level of its own.
    """
    shapes = jax.eval_shape(network.init, jax.random.key(0), *inputs)["params"]
    names: Names = {}
    for path, leaf in flatten_dict(shapes).items():
        modules, kind = path[:-1], path[-1]
        if kind not in LEAVES:
            modules = path
        elif modules[-1] == "norm":
            modules = modules[:-1]
        module, layout = translate(modules)
        if kind != "kernel":
            layout = "same"
        elif len(leaf.shape) == 4:
            layout = "conv"
        # A broadcast scalar: the axes move, no memory is used.
        shape = to_layout(np.broadcast_to(np.False_, leaf.shape), layout).shape
        name = f"{module}.{LEAVES.get(kind, 'weight')}"
        names[name] = Entry(path, layout, shape, leaf.shape)
    return names
