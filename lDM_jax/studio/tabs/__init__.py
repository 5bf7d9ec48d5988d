"""The tabs of the page, one file a tab; `TABS` lists them in the page's order.

A new tab is a file with a `Tab` and a line here. Whoever registers one from elsewhere
sets `TABS[tab.name] = tab` before the page is built. Owns the way from controls (a dict
as the page sends it) to a checked `Request`, and back to the tab of a request.
"""

from lDM_jax.core.errors import UserError
from lDM_jax.diffusion import samplers
from lDM_jax.sampling.request import Request
from lDM_jax.studio import limits
from lDM_jax.studio.served import Served
from lDM_jax.studio.tabs.class_label import ClassLabel
from lDM_jax.studio.tabs.image import Image
from lDM_jax.studio.tabs.inpaint import Inpaint
from lDM_jax.studio.tabs.layout import Layout
from lDM_jax.studio.tabs.regions import Regions
from lDM_jax.studio.tabs.semantic import Semantic
from lDM_jax.studio.tabs.super_resolution import SuperResolution
from lDM_jax.studio.tabs.tab import Tab
from lDM_jax.studio.tabs.text import Text

KINDS = (Text, Image, Inpaint, Regions, Layout, Semantic, SuperResolution, ClassLabel)
TABS: dict[str, Tab] = {kind.name: kind() for kind in KINDS}


def serving(name: str, models: dict[str, Served]) -> list[str]:
    """The names of the models that serve a tab, those it prefers first."""
    reads = TABS[name].reads if name in TABS else ()
    names = [name for name, served in models.items() if served.task.field in reads]
    return sorted(names, key=lambda name: reads.index(models[name].task.field))


def tabs_of(served: Served) -> list[Tab]:
    """The tabs that a model serves. UserError if there is none."""
    served_tabs = [tab for tab in TABS.values() if served.task.field in tab.reads]
    if not served_tabs:
        raise UserError(f"no tab serves {served.name} ({served.task.name})")
    return served_tabs


def tab_of(served: Served, request: Request) -> Tab:
    """The tab on which such a request of a model is made."""
    some = tabs_of(served)
    return next((tab for tab in some if tab.makes(request)), some[0])


def request(controls: dict, served: Served, inputs: dict) -> Request:
    """What a tab's controls ask for, checked; inputs: uploaded images by tab.

    UserError for what is missing or out of bounds.
    """
    tab = TABS.get(controls["tab"])
    if tab is None or served.task.field not in tab.reads:
        raise UserError(
            f"{served.name} ({served.task.name}) does not serve the tab "
            f"{controls['tab']}"
        )
    sampler = controls["sampler"]
    own_eta = samplers.check(limits.CHECKS["sampler"](sampler, "sampler")).eta
    names = ("steps", "guidance", "sampler")
    names += ("prompt", "negative") if served.task.field == "prompt" else ()
    fields = {name: controls[name] for name in names} | {"seeds": [controls["seed"]]}
    fields["eta"] = controls["eta"] if own_eta is None else 0
    return limits.request(fields | tab.fields(controls, served, inputs))
