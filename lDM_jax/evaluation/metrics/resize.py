"""Resizing to a feature network's input: the field's conventions, by name.

    legacy   TensorFlow 1's bilinear: position i of the output looks at i * size /
             target of the input, without half pixels and without antialiasing. What
             guided-diffusion and torch-fidelity do
    pytorch  bilinear at (i + 1/2) size / target - 1/2, without antialiasing:
             pytorch-fid
    clean    PIL's antialiased bicubic on floating-point channels, clipped to [0, 255]
             and not rounded: clean-fid

Without antialiasing the features of a shrunk image depend on single pixels; which
convention was used moves FID by more than most papers' gains. Resizing an axis is a
product with a matrix. Sources: Parmar et al. 2022; TensorFlow's resize_bilinear_op.
"""

from functools import lru_cache

import numpy as np

from lDM_jax.core.errors import UserError
from lDM_jax.data.degrade import cubic

MODES = ("legacy", "pytorch", "clean")


@lru_cache(maxsize=64)
def resize_matrix(mode: str, size: int, target: int) -> np.ndarray:
    """f32 "target size", rows of sum 1; the unit matrix for equal extents."""
    if mode not in MODES:
        raise UserError(f"resize is {mode!r}; valid: {', '.join(MODES)}")
    is_clean = mode == "clean"
    matrix = _bicubic(size, target) if is_clean else _bilinear(mode, size, target)
    matrix.setflags(write=False)
    return matrix


def _bilinear(mode: str, size: int, target: int) -> np.ndarray:
    """Two neighbors of a position; the last pixel is repeated beyond the border."""
    position = np.arange(target, dtype=np.float32)
    scale = np.float32(size / target)
    if mode == "legacy":
        position = position * scale
    else:
        half = np.float32(0.5)
        position = np.maximum((position + half) * scale - half, np.float32(0))
    low = np.minimum(position.astype(np.int64), size - 1)
    high = np.minimum(low + 1, size - 1)
    share = position - low.astype(np.float32)
    matrix = np.zeros((target, size), np.float32)
    np.add.at(matrix, (np.arange(target), low), 1 - share)
    np.add.at(matrix, (np.arange(target), high), share)
    return matrix


def _bicubic(size: int, target: int) -> np.ndarray:
    """Keys' kernel, widened by the ratio where that is above 1; taps outside the
    image are left out and the rest normalized, as PIL does."""
    if size == target:
        return np.eye(size, dtype=np.float32)
    ratio = size / target
    stretch = max(1.0, ratio)
    center = (np.arange(target)[:, None] + 0.5) * ratio
    distance = np.abs(np.arange(size)[None] + 0.5 - center) / stretch
    weights = cubic(distance, a=-0.5)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def resize(pixels: np.ndarray, mode: str, target_px: int) -> np.ndarray:
    """Pixels [0, 255] "H W c" of any real type -> f32 "target_px target_px c"."""
    height, width, _ = pixels.shape
    x = np.asarray(pixels, np.float32)
    x = np.tensordot(resize_matrix(mode, width, target_px), x, (1, 1)).swapaxes(0, 1)
    x = np.tensordot(resize_matrix(mode, height, target_px), x, (1, 0))
    return np.clip(x, 0.0, 255.0)
