"""Events of what goes in: tabs, models, uploads, opened files, presets.

What is made of a file is `lDM_jax.studio.files`.
"""

import random
from collections.abc import Callable, Iterator

import gradio as gr
import numpy as np

from lDM_jax.core.errors import UserError
from lDM_jax.sampling import pixels as pixels_lib
from lDM_jax.studio import again, files, fragments, limits, tabs
from lDM_jax.studio.actions import Studio, View
from lDM_jax.studio.page import layout
from lDM_jax.studio.page.wiring import CONTROLS, Wiring, paper
from lDM_jax.studio.session import Session

DEFAULTS = ("guidance", "steps", "sampler", "size")
FITTED = ("boxes", "labels", "label")
FILLED = ("tab", "model", "prompt", "negative", *DEFAULTS, "seed", "eta", "strength")
FILLED += ("inpaint_strength", "mask", "regions", "regional", *FITTED)


class Inputs(Wiring):
    """The wiring with these events."""

    def __init__(self, studio: Studio, c: dict):
        super().__init__(studio, c)
        self._inputs()
        self._uploads()
        self._files()

    def _inputs(self) -> None:
        c = self.c
        self.tells(
            c["tab"].select,
            self.tab_chosen,
            [c["tab"], c["model"]],
            [c[key] for key in ("model", *DEFAULTS)],
        )
        self.tells(
            c["model"].input,
            lambda s, tab, model: self.model_chosen(tab, model),
            [c["tab"], c["model"]],
            [c[key] for key in (*DEFAULTS, *FITTED)],
        )
        self.tells(
            c["size"].change,
            lambda s, model, size: (self.regions_paper(model, size),),
            [c["model"], c["size"]],
            [c["regions"]],
        )
        seed = lambda s: (random.randrange(2**31),)  # noqa: E731
        self.tells(c["new_seed"].click, seed, outputs=[c["seed"]])

    def tab_chosen(self, session: Session, tab: str, model: str) -> tuple:
        """The models of a tab; the settings follow if the model is another one."""
        names = tabs.serving(tab, self.studio.models) if tab in tabs.TABS else []
        if not names or model in names:
            choices = gr.update(choices=names) if names else gr.skip()
            return choices, *(gr.skip() for _ in DEFAULTS)
        served = self.studio.models[names[0]]
        found = gr.update(choices=names, value=names[0])
        return found, *settings_of(served)

    def model_chosen(self, tab: str, model: str) -> tuple:
        """Settings and painters for a model of a tab."""
        served = self.studio.served({"tab": tab, "model": model})
        named = gr.update(choices=served.labels, value=(served.labels or [None])[0])
        side = [served.side_px] * 2
        fits = {
            "boxes": gr.update(labels=served.labels, extent=side),
            "labels": gr.update(labels=served.labels, extent=side),
            "label": named,
        }
        own = {"layout": "boxes", "semantic": "labels", "class": "label"}
        mine = own.get(served.task)
        painters = (fits[name] if name == mine else gr.skip() for name in FITTED)
        return *settings_of(served), *painters

    def regions_paper(self, model: str, size: str):
        """The painter of regions at the chosen size."""
        served = self.studio.models.get(model)
        if served is None or size not in served.sizes:
            return gr.skip()
        return gr.update(extent=list(served.sizes[size]))

    def _uploads(self) -> None:
        c = self.c
        for name in ("image", "inpaint", "super_resolution"):
            outputs = [c[name], *([c["mask"]] if name == "inpaint" else [])]
            self.tells(
                c[name].upload, self.taking(name), [c["model"]], outputs, data=True
            )
        for name in ("image", "inpaint"):
            outputs = [c[name], *([c["mask"]] if name == "inpaint" else [])]
            self.tells(c[f"{name}_use"].click, self.using(name), [c["model"]], outputs)
        self.tells(
            c["extend"].click,
            self.extend,
            [c["model"], c["extend_sides"], c["extend_share"]],
            [c["inpaint"], c["mask"]],
        )
        self.tells(
            c["label_map"].upload,
            lambda s, data, model: (
                files.label_map(self.model_of("semantic", model), data),
            ),
            [c["model"]],
            [c["labels"]],
            data=True,
        )
        self.tells(
            c["colours"].upload,
            lambda s, data, model, size, value: (
                files.coloured(self.model_of("regions", model), size, value, data),
            ),
            [c["model"], c["size"], c["regions"]],
            [c["regions"]],
            data=True,
        )

    def model_of(self, tab: str, model: str) -> tabs.Served:
        """The chosen model of a tab."""
        return self.studio.served({"tab": tab, "model": model})

    def taking(self, tab: str) -> Callable:
        """The move that takes an upload for a tab."""

        def take(session: Session, data: dict, model: str) -> tuple:
            served = self.model_of(tab, model)
            return laid(tab, files.take(session, served, tab, data))

        return take

    def using(self, tab: str) -> Callable:
        """The move that takes the current picture for a tab."""

        def use(session: Session, model: str) -> tuple:
            served = self.model_of(tab, model)
            return laid(tab, files.use_current(session, served, tab))

        return use

    def extend(self, session: Session, model: str, sides, share) -> tuple:
        """More canvas around the picture to complete, masked."""
        pixels = session.inputs.get("inpaint")
        if pixels is None:
            raise UserError("upload a picture to complete")
        sides = [side for side in sides or [] if side in layout.SIDES]
        if not sides:
            raise UserError("choose a side to extend")
        share = limits.CHECKS["strength"](share, "how much")
        served = self.model_of("inpaint", model)
        pixels, mask = tabs.extended(pixels, sides, share, served)
        session.inputs["inpaint"] = pixels
        return laid("inpaint", pixels, mask)

    def _files(self) -> None:
        c, studio = self.c, self.studio
        shown = [c[name] for name in FILLED]

        def fill(session: Session, data: dict) -> tuple:
            session.opened = None
            session.opened = files.opened(studio, session, data)
            return self.filled(session)

        def draw(session: Session, controls: dict) -> Iterator[View]:
            found, session.opened = session.opened, None
            if found is None:
                return
            if found.draw:
                yield from again.reopen(
                    studio, session, found.served, found.way, controls
                )

        def save(session: Session, *values) -> tuple:
            controls = dict(zip(CONTROLS, values, strict=True))
            data = files.preset(studio, session, controls)
            kind, text = "application/json", "Download the preset"
            return (fragments.link("preset_link", "preset.json", kind, data, text),)

        opened = self.tells(c["open"].upload, fill, outputs=shown, data=True)
        self.draws(opened.then, draw)
        self.tells(c["preset_save"].click, save, self.controls, [c["preset"]])

    def filled(self, session: Session) -> list:
        """The controls after a file was opened; what it does not say stays."""
        values = session.opened.shown
        found = []
        for name in FILLED:
            if name not in values:
                found.append(gr.skip())
            elif name == "model":
                choices = tabs.serving(values["tab"], self.studio.models)
                found.append(gr.update(choices=choices, value=values[name]))
            elif name == "mask":
                pixels = session.inputs["inpaint"]
                found.append(paper(pixels, values[name]))
            else:
                found.append(values[name])
        return found


def settings_of(served: tabs.Served) -> tuple:
    """Updates of DEFAULTS for another model."""
    given = layout.defaults(served)
    sizes, size = given["size"]
    return (
        given["guidance"],
        given["steps"],
        given["sampler"],
        gr.update(choices=sizes, value=size),
    )


def laid(tab: str, pixels: np.ndarray, mask: np.ndarray | None = None) -> tuple:
    """What shows that a tab has a picture: a small one, and the mask's painter."""
    height, width = pixels.shape[:2]
    thumb = (
        f"<img alt='your picture' src='{fragments.shown(pixels, 96)}'> "
        f"{width} x {height} pixels"
    )
    if tab != "inpaint":
        return (thumb,)
    value = None
    if mask is not None:
        value = {"map": pixels_lib.to_uri(mask), "boxes": []}
    return thumb, paper(pixels, value)
