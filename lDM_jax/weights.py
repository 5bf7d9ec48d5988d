"""A weights directory: `config.json` beside `weights.safetensors`; nothing executable.

Owns the safetensors door and the names of shipped weights (lDM_jax/assets/<name>/). A
parameter tree is stored under "/"-joined paths, f32 or f16, and read back as f32. Work
directories of runs are `training.checkpoint`'s affair.
"""

import json
import os
import struct
from pathlib import Path

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from lDM_jax.arrays import UserError

ASSETS = Path(__file__).parent / "assets"
WEIGHTS, CONFIG = "weights.safetensors", "config.json"


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
    return (path / WEIGHTS).is_file()


def load(path: Path) -> tuple[dict, dict]:
    """(config as a plain dict, parameter tree f32). UserError for a damaged file."""
    config = read_config(path)
    try:
        flat = load_file(path / WEIGHTS)
    except (SafetensorError, OSError, struct.error, ValueError) as error:
        raise UserError(f"{path / WEIGHTS} is damaged or unreadable: {error}") from None
    tree = {tuple(name.split("/")): to_f32(array) for name, array in flat.items()}
    return config, unflatten_dict(tree)


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
    path.mkdir(parents=True, exist_ok=True)
    dtype = np.float16 if half else np.float32
    flat = {
        "/".join(names): np.asarray(jax.device_get(leaf), dtype)
        for names, leaf in flatten_dict(params).items()
    }
    write_tensors(path / WEIGHTS, flat)
    (path / CONFIG).write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")


def write_tensors(
    file: Path, tensors: dict[str, np.ndarray], metadata: dict[str, str] | None = None
) -> None:
    """One safetensors file, whole or not at all, readable for all."""
    partial = file.with_name(f".{file.name}.partial")
    # safetensors writes memory as it lies, whatever the strides
    tensors = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
    try:
        save_file(tensors, partial, metadata=metadata)
        partial.chmod(0o644)
        os.replace(partial, file)
    finally:
        partial.unlink(missing_ok=True)


def to_f32(array: np.ndarray) -> np.ndarray:
    """Floating arrays as f32, everything else as it is."""
    floating = np.issubdtype(array.dtype, np.floating)
    return array.astype(np.float32) if floating else array


def check_cover(params: dict, expected: dict, *, what: str) -> None:
    """Raise UserError unless both trees have the same names and shapes.

    The message has the three lists: missing, unexpected, mismatched.
    """
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
