"""Which move each event of the studio's page makes, and the server that serves it.

`build` makes the page of components (`studio_layout`) and events, `launch` starts the
server. Here are the events that draw and steer; those of what goes in are in
`studio_inputs`, and how an event becomes a move in `studio_wiring`.
"""

from collections.abc import Callable
from pathlib import Path

import gradio as gr

from lDM_jax.studio import actions, again, files, fragments
from lDM_jax.studio.actions import Studio, View
from lDM_jax.studio.middleware import Guard
from lDM_jax.studio.page import layout
from lDM_jax.studio.page.inputs import Inputs
from lDM_jax.studio.page.wiring import CONTROLS, NOTHING, PLAYERS
from lDM_jax.studio.session import Picture, Session

ASSETS = Path(actions.__file__).parent
WAITING = 64
# Whose changes reach a picture that is being drawn, at once.
TYPED = ("prompt", "negative")
TURNED = ("guidance", "strength", "inpaint_strength", "pace")
PAINTED = ("mask", "regions", "boxes", "labels", "label", "sharp")


def build(studio: Studio) -> gr.Blocks:
    """The page for the studio's models."""
    with gr.Blocks(
        title="Studio",
        analytics_enabled=False,
        fill_width=True,
        delete_cache=(3600, 3600),
    ) as page:
        Page(page, studio, layout.components(studio))
    page.queue(max_size=WAITING, default_concurrency_limit=PLAYERS)
    return page


def launch(page: gr.Blocks, *, host: str, port: int | None, auth, open_browser: bool):
    """Serve the page from threads of its own."""
    styles, painter, rest = (
        (ASSETS / name).read_text() for name in ("page.css", "painter.js", "page.js")
    )
    scripts = f"{painter}\n{rest}"
    page.launch(
        server_name=host,
        server_port=port,
        auth=auth,
        inbrowser=open_browser,
        share=False,
        prevent_thread_lock=True,
        quiet=True,
        show_error=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        enable_monitoring=False,
        footer_links=[],
        max_file_size=1,
        app_kwargs={"middleware": [(Guard, (), {})], "docs_url": None},
        state_session_capacity=100,
        # in the head, since the toolkit narrows the selectors of its own `css`
        head=f"<style>{styles}</style><script>{scripts}</script>",
        theme=gr.themes.Default(
            primary_hue="indigo",
            font=["system-ui", "sans-serif"],
            font_mono=["ui-monospace", "monospace"],
        ),
    )


class Page(Inputs):
    """All events of the page."""

    def __init__(self, page: gr.Blocks, studio: Studio, c: dict):
        super().__init__(studio, c)
        self._draw()
        self._steer()
        self._pictures()
        page.unload(self.leave)

    def leave(self, request: gr.Request) -> None:
        """The tab was closed."""
        self.studio.sessions.drop(request.session_hash)

    def _draw(self) -> None:
        c, studio = self.c, self.studio
        self.draws(c["generate"].click, lambda s, v: actions.generate(studio, s, v))
        for name in TYPED:
            self.draws(c[name].submit, lambda s, v: actions.enter(studio, s, v))
        self.draws(c["resume"].click, lambda s, v: actions.go_on(studio, s, v))
        self.draws(c["step"].click, lambda s, v: actions.go_on(studio, s, v, steps=1))
        self.draws(
            c["vary"].click,
            lambda s, v, part: again.vary(studio, s, v, strength=part),
            ("vary_strength",),
        )
        self.draws(
            c["more"].click,
            lambda s, v: again.vary(
                studio, s, v, strength=again.MORE_STRENGTH, count=again.MORE
            ),
        )
        self.draws(
            c["fix_draw"].click,
            lambda s, v, mask, words, part: again.redraw(
                studio, s, v, mask=mask, words=words, strength=part
            ),
            ("fix", "fix_prompt", "fix_strength"),
        )

    def _steer(self) -> None:
        c, studio = self.c, self.studio

        def edit(session: Session, *values) -> tuple:
            controls = dict(zip(CONTROLS, values, strict=True))
            said = actions.edit(studio, session, controls)
            return (fragments.message(said) if said else gr.skip(),)

        events = [c[name].blur for name in TYPED]
        events += [c[name].input for name in (*TURNED, *PAINTED)]
        for event in events:
            self.tells(
                event, edit, self.controls, [c["message"]], trigger_mode="always_last"
            )
        for name in ("pause", "stop"):
            self.tells(c[name].click, self.halting(name), outputs=self.screen)
        self.tells(
            c["strip"].select,
            lambda s, data: self.screen_of(s, actions.rewind(s, int(data["step"]))),
            outputs=self.screen,
            data=True,
        )
        self.tells(
            c["look"].click,
            lambda s: self.screen_of(s, actions.look(studio, s)),
            outputs=self.screen,
        )

    def halting(self, wish: str) -> Callable:
        """The move of a button that pauses or stops."""

        def halt(session: Session) -> tuple:
            view = actions.halt(self.studio, session, wish)
            if view is None:
                return NOTHING
            return self.screen_of(session, view)

        return halt

    def _pictures(self) -> None:
        c = self.c

        def choose(session: Session, data: dict) -> tuple:
            return self.chosen(session, again.choose(session, int(data["number"])))

        def undo(session: Session) -> tuple:
            return self.chosen(session, again.undo(session))

        def sheet(session: Session) -> tuple:
            png = files.contact_sheet(session.pictures)
            return (fragments.sheet(session.pictures, png),)

        more = dict(outputs=self.screen)
        self.tells(c["gallery"].select, choose, data=True, **more)
        self.tells(c["undo"].click, undo, **more)
        self.tells(c["sheet_make"].click, sheet, outputs=[c["sheet"]])

    def chosen(self, session: Session, picture: Picture) -> tuple:
        """SCREEN for a picture of the gallery."""
        note = f"picture {picture.number}: {picture.title}"
        view = View("done", pixels=picture.pixels, note=note, kept=True)
        return self.screen_of(session, view)
