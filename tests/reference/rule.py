"""Reading the recorded vectors: the weights rule, lists of names, arrays.

Owns what the parity tests and the recording script share. Both sides of a comparison
draw the same weights, a function of the entry's name, so that no weights are stored.
"""

import functools
import gzip
import zlib
from pathlib import Path

import jax
import numpy as np

FOLDER = Path(__file__).parent
ORIGINAL = FOLDER / "original"
Shapes = dict[str, tuple[int, ...]]


def weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The weights of entry `name` that the original programs were run with, f32."""
    rng = np.random.default_rng(zlib.crc32(("visible/" + name).encode()))
    if len(shape) >= 2:
        values = rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
    elif name.endswith("weight"):
        values = 1 + 0.1 * rng.standard_normal(shape)
    else:
        values = 0.1 * rng.standard_normal(shape)
    return values.astype("float32")


def ema_weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The weights of the EMA entry that averages parameter `name`."""
    return (weight(name, shape) + 0.05 * weight("ema/" + name, shape)).astype("float32")


def read_shapes(path: Path, prefix: str = "") -> Shapes:
    """Names and shapes in a gzipped list; those below `prefix`, without it.

    A line is name, sides joined by "," or "x", kind.
    """
    return {
        name.removeprefix(prefix): shape
        for name, shape, _ in read_entries(path)
        if name.startswith(prefix)
    }


def read_entries(path: Path) -> list[tuple[str, tuple[int, ...], str]]:
    """(name, shape, kind) of every line of a gzipped list."""
    entries = []
    for line in gzip.decompress(path.read_bytes()).decode().splitlines():
        name, sides, kind = line.split("\t")
        sides = sides.replace("x", ",").split(",")
        entries.append((name, tuple(int(side) for side in sides if side), kind))
    return entries


def draw(shapes: Shapes, prefix: str = "", rule=weight) -> dict[str, np.ndarray]:
    """A state dict by the rule, where entries are known to it under prefix + name."""
    return {name: rule(prefix + name, shape) for name, shape in shapes.items()}


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an npz file."""
    with np.load(path) as file:
        return dict(file)


def last(image: np.ndarray) -> np.ndarray:
    """NCHW -> NHWC."""
    return np.ascontiguousarray(image.transpose(0, 2, 3, 1))


def original_arrays(folder: str) -> dict[str, np.ndarray]:
    """The arrays recorded in a folder of ORIGINAL, images as NHWC."""
    io = read_arrays(ORIGINAL / folder / "io.npz")
    return {name: last(a) if a.ndim == 4 else a for name, a in io.items()}


@functools.cache
def quick_options() -> dict:
    """Compiler options that quarter the compile time, where XLA still has them."""
    options = dict(xla_backend_optimization_level=0, xla_cpu_use_fusion_emitters=False)
    try:
        jax.jit(lambda: 0, compiler_options=options).lower().compile()
    except jax.errors.JaxRuntimeError:
        return {}
    return options


def fast_jit(function):
    """`jax.jit` for a function that runs a few times: compiled in a hurry."""
    return jax.jit(function, compiler_options=quick_options())


def noise(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Standard normal numbers that belong to `name`, f32: inputs and probes."""
    rng = np.random.default_rng(zlib.crc32(("noise/" + name).encode()))
    return rng.standard_normal(shape).astype("float32")


def summarise(name: str, gradient: np.ndarray) -> tuple[float, float]:
    """(norm, product with a probe of unit variance) of a gradient."""
    values = gradient.astype(np.float64)
    probe = noise("probe/" + name, gradient.shape)
    return float(np.sqrt((values**2).sum())), float((values * probe).sum())


def diffusers_inputs(network: str, salt: str) -> dict[str, np.ndarray]:
    """Inputs of the small diffusers networks, NHWC; salt changes every number."""
    if network == "bert":
        scores = noise(salt + "tokens", (2, 12, 40))
        return {"tokens": scores.argmax(axis=-1)}
    if network in ("kl", "vq"):
        side = 12 if network == "kl" else 6
        image = np.tanh(noise(salt + "image", (2, 24, 24, 3)))
        return {"image": image, "z": noise(salt + "z", (2, side, side, 4))}
    inputs = {"z": (2, 16, 16, 4), "upstream": (2, 16, 16, 4)}
    if network in ("unet", "unet_sd2", "unet_sdxl"):
        inputs["context"] = (2, 7, 48)
    if network == "unet_sdxl":
        inputs["pooled"] = (2, 20)
    inputs = {name: noise(salt + name, shape) for name, shape in inputs.items()}
    if network == "unet_sdxl":  # sizes and crops in pixels
        inputs["sizes"] = np.array([[64, 48, 0, 3, 64, 64], [90, 80, 7, 0, 32, 64]])
    return inputs | {"t": np.array([3, 871])}
