"""Regions: parts of the image with prompts of their own, painted or from colors."""

import numpy as np

from lDM_jax.core import image
from lDM_jax.core.errors import UserError
from lDM_jax.sampling import pixels as pixels_lib
from lDM_jax.sampling.request import Request, canvas
from lDM_jax.studio import limits, painter
from lDM_jax.studio.served import Served
from lDM_jax.studio.session import Session
from lDM_jax.studio.tabs.tab import Tab

LEAST_SHARE = 0.005  # of the image that a color covers to be a region


class Regions(Tab):
    """The prompt above is for what no region covers."""

    name, title = "regions", "Regions"
    reads = ("prompt",)
    controls = ("regions", "regional")

    def build(self, ui, served: Served | None) -> None:
        ui.html(
            "<p>Draw regions, the later ones over the earlier, and say what goes into "
            "each. The prompt above is for the rest.</p>"
        )
        ui.painter("regions", "regions", served)
        about = "attention: each place reads its own words; latent: a prediction each"
        more = dict(value="latent", label="How regions act", info=about)
        ui.add("Radio", "regional", ["attention", "latent"], **more)
        ui.upload("colours", "Or a picture whose colours are regions")

    def wire(self, page) -> None:
        page.on(self, "size", "change", self.resize, ("size",), ("regions",))
        inputs = ("size", "regions")
        page.on(self, "colours", "upload", self.color, inputs, ("regions",))

    def resize(self, session: Session, served: Served, size: str) -> dict:
        """The painter at the chosen size; another model's changes nothing."""
        if size not in served.sizes:
            return {}
        return {"regions": {"extent": list(served.sizes[size])}}

    def color(self, session, served, name: str, data: bytes, size, value) -> dict:
        """The painter after an uploaded image of colors; prompts stay."""
        pixels = limits.decode_image(data, name)
        labels = color_regions(pixels, served.extent(size))
        return {"regions": {"value": painted(labels, rows_of(value))}}

    def fields(self, controls: dict, served: Served, inputs: dict) -> dict:
        size, value = super().fields(controls, served, inputs), controls["regions"]
        labels = painter.label_map(value, size["size_px"], "regions")
        regions = []
        for number, row in enumerate(rows_of(value), start=1):
            row = row if isinstance(row, dict) else {}
            where, prompt = labels == number, row.get("prompt") or ""
            if where.any() and not prompt:
                raise UserError(f"region {number} is painted but has no prompt")
            if where.any():
                weight = row.get("weight", 1)
                regions.append((prompt, where.astype(np.int32), weight))
        if not regions:
            raise UserError("paint at least one region and give it a prompt")
        return size | {"regions": regions, "regional": controls["regional"]}

    def makes(self, request: Request) -> bool:
        return bool(request.regions)

    def restore(self, request: Request, served: Served) -> dict:
        trained = served.pipe.trained
        extent = canvas(request, trained.task, trained.settings)
        labels = np.zeros((extent.height_px, extent.width_px), np.int32)
        rows = []
        for number, (prompt, where, *weight) in enumerate(request.regions, start=1):
            boxed = pixels_lib.is_box(where)
            inside = pixels_lib.box_map(where, labels.shape) if boxed else where > 0
            labels[inside] = number
            rows.append({"prompt": prompt, "weight": (weight or [1])[0]})
        return {"regions": painted(labels, rows), "regional": request.regional}


def rows_of(value) -> list:
    """The rows {prompt, weight} of a painter's value, at most MAX_REGIONS."""
    rows = value.get("regions") if isinstance(value, dict) else None
    return rows[: limits.MAX_REGIONS] if isinstance(rows, list) else []


def painted(labels: np.ndarray, rows: list[dict]) -> dict:
    """A painter's value of regions; a row {prompt, weight} for each label from 1."""
    count = max(2, int(labels.max()), len(rows))
    rows = [*rows, *({"prompt": "", "weight": 1} for _ in range(count - len(rows)))]
    return painter.value(labels, regions=rows)


def color_regions(pixels: np.ndarray, extent: tuple[int, int]) -> np.ndarray:
    """Which region a color is: i32 "H W", from 1 by the share of the image.

    White, or else the most frequent color, is no region: 0. Colors on less than
    LEAST_SHARE go to the nearest of the others. UserError without a second color.
    """
    small = image.nearest(pixels, extent).reshape(-1, 3).astype(np.int64)
    colors, which, counts = np.unique(
        small, axis=0, return_inverse=True, return_counts=True
    )
    order = np.argsort(-counts, kind="stable")
    frequent = [at for at in order if counts[at] >= LEAST_SHARE * len(small)]
    frequent = frequent[: limits.MAX_REGIONS + 1]
    if len(frequent) < 2:
        raise UserError("the picture has a single colour: give one colour a region")
    kept = colors[frequent]
    white = np.flatnonzero((kept >= 250).all(axis=1))
    ground = int(white[0]) if len(white) else 0
    numbers = np.zeros(len(kept), np.int32)
    numbers[np.arange(len(kept)) != ground] = np.arange(1, len(kept))
    distances = ((colors[:, None] - kept[None]) ** 2).sum(axis=2)
    return numbers[distances.argmin(axis=1)][which.reshape(-1)].reshape(extent)
