"""A weights directory: `config.json` beside `weights.safetensors`; nothing executable.

Owns the safetensors door and the names of shipped weights (lDM_jax/assets/<name>/). A
parameter tree is stored under "/"-joined paths, f32 or f16, and read back as f32; large
ones in several files with an index. `save_lazily` and `open_lazily` hold one array at a
time. Work directories of runs are `weights.checkpoint`'s.
"""

import json
import math
import os
import struct
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import SafetensorError
from safetensors.numpy import load_file

from lDM_jax.core.errors import UserError
from lDM_jax.core.files import ASSETS, replacing, write_json
from lDM_jax.weights import torch_file
from lDM_jax.weights.name_maps import Lazy, as_lazy
from lDM_jax.weights.name_maps import Path as Names

WEIGHTS, CONFIG = "weights.safetensors", "config.json"
SHARD, INDEX = "weights-{:05d}-of-{:05d}.safetensors", "weights.safetensors.index.json"
FILE_BYTES = 4 * 2**30  # at most this much in one file


def shipped() -> list[str]:
    """Names of the weights that come with the package."""
    return sorted(path.parent.name for path in ASSETS.glob(f"*/{WEIGHTS}"))


def resolve(name: str | os.PathLike) -> Path:
    """A directory, or the name of shipped weights -> the directory's path.

    Raises UserError when there is neither, with the names that would be valid.
    """
    if str(name) in shipped():
        return ASSETS / str(name)
    path = Path(name).expanduser()
    if str(name) and path.is_dir():
        return path
    raise UserError(
        f"no weights at {str(name)!r}: give a work directory, a converted directory, "
        f"or one of the shipped names: {', '.join(shipped()) or '(none)'}"
    )


def is_weights_directory(path: Path) -> bool:
    """True if `path` was written by `save` (rather than being a run's directory)."""
    return (path / WEIGHTS).is_file() or (path / INDEX).is_file()


def load(path: Path) -> tuple[dict, dict]:
    """(config as a plain dict, parameter tree f32). UserError for a damaged file."""
    config = read_config(path)
    flat = {}
    for file in _files(path):
        try:
            flat |= load_file(file)
        except (SafetensorError, OSError, struct.error, ValueError) as error:
            raise UserError(f"{file} is damaged or unreadable: {error}") from None
    tree = {tuple(name.split("/")): to_f32(array) for name, array in flat.items()}
    return config, unflatten_dict(tree)


def open_lazily(path: Path) -> tuple[dict, dict[Names, Lazy]]:
    """(config, parameters by path), each array read (f32) when it is made."""
    single = path / WEIGHTS
    read = torch_file.read if single.is_file() else torch_file.read_index
    arrays = read(single if single.is_file() else path / INDEX)

    def lazy(name: str) -> Lazy:
        return Lazy(arrays.shapes[name], lambda: to_f32(arrays[name]))

    return read_config(path), {tuple(name.split("/")): lazy(name) for name in arrays}


def _files(path: Path) -> list[Path]:
    """The file of a weights directory, or all of those that its index names."""
    if not (path / INDEX).is_file():
        return [path / WEIGHTS]
    torch_file.read_index(path / INDEX)  # the files are there and whole
    places = json.loads((path / INDEX).read_text())["weight_map"]
    return [path / name for name in sorted(set(places.values()))]


def read_config(path: Path) -> dict:
    """The resolved config stored beside the weights or in a work directory."""
    try:
        return json.loads((path / CONFIG).read_text())
    except OSError as error:
        reason = error.strerror
        raise UserError(f"{path} holds no readable {CONFIG}: {reason}") from None
    except (ValueError, RecursionError) as error:  # neither JSON nor text
        raise UserError(f"{path / CONFIG} is not valid JSON: {error}") from None


def save(path: Path, config: dict, params: dict, *, half: bool = False) -> None:
    """Write both files; `half` stores f16 (half the size, 3 decimal digits)."""
    save_lazily(path, config, as_lazy(jax.device_get(params)), half=half)


def save_lazily(
    path: Path, config: dict, arrays: Mapping[Names, Lazy], *, half: bool = False
) -> None:
    """`save` from parameters by path, of which one at a time is in memory.

    Beyond FILE_BYTES there are several files, weights-00001-of-00002.safetensors and
    so on, and an index in the form of the Hugging Face hub.
    """
    path.mkdir(parents=True, exist_ok=True)
    dtype = np.dtype(np.float16 if half else np.float32)
    named = {"/".join(names): lazy for names, lazy in arrays.items()}
    groups = _groups(named, dtype.itemsize)
    places = {}
    for index, group in enumerate(groups, start=1):
        file = WEIGHTS if len(groups) == 1 else SHARD.format(index, len(groups))
        write_tensors(path / file, group, dtype=dtype)
        places |= dict.fromkeys(group, file)
    if len(groups) > 1:
        write_json(path / INDEX, {"weight_map": places})
    write_json(path / CONFIG, config)


def _groups(named: dict[str, Lazy], itemsize: int) -> list[dict[str, Lazy]]:
    """The arrays in their order, cut so that a group has at most FILE_BYTES."""
    groups, room = [{}], FILE_BYTES
    for name, lazy in named.items():
        size = math.prod(lazy.shape) * itemsize
        if groups[-1] and size > room:
            groups.append({})
            room = FILE_BYTES
        groups[-1][name] = lazy
        room -= size
    return groups


def write_tensors(
    file: Path,
    tensors: Mapping[str, Lazy],
    metadata: dict[str, str] | None = None,
    *,
    dtype: np.dtype = np.dtype(np.float32),  # noqa: B008
) -> None:
    """One safetensors file of one element type, whole or not at all, readable for all.

    Written here rather than by the library, which wants all arrays at once: a JSON of
    {name: {dtype, shape, data_offsets}} behind its length as u64, then the numbers.
    """
    header, end, kind = {}, 0, {2: "F16", 4: "F32"}[dtype.itemsize]
    for name, lazy in tensors.items():
        begin, end = end, end + math.prod(lazy.shape) * dtype.itemsize
        places = dict(data_offsets=[begin, end])
        header[name] = dict(dtype=kind, shape=list(lazy.shape), **places)
    if metadata:
        header["__metadata__"] = metadata
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with replacing(file) as partial:
        with partial.open("wb") as stream:
            stream.write(struct.pack("<Q", len(text)) + text)
            for lazy in tensors.values():
                stream.write(little_endian(lazy, dtype))
        partial.chmod(0o644)


def little_endian(lazy: Lazy, dtype: np.dtype) -> memoryview:
    """The bytes of an array in C order."""
    array = lazy.make()
    if array.shape != lazy.shape:
        raise ValueError(f"an array of {array.shape} was announced as {lazy.shape}")
    array = np.ascontiguousarray(array, dtype.newbyteorder("<"))
    return array.reshape(-1).view(np.uint8).data


def to_f32(array: np.ndarray) -> np.ndarray:
    """Floating arrays as f32, everything else as it is."""
    floating = np.issubdtype(array.dtype, np.floating)
    return array.astype(np.float32) if floating else array


def check_cover(params: dict, expected: dict, *, what: str) -> None:
    """UserError with three lists unless both trees have the same names and shapes."""
    have = {"/".join(k): np.shape(v) for k, v in flatten_dict(params).items()}
    want = {"/".join(k): np.shape(v) for k, v in flatten_dict(expected).items()}
    missing = sorted(want.keys() - have.keys())
    unexpected = sorted(have.keys() - want.keys())
    mismatched = sorted(
        f"{name} {have[name]} instead of {want[name]}"
        for name in have.keys() & want.keys()
        if have[name] != want[name]
    )
    if missing or unexpected or mismatched:
        raise UserError(
            f"{what} does not fit the network: missing {missing}; "
            f"unexpected {unexpected}; mismatched {mismatched}"
        )
