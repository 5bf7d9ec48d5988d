"""Files that come and go: uploads, opened pictures and presets, what a save holds.

A file arrives as base64 inside an event and stays in memory. Owns what is made of it: a
picture for a tab, regions from colours, the controls that a stored request stands for.
"""

import base64
import binascii
import io
import json
from typing import NamedTuple

import numpy as np

from lDM_jax.core import image
from lDM_jax.core.errors import UserError
from lDM_jax.sampling import pixels as pixels_lib
from lDM_jax.sampling import request as request_lib
from lDM_jax.sampling.edits import EditedTrajectory
from lDM_jax.studio import again, limits, tabs
from lDM_jax.studio.actions import Studio
from lDM_jax.studio.session import Picture, Session
from lDM_jax.studio.tabs import Served

LEAST_SHARE = 0.005  # of the picture that a colour covers to be a region


class Opened(NamedTuple):
    """A file that was opened: what the controls are to show, and the trajectory.

    shown: values by the names of controls; draw: whether it is a picture, to be drawn
    again at once, and not a preset.
    """

    shown: dict
    served: Served
    way: EditedTrajectory
    draw: bool


def received(event: dict) -> tuple[str, bytes]:
    """(name, bytes) of a file in an event. UserError for what is too large or none."""
    name, size, text = (event.get(key) for key in ("name", "size", "data"))
    name = str(name or "the file")[:80]
    if not isinstance(text, str):
        raise UserError(f"{name} did not arrive")
    most = limits.MAX_UPLOAD
    if len(text) > 1.4 * most or (isinstance(size, int | float) and size > most):
        raise UserError(f"{name} is larger than {most // 2**20} MiB")
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise UserError(f"{name} did not arrive whole: try again") from None
    if not data:
        raise UserError(f"{name} is empty")
    return name, data


def take(session: Session, served: Served, tab: str, event: dict) -> np.ndarray:
    """The picture of an upload, as the tab uses it; it is kept for the tab."""
    name, data = received(event)
    pixels = limits.picture(data, name)
    if tab == "inpaint":
        pixels = limits.fitted(pixels, (served.side_px,) * 2)
    elif tab == "super_resolution":
        pixels = small(pixels, served)
    elif max(pixels.shape[:2]) > limits.MAX_SIDE_PX:
        pixels = limits.fitted(pixels, (served.side_px,) * 2)
    session.inputs[tab] = pixels
    return pixels


def small(pixels: np.ndarray, served: Served) -> np.ndarray:
    """A picture to be enlarged, reduced where the result would be too large."""
    factor = served.pipe.config.low_res.factor
    most = min(limits.MAX_SIDE_PX, 4 * served.side_px) // factor
    height, width = pixels.shape[:2]
    scale = min(1, most / max(height, width))
    extent = [max(1, int(side * scale)) for side in (height, width)]
    whole = served.snapped(*(factor * side for side in extent))
    return limits.fitted(pixels, tuple(side // factor for side in whole))


def use_current(session: Session, served: Served, tab: str) -> np.ndarray:
    """The current picture as the upload of a tab."""
    if session.current is None:
        raise UserError("there is no picture yet: generate one first")
    pixels = session.current.pixels
    if tab == "inpaint":
        pixels = limits.fitted(pixels, served.snapped(*pixels.shape[:2]))
    session.inputs[tab] = pixels
    return pixels


def label_map(served: Served, event: dict) -> dict:
    """A painter's value of an uploaded label map. UserError for other labels."""
    name, data = received(event)
    found = limits.label_map(data, name)
    if found.max() >= len(served.labels):
        raise UserError(
            f"{name} holds the label {found.max()}: valid are 0 .. "
            f"{len(served.labels) - 1}; give a grey PNG whose values are labels"
        )
    side = served.side_px
    return {"map": pixels_lib.to_uri(nearest(found, (side, side))), "boxes": []}


def nearest(values: np.ndarray, extent: tuple[int, int]) -> np.ndarray:
    """A map at another extent, each pixel from its nearest."""
    rows, columns = (
        ((np.arange(side) + 0.5) * old / side).astype(int)
        for side, old in zip(extent, values.shape[:2], strict=True)
    )
    return values[np.ix_(rows, columns)]


def colour_regions(pixels: np.ndarray, extent: tuple[int, int]) -> np.ndarray:
    """Which region a colour is: i32 "H W", from 1 by the share of the picture.

    White, or else the most frequent colour, is no region: 0. Colours on less than
    LEAST_SHARE go to the nearest of the others. UserError without a second colour.
    """
    small = nearest(pixels, extent).reshape(-1, 3).astype(np.int64)
    colours, which, counts = np.unique(
        small, axis=0, return_inverse=True, return_counts=True
    )
    order = np.argsort(-counts, kind="stable")
    frequent = [at for at in order if counts[at] >= LEAST_SHARE * len(small)]
    frequent = frequent[: limits.MAX_REGIONS + 1]
    if len(frequent) < 2:
        raise UserError("the picture has a single colour: give one colour a region")
    kept = colours[frequent]
    white = np.flatnonzero((kept >= 250).all(axis=1))
    ground = int(white[0]) if len(white) else 0
    numbers = np.zeros(len(kept), np.int32)
    numbers[np.arange(len(kept)) != ground] = np.arange(1, len(kept))
    far = ((colours[:, None] - kept[None]) ** 2).sum(axis=2)
    return numbers[far.argmin(axis=1)][which.reshape(-1)].reshape(extent)


def regions_value(labels: np.ndarray, rows: list[dict]) -> dict:
    """A painter's value of regions; a row {prompt, weight} for each label from 1."""
    count = max(2, int(labels.max()), len(rows))
    rows = [*rows, *({"prompt": "", "weight": 1} for _ in range(count - len(rows)))]
    return {"map": pixels_lib.to_uri(labels), "boxes": [], "regions": rows}


def coloured(served: Served, size: str, value, event: dict) -> dict:
    """The regions' painter after an uploaded picture of colours; prompts stay."""
    name, data = received(event)
    extent = served.sizes.get(size, (served.side_px,) * 2)
    labels = colour_regions(limits.picture(data, name), extent)
    rows = value.get("regions") if isinstance(value, dict) else None
    rows = rows[: limits.MAX_REGIONS] if isinstance(rows, list) else []
    return regions_value(labels, rows)


def opened(studio: Studio, session: Session, event: dict) -> Opened:
    """A PNG or a preset: its trajectory, and what the controls show of it."""
    name, data = received(event)
    served, way = again.read_record(studio, limits.record(data, name))
    shown = controls_of(session, served, way)
    return Opened(shown, served, way, data.startswith(b"\x89PNG"))


def controls_of(session: Session, served: Served, way: EditedTrajectory) -> dict:
    """What the controls show of a trajectory's end; uploads go to the session."""
    request = way.final
    resolved = served.pipe.resolve(request)
    tab = tab_of(served, request)
    shown = {
        "tab": tab,
        "model": served.name,
        "prompt": request.prompt or "",
        "negative": request.negative,
        "guidance": resolved.guidance,
        "steps": resolved.steps,
        "seed": request.seeds[0],
        "sampler": resolved.sampler,
        "eta": request.eta,
    }
    if request.size_px is not None:
        names = {extent: name for name, extent in served.sizes.items()}
        shown["size"] = names.get(tuple(request.size_px), next(iter(served.sizes)))
    if request.image is not None:
        session.inputs[tab] = request_lib.read_pixels(request.image, "image")
        shown["strength"] = shown["inpaint_strength"] = request.strength
    if tab == "inpaint":
        shown["mask"] = {"map": pixels_lib.to_uri((request.mask > 0) * 1), "boxes": []}
    if tab == "regions":
        shown["regions"] = painted_regions(request, served)
        shown["regional"] = request.regional
    if tab == "layout":
        shown["boxes"] = {"map": "", "boxes": [list(box) for box in request.layout]}
    if tab == "semantic":
        shown["labels"] = {"map": pixels_lib.to_uri(request.segmentation), "boxes": []}
    if tab == "class":
        shown["label"] = served.labels[resolved.label]
    return shown


def tab_of(served: Served, request: request_lib.Request) -> str:
    """The tab on which such a request is made."""
    if served.task in ("layout", "semantic", "super_resolution", "class"):
        return served.task
    if request.regions:
        return "regions"
    if request.mask is not None:
        return "inpaint"
    return "image" if request.image is not None else "text"


def painted_regions(request: request_lib.Request, served: Served) -> dict:
    """The regions of a request as a painter's value, the later over the earlier."""
    given = served.pipe.planner.canvas(request)
    labels = np.zeros((given.height_px, given.width_px), np.int32)
    rows = []
    for number, region in enumerate(request.regions, start=1):
        prompt, where, *weight = region
        boxed = pixels_lib.is_box(where)
        inside = pixels_lib.box_map(where, labels.shape) if boxed else where > 0
        labels[inside] = number
        rows.append({"prompt": prompt, "weight": (weight or [1])[0]})
    return regions_value(labels, rows)


def preset(studio: Studio, session: Session, controls: dict) -> bytes:
    """What the controls ask for as a JSON file for `sample.py --request`."""
    served = studio.served(controls)
    wanted = tabs.request(controls, served, session.inputs)
    record = {"model": served.name, **wanted.embedded().record()}
    return (json.dumps(record, indent=1) + "\n").encode()


def contact_sheet(kept: list[Picture]) -> bytes:
    """All pictures side by side as a PNG, in the extent of the largest."""
    if not kept:
        raise UserError("the gallery is empty")
    height = max(picture.pixels.shape[0] for picture in kept)
    width = max(picture.pixels.shape[1] for picture in kept)
    cells = np.full((len(kept), height, width, 3), 255, np.uint8)
    for cell, picture in zip(cells, kept, strict=True):
        h, w = picture.pixels.shape[:2]
        cell[:h, :w] = picture.pixels
    file = io.BytesIO()
    image.save_png(file, image.grid(cells))
    return file.getvalue()
