"""Objects of a layout, recognized in their boxes by the nearest reference object.

The crop of a box, its ground made white, is compared with images of single objects
whose labels are known (L2 over crops of one size): a crude classifier without a learned
network. Its accuracy on real images is the bound of what it can show of samples.
"""

import numpy as np

from lDM_jax.core import image
from lDM_jax.evaluation.metrics.recognition import nearest

CROP_PX = 24


def crop(pixels: np.ndarray, box: tuple[float, float, float, float]) -> np.ndarray:
    """uint8 "H W 3" and (left, top, width, height) in fractions -> "24 24 3".

    At least one pixel of the image, whatever the box.
    """
    height, width, _ = pixels.shape
    left, top, w, h = box
    x0 = min(round(left * width), width - 1)
    y0 = min(round(top * height), height - 1)
    x1 = max(x0 + 1, min(round((left + w) * width), width))
    y1 = max(y0 + 1, min(round((top + h) * height), height))
    part = np.ascontiguousarray(pixels[y0:y1, x0:x1])
    return image.resample(part, CROP_PX, CROP_PX)


def on_white(pixels: np.ndarray) -> np.ndarray:
    """uint8 "H W 3" whose ground, the median of its border, becomes white."""
    sides = pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]
    ground = np.median(np.concatenate(sides), axis=0)
    lifted = pixels * (255 / np.maximum(ground, 1))
    return np.rint(np.minimum(lifted, 255)).astype(np.uint8)


def crop_objects(images: np.ndarray, layouts: list) -> tuple[np.ndarray, np.ndarray]:
    """(uint8 "n 24 24 3", labels i64 "n") of all objects of the layouts, in order."""
    rows = []
    for pixels, layout in zip(images, layouts, strict=True):
        lifted = on_white(pixels)
        rows += [crop(lifted, box) for _, box in layout]
    labels = np.array([label for layout in layouts for label, _ in layout])
    return np.stack(rows), labels


def make_references(objects: list[np.ndarray]) -> np.ndarray:
    """RGBA objects of any extent on white, as crops: uint8 "m 24 24 3"."""
    rows = []
    for glyph in objects:
        alpha = glyph[:, :, 3:].astype(np.float64) / 255
        x = np.rint(alpha * glyph[:, :, :3] + (1 - alpha) * 255)
        rows.append(image.resample(x.astype(np.uint8), CROP_PX, CROP_PX))
    return np.stack(rows)


def accuracy(
    images: np.ndarray, layouts: list, *, references: np.ndarray, labels: np.ndarray
) -> float:
    """The share of objects whose nearest reference "m 24 24 3" has their label."""
    rows, expected = crop_objects(images, layouts)
    return float(np.mean(labels[nearest(rows, references)] == expected))
