"""A tab from outside: what it says of itself is all that the studio needs."""

import asyncio
import gc

import numpy as np
import pytest

from lDM_jax.studio import tabs
from lDM_jax.studio.player import Studio
from lDM_jax.studio.served import Served
from lDM_jax.studio.tabs import TABS
from lDM_jax.studio.tabs.tab import Tab
from tests.studio.test_studio import controls, generated, opened
from tests.toys import drawn


class Hearts(Tab):
    """So many hearts."""

    name, title = "hearts", "Hearts"
    reads = ("prompt",)
    controls = ("hearts_count",)

    def build(self, ui, served):
        ui.slider("hearts_count", "How many", 1, 9, 2, step=1)
        ui.button("hearts_more", "One more")

    def wire(self, page):
        one = ("hearts_count",)
        page.on(self, "hearts_more", "click", self.more, one, outputs=one)

    def more(self, session, served, count):
        return {"hearts_count": {"value": count + 1}}

    def fields(self, controls, served, inputs):
        return {"prompt": " ".join(["heart"] * controls["hearts_count"])}

    def makes(self, request):
        return set((request.prompt or "").split()) == {"heart"}

    def restore(self, request, served):
        return {"hearts_count": len(request.prompt.split())}


@pytest.fixture
def studio():
    """With the tab before those of the package, registered at the public place."""
    own = dict(TABS)
    TABS.clear()
    TABS.update({"hearts": Hearts(), **own})
    yield Studio({"toy": Served("toy", drawn("emoji"))})
    TABS.clear()
    TABS.update(own)


def page_of(studio) -> dict:
    """What the toolkit tells the browser of the page."""
    from lDM_jax.studio.page import events

    async def config() -> dict:
        return events.build(studio).get_config_file()

    page = asyncio.run(config())  # or else the toolkit leaves a loop of its own open
    gc.collect()
    return page


@pytest.mark.filterwarnings("ignore")
def test_its_components_and_events_are_on_the_page(studio):
    pytest.importorskip("gradio")
    page = page_of(studio)
    parts = {part["props"].get("elem_id"): part for part in page["components"]}
    number = {name: part["id"] for name, part in parts.items()}
    parents, nodes = {}, [page["layout"]]
    for node in nodes:
        children = node.get("children") or []
        parents |= {child["id"]: node["id"] for child in children}
        nodes += children
    above = [number["hearts_count"]]
    while above[-1] in parents:
        above.append(parents[above[-1]])
    assert number["tab_hearts"] in above
    assert "id='nav_hearts'" in parts["tab"]["props"]["html_template"]

    def event(name: str) -> dict:
        click = [number[name], "click"]
        return next(
            event
            for event in page["dependencies"]
            if click in map(list, event["targets"])
        )

    assert number["hearts_count"] in event("hearts_more")["outputs"]
    assert number["hearts_count"] in event("generate")["inputs"]


def test_its_request_is_made_drawn_and_opened_again(studio):
    own = studio.sessions.get("somebody")
    view = generated(studio, own, tab="hearts", hearts_count=3)
    assert view.state == "done" and own.current.record["prompt"] == "heart heart heart"
    file = opened(studio, own, own.current.png())
    assert file.controls["tab"] == "hearts" and file.controls["hearts_count"] == 3
    words = controls(prompt="heart heart heart", tab="text")
    same = generated(studio, own, **words)
    np.testing.assert_array_equal(same.pixels, view.pixels)
    assert tabs.tab_of(studio.models["toy"], own.run.request).name == "hearts"
    assert Hearts().command == "python -m lDM_jax.tools.studio --model emoji"
