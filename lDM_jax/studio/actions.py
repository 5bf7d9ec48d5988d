"""The moves of the page that concern one trajectory: generate, edit, go on, go back.

Every move takes the studio and a session and changes the session; what draws yields a
`View` for each step. What begins from a finished picture is `studio.again`. Knows
neither the web toolkit nor HTML. UserError for what cannot be done. Reading order:
View, Studio, `play`, the moves.
"""

import contextlib
import dataclasses
import sys
import time
import traceback
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from lDM_jax.core.errors import UserError
from lDM_jax.sampling.request import Request, changed_fields
from lDM_jax.studio import limits, tabs
from lDM_jax.studio.queue import Turns
from lDM_jax.studio.run import Run
from lDM_jax.studio.session import Session, Sessions
from lDM_jax.studio.tabs import Served

# What may change while a picture is drawn.
LIVE = ("prompt", "negative", "guidance", "strength", "mask", "regions")
LIVE += ("layout", "segmentation", "label", "image")
NAP_SECS = 0.02
MOVING = ("preparing", "playing")


class View(NamedTuple):
    """What the page shows of a session.

    state: idle, preparing, playing, paused, stopped or done, or "" where only the note
    is new; pixels: uint8 "h w 3"; error: of a change that was refused; kept: a picture
    went to the gallery.
    """

    state: str
    step: int = 0
    total: int = 0
    pixels: np.ndarray | None = None
    spent_secs: float = 0.0
    left_secs: float = 0.0
    note: str = ""
    error: str = ""
    kept: bool = False


class Studio:
    """The models, the sessions, and whose turn it is."""

    def __init__(self, models: dict[str, Served]):
        self.models, self.sessions, self.turns = models, Sessions(), Turns()
        self.compiled: set = set()

    def served(self, controls: dict) -> Served:
        """The model that the controls name. UserError if the tab has none."""
        tab = controls["tab"]
        names = tabs.serving(tab, self.models) if tab in tabs.TABS else []
        if not names:
            wanted = tabs.TABS.get(tab, tabs.TABS["text"])
            raise UserError(f"no loaded model does this: {tabs.command(wanted)}")
        name = controls["model"] if controls["model"] in names else names[0]
        return self.models[name]

    def warm(self, served: Served) -> None:
        """Compile what the first picture of a model needs, with its defaults."""
        run = Run(served.pipe, served.name, example(served))
        run.advance()
        self.compiled.add(run.program)
        run.look()


def example(served: Served) -> Request:
    """Some request of the model's task."""
    side = served.side_px
    blank = np.full((side, side, 3), 255, np.uint8)
    fields = {
        "text": {"prompt": "a"},
        "class": {"label": 0},
        "layout": {"layout": [(0, (0.25, 0.25, 0.5, 0.5))]},
        "semantic": {"segmentation": np.zeros((side, side), np.int32)},
        "inpaint": {"image": blank, "mask": np.ones((side, side), np.int32)},
    }
    if served.task == "super_resolution":
        small = side // served.pipe.config.low_res.factor
        return Request(image=blank[:small, :small])
    return Request(**fields.get(served.task, {}))


def play(
    studio: Studio,
    session: Session,
    run: Run,
    *,
    steps: int | None = None,
    title: str = "",
    parent: int = 0,
    fresh: bool = True,
) -> Iterator[View]:
    """Draw until the end, a pause, a stop, or `steps` steps; a view for each step.

    Ends silently when another player takes over or the tab is closed.
    """
    player = session.begin(run, fresh=fresh)
    made = refused = 0
    while session.plays(player) and session.wish == "play" and not run.done:
        if steps is not None and made >= steps:
            break
        if run.program not in studio.compiled:
            note = f"Compiling for {run.total} steps of {run.request.sampler}, once …"
            yield View("preparing", run.step, run.total, note=note)
        began, error = time.monotonic(), ""
        with studio.turns.turn(), session.lock:
            if not session.plays(player) or session.wish != "play":
                break
            try:
                run.advance()
                studio.compiled.add(run.program)
                made, refused = made + 1, 0
            except UserError as refusal:
                error, refused = str(refusal), refused + 1
                if refused > 2:
                    session.wish = "pause"
            pixels = current_pixels(session, run)
        spent = time.monotonic() - began
        session.spent_secs += spent
        yield _view(session, run, "playing", pixels, error=error)
        wait_until(began + session.pace_secs, session, player)
    if session.plays(player):
        yield _end(studio, session, run, player, title, parent)


def current_pixels(session: Session, run: Run) -> np.ndarray:
    """The small picture of the last step, or the decoded one if that is wished."""
    if session.sharp and len(run.marks) > 1:
        return run.look()
    return run.marks[-1].preview


def _view(session: Session, run: Run, state: str, pixels, **more) -> View:
    made = max(1, run.step - run.marks[0].step.step)
    left = session.spent_secs / made * max(0, run.last - run.step)
    times = dict(spent_secs=session.spent_secs, left_secs=left)
    return View(state, run.step, run.last, pixels, **times, **more)


def _end(studio, session, run, player, title, parent) -> View:
    """What stands there when a player stops: done, stopped or paused."""
    with studio.turns.turn(), session.lock:
        if not session.plays(player):
            return View("idle")
        title = title or name_of(run.request)
        if run.done:
            pixels = run.look()
            session.keep(pixels, run.record(), title, parent)
            return _view(session, run, "done", pixels, kept=True)
        if session.wish == "stop" and len(run.marks) > 1:
            pixels = run.look()
            session.made(pixels, run.record(), title, parent)
            return _view(session, run, "stopped", pixels)
        session.wish = "pause"
        return _view(session, run, "paused", current_pixels(session, run))


def present(session: Session) -> View:
    """The session as it stands, nobody playing."""
    run = session.run
    with session.lock:
        if run is None or len(run.marks) < 2:
            return View("idle")
        state = "done" if run.done else "paused"
        return _view(session, run, state, current_pixels(session, run))


def name_of(request: Request) -> str:
    """A few words for a picture."""
    words = request.prompt or ""
    if request.regions:
        words = " + ".join([words, *(region[0] for region in request.regions)])
    if request.label is not None:
        words = f"class {request.label}"
    return words or "picture"


def wait_until(moment: float, session: Session, player: int) -> None:
    """Let time pass, but not if something else is wished."""
    while session.plays(player) and session.wish == "play":
        left = moment - time.monotonic()
        if left <= 0:
            return
        time.sleep(min(left, NAP_SECS))


def generate(studio: Studio, session: Session, controls: dict) -> Iterator[View]:
    """A new picture from the controls."""
    served = studio.served(controls)
    wanted = tabs.request(controls, served, session.inputs)
    set_pace(session, controls)
    yield View("preparing", note="Reading the request …")
    run = made_run(studio, session, served, wanted)
    session.tab, session.seen = controls["tab"], wanted
    yield from play(studio, session, run)


def made_run(studio: Studio, session: Session, served: Served, wanted, **more) -> Run:
    """A run; conditions and first latents are computed in turn."""
    with studio.turns.turn():
        return Run(served.pipe, served.name, wanted, **more)


def set_pace(session: Session, controls: dict) -> None:
    """How long a step takes at least, and how it is shown."""
    session.pace_secs = limits.pace(controls["pace"])
    session.sharp = bool(controls["sharp"])


def edit(studio: Studio, session: Session, controls: dict) -> str:
    """Announce what changed in the controls to the run; what to say about it."""
    set_pace(session, controls)
    run = session.run
    if run is None or run.done or session.seen is None:
        return ""
    controls = {**controls, "tab": session.tab, "model": run.model}
    served = studio.served(controls)
    wanted = tabs.request(controls, served, session.inputs)
    changed = changed_fields(session.seen, wanted)
    changes = {name: getattr(wanted, name) for name in LIVE if name in changed}
    session.seen = wanted
    if not changes:
        return ""
    run.edit(changes)
    return f"From step {run.step + 1} on: {listed(changes)}"


def adopt(studio: Studio, session: Session, controls: dict) -> None:
    """Take what the controls say as known: only later changes of them are edits."""
    session.tab, session.seen = controls["tab"], None
    with contextlib.suppress(UserError):
        served = studio.served(controls)
        session.seen = tabs.request(controls, served, session.inputs)


def listed(changes: dict) -> str:
    """Changes in words."""
    return ", ".join(
        f"{name} “{value}”" if isinstance(value, (str, int, float)) else name
        for name, value in changes.items()
    )


def enter(studio: Studio, session: Session, controls: dict) -> Iterator[View]:
    """Enter in a text: a change of the running picture, or else a new one."""
    run = session.run
    if run is None or run.done or session.wish == "stop":
        yield from generate(studio, session, controls)
        return
    yield View("", note=edit(studio, session, controls))


def go_on(
    studio: Studio, session: Session, controls: dict, *, steps: int | None = None
) -> Iterator[View]:
    """Continue the run with what the controls say now; steps: only so many.

    A step after the last one, or with no run, is the first step of a new picture.
    """
    run = session.run
    if steps is not None and (run is None or run.done):
        session.wish = "pause"
        yield from first_step(studio, session, controls)
        return
    if run is None:
        raise UserError("there is nothing to continue: generate a picture first")
    if run.done:
        raise UserError("the picture is finished: go back to a step, or generate")
    edit(studio, session, controls)
    yield from play(studio, session, run, steps=steps, fresh=False)


def first_step(studio: Studio, session: Session, controls: dict) -> Iterator[View]:
    """Begin a new picture and pause after its first step."""
    served = studio.served(controls)
    wanted = tabs.request(controls, served, session.inputs)
    run = made_run(studio, session, served, wanted)
    session.tab, session.seen = controls["tab"], wanted
    yield from play(studio, session, run, steps=1)


def halt(studio: Studio, session: Session, wish: str) -> View | None:
    """Pause or stop. A view only if nobody is playing who would yield it."""
    run, before = session.run, session.wish
    session.wish = wish
    if run is None or run.done or before == "play" or len(run.marks) == 1:
        return None
    return _end(studio, session, run, session.player, "", 0)


def rewind(session: Session, step: int) -> View:
    """Back to an earlier step, paused there."""
    run = session.run
    if run is None:
        raise UserError("there is no history yet: generate a picture first")
    session.wish = "pause"
    session.player += 1  # who plays ends
    with session.lock:
        undone = run.rewind(step)
        if session.seen is not None:
            # what the page still shows of it holds again when it goes on
            back = {name: getattr(run.request, name) for name in undone}
            session.seen = dataclasses.replace(session.seen, **back)
        made = run.step - run.marks[0].step.step
        session.spent_secs = min(session.spent_secs, made * 0.1)
        note = f"At step {run.step} of {run.total}: change the words and resume"
        return _view(session, run, "paused", current_pixels(session, run), note=note)


def look(studio: Studio, session: Session) -> View:
    """The present step by the full decoder."""
    run = session.run
    if run is None:
        raise UserError("there is nothing to look at: generate a picture first")
    with studio.turns.turn(), session.lock:
        pixels = run.look()
        session.made(pixels, run.record(), name_of(run.request))
        state = "done" if run.done else "paused"
        if session.wish == "play" and not run.done:
            state = "playing"
        return _view(session, run, state, pixels, note="decoded in full")


def report(error: BaseException) -> str:
    """An error as one line for the page; what is not the user's goes to stderr too."""
    if isinstance(error, UserError):
        return " ".join(str(error).split())
    sys.stderr.write("".join(traceback.format_exception(error)))
    return f"Something went wrong ({type(error).__name__}); the server's log says what"
