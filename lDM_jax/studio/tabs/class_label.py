"""Class: one of the model's classes."""

from lDM_jax.core.errors import UserError
from lDM_jax.sampling.request import Request
from lDM_jax.studio.served import Served
from lDM_jax.studio.tabs.tab import Tab


class ClassLabel(Tab):
    """Images of a class."""

    name, title = "class", "Class"
    reads = ("label",)
    controls = ("label",)
    config = "emoji_class"

    def build(self, ui, served: Served | None) -> None:
        names = label_names(served) if served else []
        value = names[0] if names else None
        ui.add("Dropdown", "label", names, value=value, label="Class")

    def fit(self, served: Served) -> dict[str, dict]:
        names = label_names(served)
        return {"label": {"choices": names, "value": names[0]}}

    def fields(self, controls: dict, served: Served, inputs: dict) -> dict:
        name, names = controls["label"], label_names(served)
        if name not in names:
            raise UserError(f"class {name!r} is none of this model's")
        size = super().fields(controls, served, inputs)
        return size | {"label": names.index(name)}

    def example(self, served: Served) -> dict:
        return {"label": 0}

    def restore(self, request: Request, served: Served) -> dict:
        return {"label": label_names(served)[request.label]}


def label_names(served: Served) -> list[str]:
    """The names of the classes."""
    return served.label_names(emoji="subgroups")
