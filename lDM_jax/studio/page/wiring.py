"""How an event of the studio's page becomes a move and its result fragments: `Wiring`.

Two kinds of events: `draws`, whose move yields views while a picture forms, and
`tells`, whose move answers at once. The move gets the person's session; every error
becomes one line on the page. Which event makes which move is `studio_events` and
`studio_inputs`.
"""

import time
from collections.abc import Callable, Iterator

import gradio as gr
import numpy as np

from lDM_jax.studio import actions, fragments, limits
from lDM_jax.studio.actions import Studio, View
from lDM_jax.studio.session import Session

PLAYERS = 8  # trajectories side by side; who comes later waits in line
STRIP_SECS = 0.4  # between two views of the history while it grows

# The controls, in the order in which events receive them.
CONTROLS = ("tab", "model", "prompt", "negative", "guidance", "steps", "seed")
CONTROLS += ("sampler", "eta", "size", "pace", "sharp", "strength", "mask")
CONTROLS += ("inpaint_strength", "regions", "regional", "boxes", "labels", "label")
# What a view changes.
SCREEN = ("stage", "strip", "message", "gallery", "result", "fix")
NOTHING = tuple(gr.skip() for _ in SCREEN)


class Wiring:
    """c: the components by name (`studio_layout`)."""

    def __init__(self, studio: Studio, c: dict):
        self.studio, self.c = studio, c
        self.controls = [c[name] for name in CONTROLS]
        self.screen = [c[name] for name in SCREEN]

    def session(self, request: gr.Request) -> Session:
        return self.studio.sessions.get(request.session_hash)

    def draws(self, trigger: Callable, move: Callable, more: tuple = ()):
        """An event whose move yields views: (session, controls, *more) -> views."""

        def handler(request: gr.Request, *values) -> Iterator[tuple]:
            session = self.session(request)
            controls = dict(zip(CONTROLS, values, strict=False))
            extra = values[len(CONTROLS) :]
            yield from self.shown(session, lambda: move(session, controls, *extra))

        return trigger(
            handler,
            [*self.controls, *(self.c[name] for name in more)],
            self.screen,
            show_progress="hidden",
            trigger_mode="multiple",
            concurrency_id="draw",
            concurrency_limit=PLAYERS,
            api_visibility="private",
        )

    def tells(self, trigger: Callable, move: Callable, inputs=(), outputs=(), **more):
        """An event whose move answers at once: (session, *inputs) -> outputs.

        The message is one of them; where it is not named it comes last. An error leaves
        all others as they are. data: the move gets the event's own data before inputs.
        """
        outputs, line = list(outputs), self.c["message"]
        named = line in outputs
        outputs += [] if named else [line]

        def told(session: Session, *values) -> tuple:
            try:
                found = move(session, *values)
                return found if named else (*found, fragments.message())
            except Exception as error:
                text = fragments.message(actions.report(error), error=True)
                return tuple(text if out is line else gr.skip() for out in outputs)

        def plain(request: gr.Request, *values):
            return told(self.session(request), *values)

        def with_data(request: gr.Request, event: gr.EventData, *values):
            data = event._data if isinstance(event._data, dict) else {}
            return told(self.session(request), data, *values)

        return trigger(
            with_data if more.pop("data", False) else plain,
            list(inputs),
            outputs,
            show_progress="hidden",
            queue=False,
            api_visibility="private",
            **{"trigger_mode": "multiple", **more},
        )

    def shown(self, session: Session, move: Callable) -> Iterator[tuple]:
        """Views as fragments; an error as a message, beside what stands there."""
        drawn_secs = 0.0
        yield NOTHING  # the toolkit clears the outputs of what yields nothing
        try:
            for view in move():
                moving = view.state in actions.MOVING
                due = not moving or time.monotonic() - drawn_secs > STRIP_SECS
                if due:
                    drawn_secs = time.monotonic()
                yield self.screen_of(session, view, strip=due)
        except Exception as error:
            view = actions.present(session)
            yield self.screen_of(session, view._replace(error=actions.report(error)))

    def screen_of(self, session: Session, view: View, *, strip: bool = True) -> tuple:
        """What SCREEN shows of a view."""
        if not view.state:
            return tuple(
                fragments.message(view.note) if name == "message" else gr.skip()
                for name in SCREEN
            )
        moving, begins = view.state in actions.MOVING, view.state == "preparing"
        line = gr.skip() if moving and not begins else fragments.message()
        if view.error:
            line = fragments.message(view.error, error=True)
        kept, fix, result = gr.skip(), gr.skip(), gr.skip()
        if view.kept:
            kept = fragments.gallery(session.pictures, session.current)
        if not moving:
            ready = view.state in ("done", "stopped")
            result = fragments.result(session.current if ready else None)
            if ready:
                fix = paper(view.pixels)
        elif begins:
            result = fragments.result(None)
        most = fragments.STRIP if moving else limits.MAX_STEPS
        history = fragments.strip(session.run, most=most) if strip else gr.skip()
        return fragments.stage(view), history, line, kept, result, fix


def paper(pixels: np.ndarray, value: dict | None = None):
    """A painter over a picture, empty or with a value."""
    return gr.update(
        value=value or {"map": "", "boxes": []},
        background=fragments.shown(pixels, 512),
        extent=list(pixels.shape[:2]),
    )
