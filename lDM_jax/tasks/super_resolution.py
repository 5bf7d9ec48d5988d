"""From a small picture, stacked to the latents."""

import numpy as np

from lDM_jax.data.degrade import Degrade
from lDM_jax.models.conditioners import AsItIs
from lDM_jax.tasks.task import IDENTITY, Condition, Original, Settings, Task


def conditions(settings: Settings) -> tuple[Condition, ...]:
    """The pixels, folded where they are finer than the latents."""
    network = AsItIs(fold=settings.low_res["fold"])
    return (Condition("low_res", "as_is", "concat", network),)


def shapes(settings: Settings) -> dict:
    """The small picture."""
    side = settings.size_px // settings.low_res["factor"]
    return {"low_res": (np.float32, (side, side, 3))}


def steps(settings: Settings) -> list:
    """Degrade the picture."""
    options = {k: v for k, v in settings.low_res.items() if k != "fold"}
    return [Degrade(**options)]


def random(settings: Settings) -> list[str]:
    """Every degradation but the plain one."""
    kind = settings.low_res["kind"]
    return [] if kind == "bicubic" else [f"degradation {kind!r}"]


TASK = Task(
    name="super_resolution",
    conditions=conditions,
    shapes=shapes,
    steps=steps,
    random=random,
    cache_options=lambda settings: {"low_res": dict(settings.low_res)},
    field="image",
    ask="enlarges: give an image",
    own_image=True,
    enlargement=lambda settings: settings.low_res["factor"],
    row=lambda request, pixels, settings: {"low_res": pixels.image},
    figures="enlargement",
    original=lambda settings, channels: Original(
        "LR_image", "concat", IDENTITY, channels=3
    ),
    diffusers=("LDMSuperResolutionPipeline",),
)
