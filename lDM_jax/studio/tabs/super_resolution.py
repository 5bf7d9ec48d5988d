"""Super-resolution: a small image is enlarged."""

import numpy as np

from lDM_jax.studio import limits
from lDM_jax.studio.served import Served
from lDM_jax.studio.tabs.uploads import UploadTab


class SuperResolution(UploadTab):
    """By the model's own factor, in windows where the result is large."""

    name, title = "super_resolution", "Super-resolution"
    reads = ("image",)
    config = "emoji_super_resolution"
    missing = "upload a picture to enlarge"
    offers_current = False

    def build(self, ui, served: Served | None) -> None:
        text = "Choose a small picture to enlarge, or drop one here"
        ui.upload("super_resolution", text)

    def prepare(self, pixels: np.ndarray, served: Served) -> np.ndarray:
        most = min(limits.MAX_SIDE_PX, 4 * served.side_px) // factor(served)
        scale = min(1, most / max(pixels.shape[:2]))
        extent = (max(1, int(scale * side)) for side in pixels.shape[:2])
        return fit(pixels, served, extent)[0]

    def fields(self, controls: dict, served: Served, inputs: dict) -> dict:
        pixels = self.image(inputs)
        small, whole = fit(pixels, served, pixels.shape[:2])
        return {"image": small, "window_px": served.window(whole)}

    def example(self, served: Served) -> dict:
        side = served.side_px // factor(served)
        return {"image": np.full((side, side, 3), 255, np.uint8)}


def factor(served: Served) -> int:
    """How many times larger the result is."""
    return served.pipe.config.low_res.factor


def fit(pixels: np.ndarray, served: Served, extent) -> tuple[np.ndarray, tuple]:
    """The image near an extent (h, w) that can be enlarged, and its result's (H, W)."""
    whole = served.snap(*(factor(served) * side for side in extent))
    return limits.fit(pixels, tuple(s // factor(served) for s in whole)), whole
