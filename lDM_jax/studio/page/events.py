"""Which action each event of the studio's page takes, and the server that serves it.

`build` makes the page of components (`layout`) and events, `launch` starts the server.
How an event becomes an action is in `wiring`.
"""

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import gradio as gr

from lDM_jax.studio import actions, files, fragments, tabs
from lDM_jax.studio.middleware import SecurityMiddleware
from lDM_jax.studio.page import layout
from lDM_jax.studio.page.wiring import NOTHING, PLAYERS, SCREEN, Wiring, screen, updates
from lDM_jax.studio.player import Studio, View
from lDM_jax.studio.session import Drawing, Session
from lDM_jax.studio.tabs import TABS

ASSETS = Path(actions.__file__).parent
WAITING = 64
# Settings whose changes reach an image that is being drawn, as all of a tab's controls.
TYPED = ("prompt", "negative")
TURNED = ("guidance", "pace", "sharp")
DEFAULTS = ("guidance", "steps", "sampler", "size")


def build(studio: Studio) -> gr.Blocks:
    """The page for the studio's models."""
    options = dict(analytics_enabled=False, fill_width=True, delete_cache=(3600, 3600))
    with gr.Blocks(title="Studio", **options) as page:
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
        app_kwargs={"middleware": [(SecurityMiddleware, (), {})], "docs_url": None},
        state_session_capacity=100,
        # in the head, since the toolkit narrows the selectors of its own `css`
        head=f"<style>{styles}</style><script>{scripts}</script>",
        theme=gr.themes.Default(
            primary_hue="indigo",
            font=["system-ui", "sans-serif"],
            font_mono=["ui-monospace", "monospace"],
        ),
    )


class Page(Wiring):
    """All events of the page: what goes in, what draws and steers, the gallery."""

    def __init__(self, page: gr.Blocks, studio: Studio, c: dict):
        super().__init__(studio, c)
        self._settings()
        self._files()
        for tab in TABS.values():
            if tabs.serving(tab.name, studio.models):
                tab.wire(self)
        self._draw()
        self._steer()
        self._gallery()
        page.unload(self.leave)

    def leave(self, request: gr.Request) -> None:
        """The browser's tab was closed."""
        self.studio.sessions.drop(request.session_hash)

    def _settings(self) -> None:
        c, chosen = self.c, ("tab", "model")
        outputs = ("model", *DEFAULTS)
        self.tells(c["tab"].select, self.tab_chosen, chosen, outputs)
        outputs = (*DEFAULTS, *self.tab_controls)
        self.tells(c["model"].input, self.model_chosen, chosen, outputs)
        seed = lambda session: (random.randrange(2**31),)  # noqa: E731
        self.tells(c["new_seed"].click, seed, outputs=["seed"])

    def tab_chosen(self, session: Session, tab: str, model: str) -> tuple:
        """The models of a tab; the settings follow if the model is another one."""
        names, settings = tabs.serving(tab, self.studio.models), {}
        if names:
            settings["model"] = {"choices": names}
        if names and model not in names:
            settings["model"]["value"] = names[0]
            settings |= layout.defaults(self.studio.models[names[0]])
        return updates(("model", *DEFAULTS), settings)

    def model_chosen(self, session: Session, tab: str, model: str) -> tuple:
        """Settings and the tab's components for another of its models."""
        served = self.studio.served({"tab": tab, "model": model})
        settings = layout.defaults(served) | TABS[tab].fit(served)
        return updates((*DEFAULTS, *self.tab_controls), settings)

    def _files(self) -> None:
        c, studio = self.c, self.studio

        def fill(session: Session, data: dict) -> tuple:
            session.opened = None
            session.opened = files.opened(studio, session, data)
            return self.restored(session)

        def draw(session: Session, controls: dict) -> Iterator[View]:
            file, session.opened = session.opened, None
            if file is not None and file.draw:
                yield from actions.reopen(
                    studio, session, file.served, file.edited, controls
                )

        def save(session: Session, *values) -> tuple:
            controls = dict(zip(self.controls, values, strict=True))
            data = files.preset(studio, session, controls)
            kind, text = "application/json", "Download the preset"
            return (fragments.link("preset_link", "preset.json", kind, data, text),)

        upload = c["open"].upload
        opened = self.tells(upload, fill, outputs=self.controls, data=True)
        self.draws(opened.then, draw)
        self.tells(c["preset_save"].click, save, self.controls, ["preset"])

    def restored(self, session: Session) -> tuple:
        """The controls after a file was opened; what it does not say stays."""
        values = session.opened.controls
        name = values["tab"]
        changes = TABS[name].restored(values, session.inputs)
        changes["model"]["choices"] = tabs.serving(name, self.studio.models)
        return updates(self.controls, changes)

    def _draw(self) -> None:
        c, studio = self.c, self.studio
        more = dict(strength=actions.MORE_STRENGTH, count=actions.MORE)
        self.draws(c["generate"].click, lambda s, v: actions.generate(studio, s, v))
        for name in TYPED:
            self.draws(c[name].submit, lambda s, v: actions.enter(studio, s, v))
        self.draws(c["resume"].click, lambda s, v: actions.resume(studio, s, v))
        self.draws(c["step"].click, lambda s, v: actions.resume(studio, s, v, steps=1))
        self.draws(
            c["vary"].click,
            lambda s, v, part: actions.vary(studio, s, v, strength=part),
            ("vary_strength",),
        )
        self.draws(c["more"].click, lambda s, v: actions.vary(studio, s, v, **more))
        self.draws(
            c["fix_draw"].click,
            lambda s, v, mask, words, part: actions.redraw(
                studio, s, v, mask=mask, words=words, strength=part
            ),
            ("fix", "fix_prompt", "fix_strength"),
        )

    def _steer(self) -> None:
        c, studio = self.c, self.studio

        def edit(session: Session, *values) -> tuple:
            controls = dict(zip(self.controls, values, strict=True))
            note = actions.edit(studio, session, controls)
            return (fragments.message(note) if note else gr.skip(),)

        events = [c[name].blur for name in TYPED]
        events += [c[name].input for name in (*TURNED, *self.tab_controls)]
        for event in events:
            inputs, mode = self.controls, "always_last"
            self.tells(event, edit, inputs, ["message"], trigger_mode=mode)
        for name in ("pause", "stop"):
            self.tells(c[name].click, self.halting(name), outputs=SCREEN)
        self.tells(
            c["strip"].select,
            lambda s, data: screen(s, actions.rewind(s, int(data["step"]))),
            outputs=SCREEN,
            data=True,
        )
        look = lambda s: screen(s, actions.look(studio, s))  # noqa: E731
        self.tells(c["look"].click, look, outputs=SCREEN)

    def halting(self, command: str) -> Callable:
        """The action of a button that pauses or stops."""

        def halt(session: Session) -> tuple:
            view = actions.halt(self.studio, session, command)
            return NOTHING if view is None else screen(session, view)

        return halt

    def _gallery(self) -> None:
        c = self.c

        def choose(session: Session, data: dict) -> tuple:
            return chosen(session, actions.choose(session, int(data["number"])))

        def undo(session: Session) -> tuple:
            return chosen(session, actions.undo(session))

        def sheet(session: Session) -> tuple:
            png = files.contact_sheet(session.gallery)
            name = "contact-sheet.png"
            text = f"Download the sheet of {len(session.gallery)} pictures"
            return (fragments.link("sheet_link", name, "image/png", png, text),)

        self.tells(c["gallery"].select, choose, outputs=SCREEN, data=True)
        self.tells(c["undo"].click, undo, outputs=SCREEN)
        self.tells(c["sheet_make"].click, sheet, outputs=["sheet"])


def chosen(session: Session, drawing: Drawing) -> tuple:
    """SCREEN for an image of the gallery."""
    note = f"picture {drawing.number}: {drawing.title}"
    view = View("done", pixels=drawing.pixels, note=note, kept=True)
    return screen(session, view)
