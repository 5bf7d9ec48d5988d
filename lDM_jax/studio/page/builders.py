"""`Builders`: the page's components, each with an id by which events find it.

What they make inside an open gr.Blocks is kept in `components` by its elem_id. The tabs
get them as `ui` and need nothing else of the toolkit.
"""

import contextlib
from collections.abc import Iterator, Sequence

import gradio as gr

from lDM_jax.studio import limits
from lDM_jax.studio import painter as painter_lib
from lDM_jax.studio.served import Served

UPLOAD = (
    "<label class='drop'><input type='file' id='NAME_file' aria-label='LABEL'>"
    "<span>${value}</span></label>"
)
UNSERVED_PX = 64  # the side of a painter whose tab no model serves


class Builders:
    """Makes components; the first argument is the elem_id."""

    def __init__(self):
        self.components: dict = {}

    def add(self, kind: str, name: str, /, *values, **more) -> None:
        """A component of one of the toolkit's classes, by its name."""
        self.components[name] = getattr(gr, kind)(*values, elem_id=name, **more)

    def html(self, text: str) -> None:
        """Words that stay as they are, without an id."""
        gr.HTML(text)

    def button(self, name: str, text: str, **more) -> None:
        """A button: the event "click"."""
        self.add("Button", name, text, **more)

    def textbox(self, name: str, label: str, **more) -> None:
        """A line of text, as long as a prompt at most."""
        self.add("Textbox", name, label=label, max_length=limits.MAX_TEXT, **more)

    def slider(self, name: str, label: str, low, high, value, *, step) -> None:
        """A number from low to high."""
        self.add("Slider", name, low, high, value, step=step, label=label)

    def fragment(self, name: str, value, /, **more) -> None:
        """A part of the page that the server writes."""
        plain = {"js_on_load": None, "apply_default_css": False}
        self.add("HTML", name, value, **{**plain, **more})

    def picker(self, name: str, value: str, field: str) -> None:
        """A fragment whose cells can be chosen: the event "select"."""
        script = f"studioPick(element, (n, d) => trigger('select', d), '{field}')"
        self.fragment(name, value, js_on_load=script)

    def upload(self, name: str, text: str, *, starter: str = "studioUpload") -> None:
        """A box for a file, `#NAME_file`: the event "upload" holds its bytes."""
        template = UPLOAD.replace("NAME", name).replace("LABEL", text)
        script = f"{starter}(element, (n, d) => trigger('upload', d))"
        self.fragment(name, text, html_template=template, js_on_load=script)

    def painter(
        self, name: str, mode: str, served: Served | None = None, labels: Sequence = ()
    ) -> None:
        """A painter (painter.js): its value is what was drawn (`studio.painter`)."""
        side_px = served.side_px if served else UNSERVED_PX
        self.fragment(
            name,
            painter_lib.value(),
            html_template=f"<div class='painter' id='{name}_painter'></div>",
            js_on_load="studioPainter(element, props, (n) => trigger('input'), watch)",
            name=name,
            mode=mode,
            extent=[side_px, side_px],
            background="",
            labels=list(labels),
            most=limits.MAX_REGIONS,
        )

    @contextlib.contextmanager
    def folded(self, name: str, title: str, state: str = "") -> Iterator[None]:
        """A part that opens and closes; it is on the page in both states."""
        template = (
            f"<button type='button' class='fold' id='{name}_title' "
            f"aria-controls='{name}'>{title}</button>"
        )
        script = f"studioFold(element, '{name}', '{state}')"
        with gr.Column(elem_id=f"{name}_fold"):
            self.fragment(f"{name}_head", "", html_template=template, js_on_load=script)
            with gr.Column(elem_id=name):
                yield
