"""What a conversion gives, and its writing: directories of lazy arrays, whole or not.

Owns `Converted` and the way to the disk; `original.read` and `diffusers.read` promise
that everything fits before anything is written.
Arrays pass one at a time from file to file.

Reading order: Part and Converted, what both readers need, writing.
"""

import math
import os
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from lDM_jax.core.errors import UserError
from lDM_jax.from_config import networks
from lDM_jax.weights import directory as weights_directory
from lDM_jax.weights import name_maps
from lDM_jax.weights.name_maps import Lazy, Names


class Part(NamedTuple):
    """One weights directory: the config to store, and its arrays by path."""

    config: dict
    arrays: dict[name_maps.Path, Lazy]


class Converted(NamedTuple):
    """A model in our terms.

    parts by sub-directory: "" the model itself, "first_stage", "text" (a frozen tower).
    report: what was used, a line each.
    """

    parts: dict[str, Part]
    report: list[str]

    @property
    def config(self) -> dict:
        """The config of the model itself."""
        return self.parts[""].config


class Ours(NamedTuple):
    """A model of ours, opened: its config, its arrays by path."""

    config: ConfigDict
    arrays: Mapping[name_maps.Path, Lazy]


def open_model(name: str) -> Ours:
    """A shipped name, weights or work directory.

    The arrays of a weights directory are read when they are made.
    """
    path = weights_directory.resolve(name)
    if not weights_directory.is_weights_directory(path):
        config, params = networks.load_trained(name)
        return Ours(config, name_maps.as_lazy(params))
    stored, arrays = weights_directory.open_lazily(path)
    return Ours(networks.in_place(stored, path), arrays)


def open_parts(ours: Ours) -> tuple[Ours | None, Ours | None, float | list]:
    """(first stage, frozen text tower, latent scale) of a second stage.

    None for a part that it does not have, 0 for a scale that is not known.
    """
    config, first, tower = ours.config, None, None
    path = config.first_stage.path
    if path in ("", "random"):
        raise UserError("config.first_stage.path names no trained first stage")
    if path != "identity":
        first = open_model(path)
    for one in networks.towers(config):
        tower = open_model(config[one.name].path)
    stored = networks.stored_scale(first.config) if first else 1.0
    return first, tower, config.first_stage.scale or stored


def split(
    arrays: Mapping[name_maps.Path, Lazy], configs: Mapping[str, dict]
) -> dict[str, Part]:
    """The parts of these configs, by the sub-directory that paths begin with."""
    parts = {folder: Part(config, {}) for folder, config in configs.items()}
    for (folder, *path), lazy in arrays.items():
        parts[folder].arrays[tuple(path)] = lazy
    return parts


def read_all(
    state_dict: name_maps.StateDict,
    table: Names,
    ignored: Sequence[str] = (),
    *,
    unsaid: Sequence[str] = (),
) -> tuple[dict[name_maps.Path, Lazy], list[str]]:
    """(arrays by exact cover, lines that say what was used and what was left).

    unsaid: names that the report leaves to other lines.
    """
    arrays = name_maps.lazy_from_original(state_dict, table, ignored=ignored)
    used = {name for name, entry in table.items() if entry.path is not None}
    left = state_dict.keys() - used - set(unsaid)
    left = Counter(name.partition(".")[0] for name in left)
    count = sum(math.prod(lazy.shape) for lazy in arrays.values())
    report = [f"used: {len(used)} entries, {count:,} parameters"]
    for root, count in sorted(left.items()):
        report.append(f"not used: {count} entries of {root}.*")
    return arrays, report


def write_whole(out: str | Path, fill: Callable[[Path], None]) -> None:
    """`fill` a directory beside `out`, then give it that name.

    Raises UserError when `out` holds something already.
    """
    path = Path(out).expanduser().absolute()
    check_free(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        partial.mkdir()
        fill(partial)
        if path.is_dir():
            path.rmdir()
        partial.rename(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def check_free(out: str | Path) -> None:
    """UserError unless a directory can be written at `out`."""
    path = Path(out).expanduser().absolute()
    if path.is_dir() and not any(path.iterdir()):
        return
    if path.exists() or path.is_symlink():
        raise UserError(f"{path} exists already: give a new directory")


def write_ours(model: Converted, out: str, *, half: bool) -> None:
    """The weights directories. UserError for numbers that the precision cannot hold."""

    def fill(path: Path) -> None:
        for folder, part in model.parts.items():
            arrays = {p: finite(p, lazy, half=half) for p, lazy in part.arrays.items()}
            weights_directory.save_lazily(path / folder, part.config, arrays, half=half)

    write_whole(out, fill)


def finite(path: name_maps.Path, lazy: Lazy, *, half: bool) -> Lazy:
    """The same array, refused when it is made if it has infinities."""
    limit = float(np.finfo(np.float16 if half else np.float32).max)

    def make() -> np.ndarray:
        array = lazy.make()
        if array.size and not max(array.max(), -array.min()) <= limit:
            raise UserError(
                f"{'/'.join(path)} holds numbers that are not finite"
                + (" in f16; leave out --half" if half else "")
            )
        return array

    return Lazy(lazy.shape, make)
