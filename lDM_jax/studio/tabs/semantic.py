"""Semantic: a label map, painted or uploaded."""

import numpy as np

from lDM_jax.core import image
from lDM_jax.core.errors import UserError
from lDM_jax.sampling.request import Request
from lDM_jax.studio import limits, painter
from lDM_jax.studio.served import Served
from lDM_jax.studio.session import Session
from lDM_jax.studio.tabs.tab import Tab


class Semantic(Tab):
    """A label for every pixel."""

    name, title = "semantic", "Semantic"
    reads = ("segmentation",)
    controls = ("labels",)
    config = "emoji_semantic"

    def build(self, ui, served: Served | None) -> None:
        ui.painter("labels", "labels", served, label_names(served) if served else ())
        ui.upload("label_map", "Or a grey PNG whose values are labels")

    def wire(self, page) -> None:
        page.on(self, "label_map", "upload", self.upload, outputs=("labels",))

    def upload(self, session: Session, served: Served, name: str, data: bytes) -> dict:
        """The painter with an uploaded label map. UserError for other labels."""
        labels, count = limits.decode_labels(data, name), len(label_names(served))
        if labels.max() >= count:
            raise UserError(
                f"{name} holds the label {labels.max()}: valid are 0 .. {count - 1}; "
                "give a grey PNG whose values are labels"
            )
        labels = image.nearest(labels, served.own_extent)
        return {"labels": {"value": painter.value(labels)}}

    def fit(self, served: Served) -> dict[str, dict]:
        extent = list(served.own_extent)
        return {"labels": {"labels": label_names(served), "extent": extent}}

    def fields(self, controls: dict, served: Served, inputs: dict) -> dict:
        value, extent = controls["labels"], served.own_extent
        return {"segmentation": painter.label_map(value, extent, "label map")}

    def example(self, served: Served) -> dict:
        return {"segmentation": np.zeros(served.own_extent, np.int32)}

    def restore(self, request: Request, served: Served) -> dict:
        return {"labels": painter.value(request.segmentation)}


def label_names(served: Served) -> list[str]:
    """The names of the labels, the background's first."""
    return served.label_names(first=["background"])
