"""What a person does on the page: generate, edit, go back, vary, draw a part anew.

Every action takes the studio and a session and changes the session; what draws yields a
`View` for each step (`studio.player`). Those that begin from a finished image are
requests like any other, with its pixels in them, so that their results too can be made
again from their own records. UserError for what cannot be done.
"""

import contextlib
import dataclasses
import random
from collections.abc import Generator, Iterator

import numpy as np

from lDM_jax.core.errors import UserError
from lDM_jax.sampling.edits import EditedTrajectory
from lDM_jax.sampling.request import Request, changed_fields
from lDM_jax.studio import limits, painter, player, tabs
from lDM_jax.studio.player import Studio, View
from lDM_jax.studio.run import Run
from lDM_jax.studio.served import Served
from lDM_jax.studio.session import Drawing, Session

# Fields of the request that may change while an image is drawn.
LIVE = ("prompt", "negative", "guidance", "strength", "mask", "regions", "layout")
LIVE += ("segmentation", "label", "image")
MORE = 4  # images of "more like this"
MORE_STRENGTH = 0.75


def generate(
    studio: Studio, session: Session, controls: dict, *, steps: int | None = None
) -> Iterator[View]:
    """A new image from the controls; steps: paused after so many."""
    served, request = studio.request(session, controls)
    player.set_pace(session, controls)
    yield View("preparing", note="Reading the request …")
    run = studio.start(served, request)
    session.tab, session.request = controls["tab"], request
    yield from player.play(studio, session, run, steps=steps)


def edit(studio: Studio, session: Session, controls: dict) -> str:
    """Announce what changed in the controls to the run; what to say about it."""
    player.set_pace(session, controls)
    run, before = session.run, session.request
    if run is None or run.done or before is None:
        return ""
    controls = {**controls, "tab": session.tab, "model": run.model}
    _, request = studio.request(session, controls)
    changed = changed_fields(before, request)
    changes = {name: getattr(request, name) for name in LIVE if name in changed}
    session.request = request
    if not changes:
        return ""
    run.edit(changes)
    return f"From step {run.step + 1} on: {player.describe(changes)}"


def adopt(studio: Studio, session: Session, controls: dict) -> None:
    """Take what the controls say as known: only later changes of them are edits."""
    session.tab, session.request = controls["tab"], None
    with contextlib.suppress(UserError):
        _, session.request = studio.request(session, controls)


def enter(studio: Studio, session: Session, controls: dict) -> Iterator[View]:
    """Enter in a text: a change of the running image, or else a new one."""
    run = session.run
    if run is None or run.done or session.command == "stop":
        yield from generate(studio, session, controls)
        return
    yield View("", note=edit(studio, session, controls))


def resume(
    studio: Studio, session: Session, controls: dict, *, steps: int | None = None
) -> Iterator[View]:
    """Continue the run with what the controls say now; steps: only so many.

    A step after the last one, or with no run, is the first step of a new image.
    """
    run = session.run
    if steps is not None and (run is None or run.done):
        session.command = "pause"
        yield from generate(studio, session, controls, steps=steps)
        return
    if run is None:
        raise UserError("there is nothing to continue: generate a picture first")
    if run.done:
        raise UserError("the picture is finished: go back to a step, or generate")
    edit(studio, session, controls)
    yield from player.play(studio, session, run, steps=steps, fresh=False)


def halt(studio: Studio, session: Session, command: str) -> View | None:
    """Pause or stop. A view only if nobody is playing who would yield it."""
    run, before = session.run, session.command
    session.command = command
    if run is None or run.done or before == "play" or not run.begun:
        return None
    return player.end(studio, session, run, session.player)


def rewind(session: Session, step: int) -> View:
    """Back to an earlier step, paused there."""
    run = session.run
    if run is None:
        raise UserError("there is no history yet: generate a picture first")
    session.command = "pause"
    session.player += 1  # who plays ends
    with session.lock:
        undone = run.rewind(step)
        if session.request is not None:
            # what the page still shows of it holds again when it goes on
            back = {name: getattr(run.request, name) for name in undone}
            session.request = dataclasses.replace(session.request, **back)
        session.spent_secs = min(session.spent_secs, run.made * 0.1)
        note = f"At step {run.step} of {run.total}: change the words and resume"
        return player.view_of(session, run, "paused", note=note)


def look(studio: Studio, session: Session) -> View:
    """The present step by the full decoder."""
    run = session.run
    if run is None:
        raise UserError("there is nothing to look at: generate a picture first")
    with studio.devices, session.lock:
        pixels = run.look()
        session.show(pixels, run.record(), player.title_of(run.request))
        state = "done" if run.done else "paused"
        if session.command == "play" and not run.done:
            state = "playing"
        return player.view_of(session, run, state, pixels, note="decoded in full")


def read_record(studio: Studio, stored: dict) -> tuple[Served, EditedTrajectory]:
    """The model of a record, its request and edits. UserError without that model."""
    name = stored.get("model")
    if name not in studio.models:
        name = str(name)[:80]
        raise UserError(
            f"the picture was made by the model {name!r}, which is not loaded: start "
            f"with --model {name}"
        )
    fields = {key: value for key, value in stored.items() if key != "model"}
    return studio.models[name], limits.checked_trajectory(fields)


def source_of(studio: Studio, session: Session) -> tuple[Served, Drawing, Request]:
    """The current image, its model, and the request that it followed at its end."""
    current = session.current
    if current is None:
        raise UserError("there is no picture yet: generate one first")
    served, edited = read_record(studio, current.record)
    return served, current, edited.final


def vary(
    studio: Studio, session: Session, controls: dict, *, strength: float, count: int = 1
) -> Iterator[View]:
    """Images like the current one: its latents noised to `strength`, new seeds."""
    served, current, request = source_of(studio, session)
    player.set_pace(session, controls)
    changes = {"source": None, "image": current.pixels, "mask": None, "size_px": None}
    if served.task.own_image:
        changes = {}  # its image is its condition: only the seed can change
    else:
        changes["strength"] = limits.CHECKS["strength"](strength, "strength")
    for _ in range(count):
        yield View("preparing", note="Taking the picture back to noise …")
        varied = dataclasses.replace(request, **changes, seeds=random_seeds())
        run = yield from play_from(studio, session, controls, served, varied, current)
        if not run.done:
            return


def redraw(
    studio: Studio, session: Session, controls: dict, *, mask, words: str, strength
) -> Iterator[View]:
    """Draw the marked part of the current image anew, blended in the latents."""
    served, current, request = source_of(studio, session)
    player.set_pace(session, controls)
    if served.task.field == "image":
        raise UserError("an enlarged picture cannot be redrawn in part")
    where = painter.label_map(mask, current.pixels.shape[:2], "mask") > 0
    if not where.any():
        raise UserError("mark the part that is to be drawn anew")
    changes = {"image": current.pixels, "mask": where.astype(np.int32), "source": None}
    changes |= {"seeds": random_seeds(), "size_px": None}
    if not served.task.own_image:
        changes["strength"] = limits.CHECKS["strength"](strength, "strength")
    if served.task.field == "prompt" and words:
        changes |= {"prompt": limits.CHECKS["prompt"](words, "prompt")}
        changes |= {"regions": None, "regional": "attention"}
    yield View("preparing", note="Holding what is to stay …")
    changed = dataclasses.replace(request, **changes)
    yield from play_from(studio, session, controls, served, changed, current)


def random_seeds() -> tuple[int]:
    """One new seed."""
    return (random.randrange(2**31),)


def play_from(
    studio: Studio,
    session: Session,
    controls: dict,
    served: Served,
    request: Request,
    parent: Drawing,
) -> Generator[View, None, Run]:
    """Draw a request that was made from a finished image; its words can be edited."""
    run = studio.start(served, request)
    adopt(studio, session, {**controls, "tab": tabs.Text.name, "model": served.name})
    yield from player.play(studio, session, run, parent=parent.number)
    return run


def reopen(
    studio: Studio,
    session: Session,
    served: Served,
    edited: EditedTrajectory,
    controls: dict,
) -> Iterator[View]:
    """Draw a request again with its edits, step by step as it was."""
    yield View("preparing", note="Reading the request …")
    run = studio.start(served, edited.request, script=edited.edits, until=edited.until)
    adopt(studio, session, controls)
    yield from player.play(studio, session, run)


def undo(session: Session) -> Drawing:
    """Back to the image that the current one was made from."""
    current = session.current
    parent = session.find(current.parent) if current else None
    if parent is None:
        raise UserError("there is nothing to undo: this picture was made from no other")
    return choose(session, parent.number)


def choose(session: Session, number: int) -> Drawing:
    """An image of the gallery becomes the current one."""
    drawing = session.find(number)
    if drawing is None:
        raise UserError(f"picture {number} is no longer in the gallery")
    session.current = drawing
    return drawing
