"""How an event of the studio's page becomes an action and its result fragments.

Three kinds of events: `draws`, whose action yields views while an image forms, `tells`,
whose action answers at once, and `on`, a tab's own `tells`. The action gets the
person's session; every error becomes one line on the page. Components are named by
their elem_id.
"""

import time
from collections.abc import Callable, Iterator

import gradio as gr

from lDM_jax.studio import files, fragments, limits, painter, player
from lDM_jax.studio.player import Studio, View
from lDM_jax.studio.session import Session
from lDM_jax.studio.tabs import TABS
from lDM_jax.studio.tabs.tab import Tab

PLAYERS = 8  # trajectories side by side; who comes later waits in the queue
STRIP_SECS = 0.4  # between two views of the history while it grows

# The controls outside the tabs.
SETTINGS = ("tab", "model", "prompt", "negative", "guidance", "steps", "seed")
SETTINGS += ("sampler", "eta", "size", "pace", "sharp")
# What a view changes.
SCREEN = ("stage", "strip", "message", "gallery", "result", "fix")
NOTHING = tuple(gr.skip() for _ in SCREEN)


class Wiring:
    """c: the components by elem_id (`layout`); controls: in the order of events."""

    def __init__(self, studio: Studio, c: dict):
        self.studio, self.c = studio, c
        self.tab_controls = [n for tab in TABS.values() for n in tab.controls]
        self.controls = (*SETTINGS, *self.tab_controls)

    def components(self, names) -> list:
        """The components of these elem_ids."""
        return [self.c[name] for name in names]

    def session(self, request: gr.Request) -> Session:
        return self.studio.sessions.get(request.session_hash)

    def draws(self, trigger: Callable, action: Callable, more: tuple = ()):
        """An event whose action yields views: (session, controls, *more) -> views."""

        def handler(request: gr.Request, *values) -> Iterator[tuple]:
            session = self.session(request)
            controls = dict(zip(self.controls, values, strict=False))
            extra = values[len(self.controls) :]
            yield from self.screens(session, lambda: action(session, controls, *extra))

        return trigger(
            handler,
            self.components((*self.controls, *more)),
            self.components(SCREEN),
            show_progress="hidden",
            trigger_mode="multiple",
            concurrency_id="draw",
            concurrency_limit=PLAYERS,
            api_visibility="private",
        )

    def tells(self, trigger: Callable, action: Callable, inputs=(), outputs=(), **more):
        """An event whose action answers at once: (session, *inputs) -> outputs.

        The message is one of them; where it is not named it comes last. An error leaves
        all others as they are. data: the action gets the event's own data, a dict,
        before inputs.
        """
        named = "message" in outputs
        outputs = [*outputs] if named else [*outputs, "message"]

        def answer(session: Session, *values) -> tuple:
            try:
                answers = action(session, *values)
                return answers if named else (*answers, fragments.message())
            except Exception as error:
                text = fragments.message(player.report(error), error=True)
                return tuple(text if n == "message" else gr.skip() for n in outputs)

        def plain(request: gr.Request, *values):
            return answer(self.session(request), *values)

        def with_data(request: gr.Request, event: gr.EventData, *values):
            data = event._data if isinstance(event._data, dict) else {}
            return answer(self.session(request), data, *values)

        return trigger(
            with_data if more.pop("data", False) else plain,
            self.components(inputs),
            self.components(outputs),
            show_progress="hidden",
            queue=False,
            api_visibility="private",
            **{"trigger_mode": "multiple", **more},
        )

    def on(
        self, tab: Tab, name: str, event: str, action: Callable, inputs=(), outputs=()
    ) -> None:
        """An event of a component of a tab: (session, served, *inputs) -> updates.

        An "upload" gives the file's name and its bytes before the inputs. The updates
        are properties by elem_id, of some of the outputs.
        """
        upload = event == "upload"

        def answer(session: Session, *values) -> tuple:
            file = ()
            if upload:
                event_data, *values = values
                file = files.received(event_data)
            model, *rest = values
            served = self.studio.served({"tab": tab.name, "model": model})
            return updates(outputs, action(session, served, *file, *rest))

        trigger = getattr(self.c[name], event)
        self.tells(trigger, answer, ["model", *inputs], outputs, data=upload)

    def screens(self, session: Session, draw: Callable) -> Iterator[tuple]:
        """Views as fragments; an error as a message, beside what stands there."""
        drawn_secs = 0.0
        yield NOTHING  # the toolkit clears the outputs of what yields nothing
        try:
            for view in draw():
                moving = view.state in player.MOVING
                due = not moving or time.monotonic() - drawn_secs > STRIP_SECS
                if due:
                    drawn_secs = time.monotonic()
                yield screen(session, view, strip=due)
        except Exception as error:
            view = player.current_view(session)
            yield screen(session, view._replace(error=player.report(error)))


def updates(names, properties: dict[str, dict]) -> tuple:
    """An update of each named component; of those without properties, none."""
    return tuple(
        gr.update(**properties[name]) if name in properties else gr.skip()
        for name in names
    )


def screen(session: Session, view: View, *, strip: bool = True) -> tuple:
    """What SCREEN shows of a view."""
    if not view.state:
        line = fragments.message(view.note)
        return tuple(line if name == "message" else gr.skip() for name in SCREEN)
    moving, begins = view.state in player.MOVING, view.state == "preparing"
    line = gr.skip() if moving and not begins else fragments.message()
    if view.error:
        line = fragments.message(view.error, error=True)
    gallery, fix, result = gr.skip(), gr.skip(), gr.skip()
    if view.kept:
        gallery = fragments.gallery(session.gallery, session.current)
    if not moving:
        ready = view.state in ("done", "stopped")
        result = fragments.result(session.current if ready else None)
        if ready:
            fix = gr.update(**painter.over(view.pixels))
    elif begins:
        result = fragments.result(None)
    most = fragments.STRIP if moving else limits.MAX_STEPS
    history = fragments.strip(session.run, most=most) if strip else gr.skip()
    return fragments.stage(view), history, line, gallery, result, fix
