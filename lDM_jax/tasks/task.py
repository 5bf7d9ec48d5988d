"""The vocabulary of tasks: `Settings`, `Condition`, `Labels`, `Original`, `Task`.

A task is one way of conditioning from end to end: what examples must hold, what becomes
of them in a batch, which networks read the batch, what a request must say, what figures
and which other programs there are for it. Its functions serve training and requests
alike, so that a prompt is tokenized exactly as the captions were. Each lies in a file
of its own; `registry` lists them, and nothing else asks for a task's name.

Requests and their pixels (`sampling.request`) come from above and are only read here.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import numpy as np

from lDM_jax.core.arrays import Batch
from lDM_jax.core.errors import UserError
from lDM_jax.diffusion.codec import Codec
from lDM_jax.diffusion.latent_diffusion import MaskedLatents, Tower

IDENTITY = "torch.nn.Identity"

# Abstract rows of a batch: the dtype and the shape of one row by key.
Shapes = dict[str, tuple[type, tuple[int, ...]]]


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a config says that tasks read, as plain values.

    num_classes: of labels, or of a label map; class_names: of pictures' or boxes'
    labels, if they are known. context_width: what cross-attention reads, 0 without;
    time_width: of the time embedding. text (of a frozen tower: its own), layout,
    rescaler, low_res, masks: the sections. make_tokenizer: the task's `tokenizer`.
    """

    size_px: int
    num_classes: int = 0
    class_names: tuple[str, ...] = ()
    null_class: bool = True
    drop_rate: float = 0.0
    context_width: int = 0
    time_width: int = 0
    text: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    layout: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    rescaler: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    low_res: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    masks: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    make_tokenizer: Callable[["Settings"], Callable] | None = None

    @functools.cached_property
    def tokenizer(self) -> Callable | None:
        """What turns texts or boxes into tokens, None without any."""
        return self.make_tokenizer and self.make_tokenizer(self)


class Condition(NamedTuple):
    """One key of the batch, the field of `Cond` it becomes, and the network between.

    encoder: the name under which the network's parameters are stored.
    """

    key: str
    encoder: str
    field: str
    network: nn.Module


class Labels(NamedTuple):
    """Labels that have numbers and may have names.

    names: the attribute of a source that lists the names. complete: a data set has all
    of them, so that config.num_classes is their number; else it may lack the last.
    """

    names: str
    complete: bool


class Original(NamedTuple):
    """A condition in the original program's YAML (`interop.original`).

    key: cond_stage_key. where: concat, crossattn, adm or None. target: of
    cond_stage_config, with the module where it is none of their encoders; "" is a
    frozen tower's. channels: beside the latents; num_classes: of the UNet's own table.
    note: a line of the report.
    """

    key: str
    where: str | None
    target: str
    params: Mapping[str, Any] = {}
    channels: int = 0
    num_classes: int = 0
    note: str = ""


def not_written(settings: Settings, channels: int) -> Original:
    """UserError: the original program has no such condition."""
    raise UserError("the original program has no condition of this kind")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """One way of conditioning; functions take `Settings` unless they say otherwise.

    Networks
        conditions: what the conditioner reads. tokenizer: makes Settings.tokenizer.
        towers: frozen text towers (then Settings.text is the tower's own section).
        derive: of the codec, what the first stage makes of a batch.
    Data
        shapes: the rows of a batch, by key; what transforms keep beside the image.
        steps: the example transforms that make them. example: the key that examples
        must hold; hint: how a folder holds it. labels: their names and number. random:
        which steps draw, in words, for caches, which draw once; cache_options: what
        else decides a cached row; uncached: why nothing can be cached.
    Requests
        field: of the request, which it must set; ask: what for. own_image: its image is
        the condition. enlargement: how many times larger than its image the result is.
        check(request, settings): UserError for what the task refuses. row(request,
        pixels, settings): the request's row of the batch, of which there must be one.
    Figures and exports
        draws_from: "noise", "classes" or "captions" where many pictures need no more.
        figures: the kind in `evaluation.commands.task`. original(settings, latent
        channels): the YAML's; UserError if it has none. diffusers: the pipelines that
        may fit, the best first.
    """

    name: str
    conditions: Callable[[Settings], tuple[Condition, ...]] = lambda settings: ()
    tokenizer: Callable[[Settings], Callable] | None = None
    towers: Callable[[Settings], tuple[Tower, ...]] | None = None
    derive: Callable[[Codec], tuple[MaskedLatents, ...]] | None = None
    shapes: Callable[[Settings], Shapes] = lambda settings: {}
    steps: Callable[[Settings], list[Callable]] = lambda settings: []
    example: str = ""
    hint: str = ""
    labels: Labels | None = None
    random: Callable[[Settings], list[str]] = lambda settings: []
    cache_options: Callable[[Settings], dict] = lambda settings: {}
    uncached: str = ""
    field: str = ""
    ask: str = ""
    own_image: bool = False
    enlargement: Callable[[Settings], int] | None = None
    check: Callable[[Any, Settings], None] = lambda request, settings: None
    row: Callable[[Any, Any, Settings], Batch] = lambda *request: {"rows": np.zeros(())}
    draws_from: str = ""
    figures: str = ""
    original: Callable[[Settings, int], Original] = not_written
    diffusers: tuple[str, ...] = ()


def need_context(settings: Settings, name: str) -> None:
    """UserError if the denoiser has no cross-attention."""
    if not settings.context_width:
        raise UserError(f"task {name!r} needs config.unet.context_width > 0")
