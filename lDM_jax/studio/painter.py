"""What the painters of the page hold (painter.js), and how they are shown.

A painter's value is {"map": a label map as a PNG data URI, "boxes": [[label, (left,
top, width, height)], ...]}; the one of regions has {"prompt", "weight"} for each
label from 1 in "regions" besides.
"""

from collections.abc import Sequence

import numpy as np

from lDM_jax.core import image
from lDM_jax.sampling import pixels as pixels_lib
from lDM_jax.studio import limits


def value(labels: np.ndarray | None = None, boxes: Sequence = (), **more) -> dict:
    """A painter's value: a label map of integers "H W", boxes; empty without them."""
    uri = "" if labels is None else pixels_lib.to_uri(labels)
    return {"map": uri, "boxes": [list(box) for box in boxes], **more}


def label_map(value, extent: tuple[int, int], name: str) -> np.ndarray:
    """The label map i32 "H W" of a painter's value; zeros where it is empty.

    Painted at another extent, it is brought to this one, each pixel from its nearest.
    UserError, with `name`, for what is no painter's.
    """
    uri = value.get("map") if isinstance(value, dict) else None
    if not uri:
        return np.zeros(extent, np.int32)
    return image.nearest(limits.CHECKS["mask"](uri, name), extent)


def over(pixels: np.ndarray, content: dict | None = None) -> dict:
    """Properties of a painter over an image uint8 "H W 3"; empty without content."""
    return {
        "value": content or value(),
        "background": data_uri(pixels, 512),
        "extent": list(pixels.shape[:2]),
    }


def data_uri(pixels: np.ndarray, most_px: int) -> str:
    """An image as a data URI, reduced to most_px where it is larger."""
    height, width = pixels.shape[:2]
    scale = most_px / max(height, width)
    if scale < 1:
        h, w = (max(1, round(side * scale)) for side in (height, width))
        pixels = image.resample(np.ascontiguousarray(pixels), h, w)
    return pixels_lib.to_uri(pixels)
