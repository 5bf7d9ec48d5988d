"""The tabs of the page: which models serve them, and what their controls ask for.

Owns the way from controls (a dict as the page sends it) and uploaded pictures to a
checked `Request`. A model serves the tabs of its task.
"""

import dataclasses

import numpy as np

from lDM_jax.core.errors import UserError
from lDM_jax.data.sources import EmojiSource
from lDM_jax.diffusion import samplers
from lDM_jax.sampling.pipeline import Pipeline
from lDM_jax.sampling.request import Request
from lDM_jax.studio import limits


@dataclasses.dataclass(frozen=True)
class Tab:
    """A tab: tasks of the models that serve it; config: trains a model for it."""

    name: str
    title: str
    tasks: tuple[str, ...]
    config: str


FREE = ("text", "unconditional")
TABS = {
    tab.name: tab
    for tab in (
        Tab("text", "Text", FREE, "emoji"),
        Tab("image", "Image to image", FREE, "emoji"),
        Tab("inpaint", "Inpaint", ("inpaint", *FREE), "emoji_inpaint"),
        Tab("regions", "Regions", ("text",), "emoji"),
        Tab("layout", "Layout", ("layout",), "emoji_layout"),
        Tab("semantic", "Semantic", ("semantic",), "emoji_semantic"),
        Tab(
            "super_resolution",
            "Super-resolution",
            ("super_resolution",),
            "emoji_super_resolution",
        ),
        Tab("class", "Class", ("class",), "emoji_class"),
    )
}
NUMBERED = 100  # labels offered where nothing says how many there are


def command(tab: Tab) -> str:
    """How to get a model for the tab."""
    if tab.config == "emoji":
        return "python -m lDM_jax.tools.studio --model emoji"
    return (
        f"python train.py --config=configs/{tab.config}.py --workdir=runs/{tab.config}"
        f" && python -m lDM_jax.tools.studio --model runs/{tab.config}"
    )


class Served:
    """A loaded model: its name, pipeline, and what the page needs to know of it."""

    def __init__(self, name: str, pipe: Pipeline):
        self.name, self.pipe = name, pipe
        self.task = pipe.task.name
        self.side_px = int(pipe.config.data.size_px)
        self.cell_px = pipe.model.codec.factor * 2**pipe.model.denoiser.halvings
        self.labels = label_names(pipe)

    @property
    def sizes(self) -> dict[str, tuple[int, int]]:
        """Extents (H, W) to choose from, by name; the model's own first."""
        own, cell = self.side_px, self.cell_px
        long = round(1.75 * own / cell) * cell
        pairs = (own, own), (own, long), (long, own), (2 * own, 2 * own)
        fit = [(h, w) for h, w in pairs if max(h, w) <= limits.MAX_SIDE_PX]
        return {f"{w} x {h}": (h, w) for h, w in fit or pairs[:1]}

    def snapped(self, height: int, width: int) -> tuple[int, int]:
        """The nearest extent that the network takes, within the limits."""
        most = limits.MAX_SIDE_PX // self.cell_px
        sides = (min(max(1, round(s / self.cell_px)), most) for s in (height, width))
        return tuple(side * self.cell_px for side in sides)

    def window(self, extent: tuple[int, int]) -> int:
        """The side of windows for a picture of that extent; 0 for none."""
        return self.side_px if max(extent) > self.side_px else 0


def label_names(pipe: Pipeline) -> list[str]:
    """The names of a model's labels; their numbers where they have none."""
    config, task = pipe.config, pipe.task.name
    if task not in ("class", "layout", "semantic"):
        return []
    names = list(config.data.get("classes", ()))
    if not names and config.data.source == "scenes":
        by = config.data.get("scenes", {}).get("labels", "groups")
        names = getattr(EmojiSource(), by)
        names = ["background", *names] if task == "semantic" else names
    if not names and config.data.source == "emoji" and task == "class":
        names = EmojiSource().subgroups
    count = config.get("num_classes", 0) or len(names) or NUMBERED
    return [*names, *map(str, range(len(names), count))][:count]


def serving(tab: str, models: dict[str, Served]) -> list[str]:
    """The names of the models that serve a tab, those of its own task first."""
    tasks = TABS[tab].tasks
    found = [name for name, served in models.items() if served.task in tasks]
    return sorted(found, key=lambda name: tasks.index(models[name].task))


def request(controls: dict, served: Served, inputs: dict) -> Request:
    """What a tab's controls ask for, checked; inputs: uploaded pictures by tab.

    UserError for what is missing or out of bounds.
    """
    tab = controls["tab"]
    if tab not in TABS or served.task not in TABS[tab].tasks:
        raise UserError(f"{served.name} ({served.task}) does not serve the tab {tab}")
    sampler = controls["sampler"]
    own_eta = samplers.check(limits.CHECKS["sampler"](sampler, "sampler")).eta
    fields = {
        "seeds": [controls["seed"]],
        "steps": controls["steps"],
        "guidance": controls["guidance"],
        "sampler": sampler,
        "eta": controls["eta"] if own_eta is None else 0,
    }
    if served.task == "text":
        fields |= {"prompt": controls["prompt"], "negative": controls["negative"]}
    if tab in ("text", "regions", "class"):
        extent = served.sizes.get(controls["size"], (served.side_px,) * 2)
        fields |= {"size_px": extent, "window_px": served.window(extent)}
    return limits.request(fields | OF_TAB[tab](controls, served, inputs))


def _nothing(controls: dict, served: Served, inputs: dict) -> dict:
    return {}


def _image(controls: dict, served: Served, inputs: dict) -> dict:
    pixels = _given(inputs, "image", "upload a picture to change")
    extent = served.sizes.get(controls["size"], (served.side_px,) * 2)
    return {
        "image": limits.fitted(pixels, extent),
        "strength": controls["strength"],
        "window_px": served.window(extent),
    }


def _inpaint(controls: dict, served: Served, inputs: dict) -> dict:
    pixels = _given(inputs, "inpaint", "upload a picture to complete")
    extent = pixels.shape[:2]
    mask = painted(controls["mask"], extent, "mask") > 0
    if not mask.any():
        raise UserError("paint over the part that is to be drawn anew")
    fields = {"image": pixels, "mask": mask.astype(np.int32)}
    if served.task != "inpaint":
        fields["strength"] = controls["inpaint_strength"]
    return fields | {"window_px": served.window(extent)}


def _regions(controls: dict, served: Served, inputs: dict) -> dict:
    value = controls["regions"] if isinstance(controls["regions"], dict) else {}
    extent = served.sizes.get(controls["size"], (served.side_px,) * 2)
    labels = painted(value, extent, "regions")
    rows = value.get("regions")
    rows = rows if isinstance(rows, list) else []
    found = []
    for number, row in enumerate(rows[: limits.MAX_REGIONS], start=1):
        row = row if isinstance(row, dict) else {}
        where, prompt = labels == number, row.get("prompt") or ""
        if where.any() and not prompt:
            raise UserError(f"region {number} is painted but has no prompt")
        if where.any():
            weight = row.get("weight", 1)
            found.append((prompt, where.astype(np.int32), weight))
    if not found:
        raise UserError("paint at least one region and give it a prompt")
    return {"regions": found, "regional": controls["regional"]}


def _layout(controls: dict, served: Served, inputs: dict) -> dict:
    value = controls["boxes"] if isinstance(controls["boxes"], dict) else {}
    boxes = value.get("boxes")
    if not boxes:
        raise UserError("draw at least one box")
    return {"layout": boxes}


def _semantic(controls: dict, served: Served, inputs: dict) -> dict:
    extent = (served.side_px, served.side_px)
    return {"segmentation": painted(controls["labels"], extent, "label map")}


def _enlarge(controls: dict, served: Served, inputs: dict) -> dict:
    pixels = _given(inputs, "super_resolution", "upload a picture to enlarge")
    factor = served.pipe.config.low_res.factor
    whole = served.snapped(*(factor * side for side in pixels.shape[:2]))
    small = limits.fitted(pixels, tuple(side // factor for side in whole))
    return {"image": small, "window_px": served.window(whole)}


def _class(controls: dict, served: Served, inputs: dict) -> dict:
    name = controls["label"]
    if name not in served.labels:
        raise UserError(f"class {name!r} is none of this model's")
    return {"label": served.labels.index(name)}


OF_TAB = {
    "text": _nothing,
    "image": _image,
    "inpaint": _inpaint,
    "regions": _regions,
    "layout": _layout,
    "semantic": _semantic,
    "super_resolution": _enlarge,
    "class": _class,
}


def _given(inputs: dict, name: str, wish: str) -> np.ndarray:
    if name not in inputs:
        raise UserError(wish)
    return inputs[name]


def painted(value, extent: tuple[int, int], name: str) -> np.ndarray:
    """The label map i32 "H W" of a painter's value; zeros where it is empty.

    Painted at another extent, it is brought to this one, each pixel to its nearest.
    """
    uri = value.get("map") if isinstance(value, dict) else None
    if not uri:
        return np.zeros(extent, np.int32)
    found = limits.CHECKS["mask"](uri, name)
    rows, columns = (
        np.arange(side) * old // side
        for side, old in zip(extent, found.shape, strict=True)
    )
    return found[np.ix_(rows, columns)]


def extended(pixels: np.ndarray, sides: list[str], share: float, served: Served):
    """(picture, mask) for outpainting: `share` more on each of the sides.

    sides: of left, right, top, bottom. The border repeats the edge; the mask i32 "H W"
    is 1 on it. UserError where the picture would become too large.
    """
    height, width = pixels.shape[:2]
    cell = served.cell_px
    more = {
        side: max(cell, round(share * length / cell) * cell) if side in sides else 0
        for side, length in dict(
            top=height, bottom=height, left=width, right=width
        ).items()
    }
    rows, columns = (more["top"], more["bottom"]), (more["left"], more["right"])
    if max(height + sum(rows), width + sum(columns)) > limits.MAX_SIDE_PX:
        raise UserError(f"a side has at most {limits.MAX_SIDE_PX} pixels")
    mask = np.pad(
        np.zeros((height, width), np.int32), (rows, columns), constant_values=1
    )
    return np.pad(pixels, (rows, columns, (0, 0)), "edge"), mask
