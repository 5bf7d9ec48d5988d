"""`Tab`: all that the studio knows of one tab of its page."""

from lDM_jax.sampling.request import Request
from lDM_jax.studio.served import Served


class Tab:
    """A tab of the page; subclasses say what is different about theirs.

    name: its id on the page and the key of its upload in the session's inputs; title:
    of its button; reads: what the tasks of the models that serve it read (`Task.field`,
    "" for none), the preferred first; controls: the elem_ids of its components whose
    values its requests read, besides the page's settings; config: of configs/, trains
    a model for it, "" where the shipped one serves it.

    Updates are properties of components (value, choices, extent, ...) by elem_id.
    """

    name: str
    title: str
    reads: tuple[str, ...]
    controls: tuple[str, ...] = ()
    config: str = ""

    @property
    def command(self) -> str:
        """How to get a model for it."""
        start, name = "python -m lDM_jax.tools.studio --model", self.config
        if not name:
            return f"{start} emoji"
        train = f"python train.py --config=configs/{name}.py --workdir=runs/{name}"
        return f"{train} && {start} runs/{name}"

    def build(self, ui, served: Served | None) -> None:
        """Put its components on the page, by the builders `ui` (`page.builders`).

        served: the model that is shown first; None if no model serves the tab.
        """

    def wire(self, page) -> None:
        """Connect its own events: `page.on` (`page.wiring`)."""

    def fields(self, controls: dict, served: Served, inputs: dict) -> dict:
        """The request's fields besides prompts and settings; unless said, its size.

        UserError for what is missing.
        """
        extent = served.extent(controls["size"])
        return {"size_px": extent, "window_px": served.window(extent)}

    def example(self, served: Served) -> dict:
        """Fields of some request, which compiles what the first image needs."""
        return {"prompt": "a"} if served.task.field == "prompt" else {}

    def fit(self, served: Served) -> dict[str, dict]:
        """Updates of its components when another model is chosen."""
        return {}

    def makes(self, request: Request) -> bool:
        """Is such a request made here, among those of the models that serve it?"""
        return True

    def restore(self, request: Request, served: Served) -> dict:
        """The values of its controls that ask for a resolved request."""
        return {}

    def restored(self, values: dict, inputs: dict) -> dict[str, dict]:
        """Updates that show the values of controls, `restore`'s and the settings'."""
        return {name: {"value": value} for name, value in values.items()}
