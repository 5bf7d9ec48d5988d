"""Drawing a run step by step: what the page shows of it, and who draws when.

`play` yields a `View` for each step and heeds the session's command between them. Knows
neither the web toolkit nor HTML. What people may do is `studio.actions`. Reading order:
View, FairLock (several people share the devices), Studio, `play`.
"""

import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from lDM_jax.core.errors import UserError
from lDM_jax.sampling.request import Request
from lDM_jax.studio import limits, tabs
from lDM_jax.studio.run import Run
from lDM_jax.studio.served import Served
from lDM_jax.studio.session import Session, Sessions

NAP_SECS = 0.02
MOVING = ("preparing", "playing")


class View(NamedTuple):
    """What the page shows of a session.

    state: idle, preparing, playing, paused, stopped or done, or "" where only the note
    is new; pixels: uint8 "h w 3"; error: of a change that was refused; kept: an image
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


class FairLock:
    """`with lock: ...` runs alone, in the order of arrival.

    Whoever has made a step of a trajectory goes to the end of the queue, so that those
    of several people advance side by side, and no one waits for the end of another's.
    """

    def __init__(self):
        self._lock = threading.Lock()
        self._queue: deque[threading.Event] = deque()

    def __enter__(self) -> None:
        mine = threading.Event()
        with self._lock:
            self._queue.append(mine)
            if self._queue[0] is mine:
                mine.set()
        mine.wait()

    def __exit__(self, *error) -> None:
        with self._lock:
            self._queue.popleft()
            if self._queue:
                self._queue[0].set()

    @property
    def waiting(self) -> int:
        """How many are in the queue, with the one that runs."""
        return len(self._queue)


class Studio:
    """The models, the sessions, and the lock of the devices that they share."""

    def __init__(self, models: dict[str, Served]):
        self.models, self.sessions, self.devices = models, Sessions(), FairLock()
        self.compiled: set = set()

    def served(self, controls: dict) -> Served:
        """The model that the controls name. UserError if the tab has none."""
        names = tabs.serving(controls["tab"], self.models)
        if not names:
            tab = tabs.TABS.get(controls["tab"], next(iter(tabs.TABS.values())))
            raise UserError(f"no loaded model does this: {tab.command}")
        name = controls["model"] if controls["model"] in names else names[0]
        return self.models[name]

    def request(self, session: Session, controls: dict) -> tuple[Served, Request]:
        """The model and the checked request of the controls. UserError as both."""
        served = self.served(controls)
        return served, tabs.request(controls, served, session.inputs)

    def start(self, served: Served, request: Request, **more) -> Run:
        """A run; conditions and first latents are computed in turn."""
        with self.devices:
            return Run(served.pipe, served.name, request, **more)

    def warm(self, served: Served) -> None:
        """Compile what the first image of a model needs, with its defaults."""
        run = self.start(served, Request(**tabs.tabs_of(served)[0].example(served)))
        run.advance()
        self.compiled.add(run.program)
        run.look()


def play(
    studio: Studio,
    session: Session,
    run: Run,
    *,
    steps: int | None = None,
    parent: int = 0,
    fresh: bool = True,
) -> Iterator[View]:
    """Draw until the end, a pause, a stop, or `steps` steps; a view for each step.

    parent: the number of the image that it was made from. Ends silently when another
    player takes over or the browser's tab is closed.
    """
    player = session.begin(run, fresh=fresh)
    made = refused = 0
    while session.plays(player) and session.command == "play" and not run.done:
        if steps is not None and made >= steps:
            break
        if run.program not in studio.compiled:
            note = f"Compiling for {run.total} steps of {run.request.sampler}, once …"
            yield View("preparing", run.step, run.total, note=note)
        began, error = time.monotonic(), ""
        with studio.devices, session.lock:
            if not session.plays(player) or session.command != "play":
                break
            try:
                run.advance()
                studio.compiled.add(run.program)
                made, refused = made + 1, 0
            except UserError as refusal:
                error, refused = str(refusal), refused + 1
                if refused > 2:
                    session.command = "pause"
            pixels = current_pixels(session, run)
        spent = time.monotonic() - began
        session.spent_secs += spent
        yield view_of(session, run, "playing", pixels, error=error)
        wait_until(began + session.pace_secs, session, player)
    if session.plays(player):
        yield end(studio, session, run, player, parent)


def current_pixels(session: Session, run: Run) -> np.ndarray:
    """The small image of the last step, or the decoded one if the session is sharp."""
    if session.sharp and run.begun:
        return run.look()
    return run.marks[-1].preview


def view_of(session: Session, run: Run, state: str, pixels=None, **more) -> View:
    """A view of a run, with the times that it took and will take.

    pixels: what is shown; the image of the last step if None.
    """
    pixels = current_pixels(session, run) if pixels is None else pixels
    left = session.spent_secs / max(1, run.made) * max(0, run.last - run.step)
    times = dict(spent_secs=session.spent_secs, left_secs=left)
    return View(state, run.step, run.last, pixels, **times, **more)


def end(
    studio: Studio, session: Session, run: Run, player: int, parent: int = 0
) -> View:
    """What stands there when a player stops: done, stopped or paused."""
    with studio.devices, session.lock:
        if not session.plays(player):
            return View("idle")
        title = title_of(run.request)
        if run.done:
            pixels = run.look()
            session.keep(pixels, run.record(), title, parent)
            return view_of(session, run, "done", pixels, kept=True)
        if session.command == "stop" and run.begun:
            pixels = run.look()
            session.show(pixels, run.record(), title, parent)
            return view_of(session, run, "stopped", pixels)
        session.command = "pause"
        return view_of(session, run, "paused")


def current_view(session: Session) -> View:
    """The session as it stands, nobody playing."""
    run = session.run
    with session.lock:
        if run is None or not run.begun:
            return View("idle")
        return view_of(session, run, "done" if run.done else "paused")


def title_of(request: Request) -> str:
    """A few words for an image."""
    words = request.prompt or ""
    if request.regions:
        words = " + ".join([words, *(region[0] for region in request.regions)])
    if request.label is not None:
        words = f"class {request.label}"
    return words or "picture"


def describe(changes: dict) -> str:
    """Changes of a request in words."""
    return ", ".join(
        f"{name} “{value}”" if isinstance(value, (str, int, float)) else name
        for name, value in changes.items()
    )


def wait_until(moment: float, session: Session, player: int) -> None:
    """Let time pass, but not if something else is commanded."""
    while session.plays(player) and session.command == "play":
        left = moment - time.monotonic()
        if left <= 0:
            return
        time.sleep(min(left, NAP_SECS))


def set_pace(session: Session, controls: dict) -> None:
    """How long a step takes at least, and how it is shown."""
    session.pace_secs = limits.pace(controls["pace"])
    session.sharp = bool(controls["sharp"])


def report(error: BaseException) -> str:
    """An error as one line for the page; what is not the user's goes to stderr too."""
    if isinstance(error, UserError):
        return " ".join(str(error).split())
    sys.stderr.write("".join(traceback.format_exception(error)))
    return f"Something went wrong ({type(error).__name__}); the server's log says what"
