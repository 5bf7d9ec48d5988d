"""Inpaint: the painted part of an image is drawn anew; more canvas is outpainting."""

import numpy as np

from lDM_jax.core.errors import UserError
from lDM_jax.sampling.request import Request
from lDM_jax.studio import limits, painter
from lDM_jax.studio.served import Served
from lDM_jax.studio.session import Session
from lDM_jax.studio.tabs.uploads import UploadTab

SIDES = ("left", "right", "top", "bottom")


class Inpaint(UploadTab):
    """By models that were trained to inpaint, or blended in the latents by others."""

    name, title = "inpaint", "Inpaint"
    reads = ("mask", "prompt", "")
    controls = ("mask", "inpaint_strength")
    config = "emoji_inpaint"
    missing = "upload a picture to complete"
    shows = ("inpaint", "mask")

    def build(self, ui, served: Served | None) -> None:
        ui.upload("inpaint", "Choose a picture to complete, or drop one")
        ui.button("inpaint_use", "Take the current picture", size="sm")
        ui.painter("mask", "mask", served)
        ui.slider("inpaint_strength", "Strength", 0.05, 1, 1, step=0.05)
        with ui.folded("extend_panel", "Outpaint: more canvas"):
            sides = dict(value=["right"], label="On")
            ui.add("CheckboxGroup", "extend_sides", list(SIDES), **sides)
            ui.slider("extend_share", "How much", 0.25, 1, 0.5, step=0.25)
            ui.button("extend", "Extend the canvas", size="sm")

    def wire(self, page) -> None:
        super().wire(page)
        inputs = ("extend_sides", "extend_share")
        page.on(self, "extend", "click", self.extend, inputs, self.shows)

    def prepare(self, pixels: np.ndarray, served: Served) -> np.ndarray:
        return limits.fit(pixels, served.own_extent)

    def reuse(self, pixels: np.ndarray, served: Served) -> np.ndarray:
        return limits.fit(pixels, served.snap(*pixels.shape[:2]))

    def show(self, pixels: np.ndarray, mask: np.ndarray | None = None) -> dict:
        updates = {"mask": painter.over(pixels, painter.value(mask))}
        return super().show(pixels) | updates

    def extend(self, session: Session, served: Served, sides, share) -> dict:
        """More canvas around the image, masked; updates that show it."""
        pixels = self.image(session.inputs)
        sides = [side for side in sides or [] if side in SIDES]
        if not sides:
            raise UserError("choose a side to extend")
        share = limits.CHECKS["strength"](share, "how much")
        pixels, mask = extend_canvas(pixels, sides, share, served.cell_px)
        return self.take(session, pixels, mask=mask)

    def fields(self, controls: dict, served: Served, inputs: dict) -> dict:
        pixels = self.image(inputs)
        extent = pixels.shape[:2]
        mask = painter.label_map(controls["mask"], extent, "mask") > 0
        if not mask.any():
            raise UserError("paint over the part that is to be drawn anew")
        fields = {"image": pixels, "mask": mask.astype(np.int32)}
        if not served.task.own_image:
            fields["strength"] = controls["inpaint_strength"]
        return fields | {"window_px": served.window(extent)}

    def example(self, served: Served) -> dict:
        image = np.full((*served.own_extent, 3), 255, np.uint8)
        return {"image": image, "mask": np.ones(served.own_extent, np.int32)}

    def makes(self, request: Request) -> bool:
        return request.mask is not None and not request.regions

    def restore(self, request: Request, served: Served) -> dict:
        mask = painter.value((request.mask > 0) * 1)
        return {"mask": mask, "inpaint_strength": request.strength}

    def restored(self, values: dict, inputs: dict) -> dict[str, dict]:
        mask = painter.over(inputs[self.name], values["mask"])
        return super().restored(values, inputs) | {"mask": mask}


def extend_canvas(
    pixels: np.ndarray, sides: list[str], share: float, cell_px: int
) -> tuple[np.ndarray, np.ndarray]:
    """(image, mask) for outpainting: `share` more on each of the SIDES in `sides`.

    What is added is a multiple of cell_px. It repeats the edge; the mask i32 "H W" is
    1 on it. UserError where the image would become too large.
    """
    height, width = pixels.shape[:2]

    def added(side: str, length: int) -> int:
        more = max(cell_px, round(share * length / cell_px) * cell_px)
        return more if side in sides else 0

    rows = added("top", height), added("bottom", height)
    columns = added("left", width), added("right", width)
    if max(height + sum(rows), width + sum(columns)) > limits.MAX_SIDE_PX:
        raise UserError(f"a side has at most {limits.MAX_SIDE_PX} pixels")
    inside = np.zeros((height, width), np.int32)
    mask = np.pad(inside, (rows, columns), constant_values=1)
    return np.pad(pixels, (rows, columns, (0, 0)), "edge"), mask
