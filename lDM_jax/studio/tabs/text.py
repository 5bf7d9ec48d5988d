"""Text: the prompt above the tabs, and the settings, are all there is."""

from lDM_jax.sampling.request import Request
from lDM_jax.studio.served import Served
from lDM_jax.studio.tabs.tab import Tab


class Text(Tab):
    """Images of a prompt; without a prompt from unconditional models."""

    name, title = "text", "Text"
    reads = ("prompt", "")

    def build(self, ui, served: Served | None) -> None:
        ui.html("<p>Write a prompt above. Change it while the picture forms.</p>")

    def makes(self, request: Request) -> bool:
        return request.image is None and not request.regions
