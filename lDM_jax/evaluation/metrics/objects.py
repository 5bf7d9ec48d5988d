"""Is there, in each box of a picture, what the layout says? By the nearest object.

The crop of a box, its ground made white, is compared with pictures of single objects
whose labels are known (L2 over crops of one size): a crude judge without a learned
network. It knows objects it has pictures of; what it makes of real pictures of these is
the bound of what it can say of drawn ones.
"""

import numpy as np

from lDM_jax.core import image
from lDM_jax.evaluation.metrics.recognition import nearest

CROP_PX = 24


def crop(picture: np.ndarray, box: tuple[float, float, float, float]) -> np.ndarray:
    """uint8 "H W 3" and (left, top, width, height) in fractions -> "24 24 3".

    At least one pixel of the picture, whatever the box.
    """
    height, width, _ = picture.shape
    left, top, w, h = box
    x0 = min(round(left * width), width - 1)
    y0 = min(round(top * height), height - 1)
    x1 = max(x0 + 1, min(round((left + w) * width), width))
    y1 = max(y0 + 1, min(round((top + h) * height), height))
    part = np.ascontiguousarray(picture[y0:y1, x0:x1])
    return image.resample(part, CROP_PX, CROP_PX)


def on_white(picture: np.ndarray) -> np.ndarray:
    """uint8 "H W 3" whose ground, the median of its border, becomes white."""
    sides = picture[0], picture[-1], picture[:, 0], picture[:, -1]
    ground = np.median(np.concatenate(sides), axis=0)
    lifted = picture * (255 / np.maximum(ground, 1))
    return np.rint(np.minimum(lifted, 255)).astype(np.uint8)


def crops(pictures: np.ndarray, layouts: list) -> tuple[np.ndarray, np.ndarray]:
    """(uint8 "n 24 24 3", labels i64 "n") of all objects of the layouts, in order."""
    found, labels = [], []
    for picture, layout in zip(pictures, layouts, strict=True):
        lifted = on_white(picture)
        for label, box in layout:
            found.append(crop(lifted, box))
            labels.append(label)
    return np.stack(found), np.asarray(labels)


def library(objects: list[np.ndarray]) -> np.ndarray:
    """RGBA objects of any extent on white, as crops: uint8 "m 24 24 3"."""
    rows = []
    for pixels in objects:
        alpha = pixels[:, :, 3:].astype(np.float64) / 255
        laid = np.rint(alpha * pixels[:, :, :3] + (1 - alpha) * 255)
        rows.append(image.resample(laid.astype(np.uint8), CROP_PX, CROP_PX))
    return np.stack(rows)


def accuracy(
    pictures: np.ndarray,
    layouts: list,
    *,
    references: np.ndarray,
    labels: np.ndarray,
) -> float:
    """The share of objects whose nearest reference "m 24 24 3" has their label."""
    found, wanted = crops(pictures, layouts)
    return float(np.mean(labels[nearest(found, references)] == wanted))
