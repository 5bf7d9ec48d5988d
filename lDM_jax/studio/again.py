"""The moves of the page that begin from a finished picture: vary, redraw, open, undo.

Each is a request like any other, with the picture's pixels in it, so that its result
too can be made again from its own record.
"""

import dataclasses
import random
from collections.abc import Iterator

import numpy as np

from lDM_jax.core.errors import UserError
from lDM_jax.sampling.edits import EditedTrajectory
from lDM_jax.sampling.request import Request
from lDM_jax.studio import limits, tabs
from lDM_jax.studio.actions import Studio, View, adopt, made_run, play, set_pace
from lDM_jax.studio.session import Picture, Session
from lDM_jax.studio.tabs import Served

MORE = 4  # pictures of "more like this"
MORE_STRENGTH = 0.75


def read_record(studio: Studio, stored: dict) -> tuple[Served, EditedTrajectory]:
    """The model and the trajectory of a record. UserError if they cannot be had."""
    name = stored.get("model")
    if name not in studio.models:
        shown = str(name)[:80]
        raise UserError(
            f"the picture was made by the model {shown!r}, which is not loaded: start "
            f"with --model {shown}"
        )
    fields = {key: value for key, value in stored.items() if key != "model"}
    return studio.models[name], limits.checked_trajectory(fields)


def source_of(studio: Studio, session: Session) -> tuple[Served, Picture, Request]:
    """The current picture, its model, and the request that it followed at its end."""
    picture = session.current
    if picture is None:
        raise UserError("there is no picture yet: generate one first")
    served, way = read_record(studio, picture.record)
    return served, picture, way.final


def vary(
    studio: Studio,
    session: Session,
    controls: dict,
    *,
    strength: float,
    count: int = 1,
) -> Iterator[View]:
    """Pictures like the current one: its latents noised to `strength`, new seeds."""
    served, picture, request = source_of(studio, session)
    set_pace(session, controls)
    changes = {"source": None, "image": picture.pixels, "mask": None, "size_px": None}
    if served.pipe.task.own_image:
        changes = {}  # its image is its condition: only the seed can change
    else:
        changes["strength"] = limits.CHECKS["strength"](strength, "strength")
    parent = picture.number
    for _ in range(count):
        seeds = (random.randrange(2**31),)
        wanted = dataclasses.replace(request, **changes, seeds=seeds)
        yield View("preparing", note="Taking the picture back to noise …")
        run = made_run(studio, session, served, wanted)
        adopt(studio, session, {**controls, "tab": "text", "model": served.name})
        yield from play(studio, session, run, parent=parent)
        if not run.done:
            return


def redraw(
    studio: Studio, session: Session, controls: dict, *, mask, words: str, strength
) -> Iterator[View]:
    """Draw the marked part of the current picture anew, blended in the latents."""
    served, picture, request = source_of(studio, session)
    set_pace(session, controls)
    if served.task == "super_resolution":
        raise UserError("an enlarged picture cannot be redrawn in part")
    where = tabs.painted(mask, picture.pixels.shape[:2], "mask") > 0
    if not where.any():
        raise UserError("mark the part that is to be drawn anew")
    changes = {"image": picture.pixels, "mask": where.astype(np.int32), "source": None}
    changes |= {"seeds": (random.randrange(2**31),), "size_px": None}
    if served.task != "inpaint":
        changes["strength"] = limits.CHECKS["strength"](strength, "strength")
    if served.task == "text" and words:
        changes |= {"prompt": limits.CHECKS["prompt"](words, "prompt")}
        changes |= {"regions": None, "regional": "attention"}
    yield View("preparing", note="Holding what is to stay …")
    wanted = dataclasses.replace(request, **changes)
    run = made_run(studio, session, served, wanted)
    adopt(studio, session, {**controls, "tab": "text", "model": served.name})
    yield from play(studio, session, run, parent=picture.number)


def reopen(
    studio: Studio,
    session: Session,
    served: Served,
    way: EditedTrajectory,
    controls: dict,
) -> Iterator[View]:
    """Draw a trajectory again, step by step as it was."""
    yield View("preparing", note="Reading the request …")
    more = dict(script=way.edits, until=way.until)
    run = made_run(studio, session, served, way.request, **more)
    adopt(studio, session, controls)
    yield from play(studio, session, run)


def undo(session: Session) -> Picture:
    """Back to the picture that the current one was made from."""
    current = session.current
    parent = session.find(current.parent) if current else None
    if parent is None:
        raise UserError("there is nothing to undo: this picture was made from no other")
    return choose(session, parent.number)


def choose(session: Session, number: int) -> Picture:
    """A picture of the gallery becomes the current one."""
    picture = session.find(number)
    if picture is None:
        raise UserError(f"picture {number} is no longer in the gallery")
    session.current = picture
    return picture
