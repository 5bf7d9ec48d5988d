"""A cheap look at latents: rgb = [z0 / scale, 1] M at each latent position.

The matrix M "c+1 3" is the least-squares map from the latents of pictures to the mean
color of their cells, so that a preview costs a product of c by 3 a position and no
decoder. `tools.export` fits it to the training pictures and stores it with a first
stage as `latent_rgb`; for others it is fitted to soft fields of color when it is
needed, which is less true. Detail below a cell is not there to be seen.
"""

from collections.abc import Iterable

import jax
import numpy as np

from lDM_jax.core import image
from lDM_jax.diffusion.codec import Codec

PICTURES = 16
NODES = 4  # colors along a side, between which fields are interpolated


def fit(codec: Codec, params: dict, batches: Iterable[np.ndarray]) -> np.ndarray:
    """M f32 "c+1 3" from batches of pictures f32 [-1, 1] "b H W 3"."""
    encode, f = jax.jit(codec.encode), codec.factor
    rows, colors = [], []
    for x in batches:
        z = np.asarray(encode(params, x) / codec.factors, np.float64)
        b, h, w, c = z.shape
        rows.append(z.reshape(-1, c))
        cells = np.asarray(x, np.float64).reshape(b, h, f, w, f, 3)
        colors.append(cells.mean(axis=(2, 4)).reshape(-1, 3))
    z = np.concatenate(rows)
    z = np.append(z, np.ones((len(z), 1)), axis=1)
    matrix = np.linalg.lstsq(z, np.concatenate(colors), rcond=None)[0]
    return matrix.astype(np.float32)


def fit_to_fields(codec: Codec, params: dict, size_px: int) -> np.ndarray:
    """M of a first stage for which none is stored."""
    return fit(codec, params, [image.to_float(color_fields(PICTURES, size_px))])


def color_fields(count: int, size_px: int) -> np.ndarray:
    """uint8 "count S S 3": colors at NODES x NODES points, bicubic between them."""
    rng = np.random.default_rng(0)
    nodes = rng.integers(0, 256, (count, NODES, NODES, 3), np.uint8)
    return np.stack([image.resample(one, size_px, size_px) for one in nodes])


def to_rgb(codec: Codec, z0: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """z0 "b h w c" -> uint8 "b h w 3"."""
    z = np.asarray(z0 / codec.factors)
    return image.to_uint8(z @ matrix[:-1] + matrix[-1])
