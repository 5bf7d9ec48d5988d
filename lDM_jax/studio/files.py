"""Files that come and go: uploads, opened images and presets, the contact sheet.

A file arrives as base64 inside an event and stays in memory. What a tab makes of an
upload is in its own file.
"""

import base64
import binascii
import json
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lDM_jax.core import image
from lDM_jax.core.errors import UserError
from lDM_jax.sampling import pixels as pixels_lib
from lDM_jax.sampling.edits import EditedTrajectory
from lDM_jax.studio import limits, tabs
from lDM_jax.studio.actions import read_record
from lDM_jax.studio.player import Studio
from lDM_jax.studio.served import Served
from lDM_jax.studio.session import Drawing, Session

# The controls that stand in a request under their own names.
COPIED = ("negative", "guidance", "steps", "sampler", "eta")


class Opened(NamedTuple):
    """A file that was opened: its request and edits, and what the controls show of it.

    controls: values by their names; draw: whether it is an image, to be drawn again at
    once, and not a preset.
    """

    controls: dict
    served: Served
    edited: EditedTrajectory
    draw: bool


def received(event: dict) -> tuple[str, bytes]:
    """(name, bytes) of a file in an event. UserError for what is damaged or large."""
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


def opened(studio: Studio, session: Session, event: dict) -> Opened:
    """A PNG or a preset: its request, its edits, and what the controls show of it."""
    name, data = received(event)
    served, edited = read_record(studio, limits.record(data, name))
    controls = controls_of(session, served, edited)
    return Opened(controls, served, edited, data.startswith(b"\x89PNG"))


def controls_of(session: Session, served: Served, edited: EditedTrajectory) -> dict:
    """What the controls show of a request after its edits; images go to the session."""
    request = served.pipe.resolve(edited.final)
    tab = tabs.tab_of(served, request)
    controls = {name: getattr(request, name) for name in COPIED}
    controls |= {"tab": tab.name, "model": served.name}
    controls |= {"prompt": request.prompt or "", "seed": request.seeds[0]}
    if request.size_px is not None:
        names = {extent: name for name, extent in served.sizes.items()}
        controls["size"] = names.get(tuple(request.size_px), next(iter(served.sizes)))
    if request.image is not None:
        session.inputs[tab.name] = request.image
    return controls | tab.restore(request, served)


def preset(studio: Studio, session: Session, controls: dict) -> bytes:
    """What the controls ask for as a JSON file for `sample.py --request`."""
    served, request = studio.request(session, controls)
    record = {"model": served.name, **request.embedded().record()}
    return (json.dumps(record, indent=1) + "\n").encode()


def contact_sheet(drawings: Sequence[Drawing]) -> bytes:
    """All images side by side as a PNG, in the extent of the largest."""
    if not drawings:
        raise UserError("the gallery is empty")
    height, width = (max(d.pixels.shape[axis] for d in drawings) for axis in (0, 1))
    cells = np.full((len(drawings), height, width, 3), 255, np.uint8)
    for cell, drawing in zip(cells, drawings, strict=True):
        h, w = drawing.pixels.shape[:2]
        cell[:h, :w] = drawing.pixels
    return pixels_lib.png(image.grid(cells))
