"""Layout: boxes with labels."""

from lDM_jax.core.errors import UserError
from lDM_jax.sampling.request import Request
from lDM_jax.studio import painter
from lDM_jax.studio.served import Served
from lDM_jax.studio.tabs.tab import Tab


class Layout(Tab):
    """An object in every box."""

    name, title = "layout", "Layout"
    reads = ("layout",)
    controls = ("boxes",)
    config = "emoji_layout"

    def build(self, ui, served: Served | None) -> None:
        ui.painter("boxes", "boxes", served, served.label_names() if served else ())

    def fit(self, served: Served) -> dict[str, dict]:
        extent = list(served.own_extent)
        return {"boxes": {"labels": served.label_names(), "extent": extent}}

    def fields(self, controls: dict, served: Served, inputs: dict) -> dict:
        value = controls["boxes"]
        boxes = value.get("boxes") if isinstance(value, dict) else None
        if not boxes:
            raise UserError("draw at least one box")
        return {"layout": boxes}

    def example(self, served: Served) -> dict:
        return {"layout": [(0, (0.25, 0.25, 0.5, 0.5))]}

    def restore(self, request: Request, served: Served) -> dict:
        return {"boxes": painter.value(boxes=request.layout)}
