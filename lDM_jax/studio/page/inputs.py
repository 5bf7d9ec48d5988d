"""Events of what goes in: tabs and their own events, models, opened files, presets."""

import random
from collections.abc import Iterator

from lDM_jax.studio import actions, files, fragments, tabs
from lDM_jax.studio.page import layout
from lDM_jax.studio.page.wiring import Wiring, updates
from lDM_jax.studio.player import Studio, View
from lDM_jax.studio.session import Session
from lDM_jax.studio.tabs import TABS

DEFAULTS = ("guidance", "steps", "sampler", "size")


class Inputs(Wiring):
    """The wiring with these events."""

    def __init__(self, studio: Studio, c: dict):
        super().__init__(studio, c)
        self._settings()
        self._files()
        for tab in TABS.values():
            if tabs.serving(tab.name, studio.models):
                tab.wire(self)

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
