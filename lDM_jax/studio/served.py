"""A model that the studio has loaded: its task, its extents, and its labels' names."""

import functools
from collections.abc import Sequence

from lDM_jax.data.sources import EmojiSource
from lDM_jax.sampling.pipeline import Pipeline
from lDM_jax.studio import limits

NUMBERED = 100  # labels offered where nothing says how many there are


class Served:
    """A loaded model. side_px: of its own images; cell_px: what sides are multiples of.

    sizes: extents (H, W) to choose from, by name; the model's own first.
    """

    def __init__(self, name: str, pipe: Pipeline):
        self.name, self.pipe, self.task = name, pipe, pipe.task
        self.side_px = own = int(pipe.config.data.size_px)
        self.cell_px = cell = pipe.model.codec.factor * 2**pipe.model.denoiser.halvings
        long = round(1.75 * own / cell) * cell
        pairs = (own, own), (own, long), (long, own), (2 * own, 2 * own)
        fit = [(h, w) for h, w in pairs if max(h, w) <= limits.MAX_SIDE_PX]
        self.sizes = {f"{w} x {h}": (h, w) for h, w in fit or pairs[:1]}

    @property
    def own_extent(self) -> tuple[int, int]:
        """(H, W) of the images that it was trained on."""
        return self.side_px, self.side_px

    def extent(self, size: str) -> tuple[int, int]:
        """The extent (H, W) of that name; the model's own for another name."""
        return self.sizes.get(size, self.own_extent)

    def snap(self, height: int, width: int) -> tuple[int, int]:
        """The nearest extent that the network takes, within the limits."""
        most = limits.MAX_SIDE_PX // self.cell_px
        sides = (min(max(1, round(s / self.cell_px)), most) for s in (height, width))
        return tuple(side * self.cell_px for side in sides)

    def window(self, extent: tuple[int, int]) -> int:
        """The side of windows for an image of that extent; 0 for none."""
        return self.side_px if max(extent) > self.side_px else 0

    def label_names(self, *, first: Sequence[str] = (), emoji: str = "") -> list[str]:
        """The names of its labels, their numbers where they have none.

        first: labels before those of the embedded scenes; emoji: the attribute of
        `EmojiSource` that names the labels of the embedded emoji.
        """
        config = self.pipe.config
        names = list(config.data.get("classes", ()))
        if not names and config.data.source == "scenes":
            by = config.data.get("scenes", {}).get("labels", "groups")
            names = [*first, *emoji_names(by)]
        if not names and config.data.source == "emoji" and emoji:
            names = list(emoji_names(emoji))
        count = config.get("num_classes", 0) or len(names) or NUMBERED
        return [*names, *map(str, range(len(names), count))][:count]


@functools.cache
def emoji_names(by: str) -> Sequence[str]:
    """The names of the embedded emoji's "groups" or "subgroups"."""
    return getattr(EmojiSource(), by)
