"""From a label map, stacked to the latents at their extent."""

import numpy as np

from lDM_jax.core.arrays import Batch
from lDM_jax.core.errors import UserError
from lDM_jax.data.transforms import CheckLabels
from lDM_jax.models.conditioners import SpatialRescaler
from lDM_jax.tasks.task import Condition, Original, Settings, Task


def conditions(settings: Settings) -> tuple[Condition, ...]:
    """The map, brought to the extent of the latents."""
    if settings.num_classes < 1:
        raise UserError("task 'semantic' needs config.num_classes, the map's labels")
    network = SpatialRescaler(settings.num_classes, **settings.rescaler)
    return (Condition("segmentation", "rescaler", "concat", network),)


def steps(settings: Settings) -> list:
    """Nothing but a check of the labels, where their number is known."""
    return [CheckLabels(settings.num_classes)] if settings.num_classes else []


def row(request, pixels, settings: Settings) -> Batch:
    """The map. UserError for labels that the model does not know."""
    labels, count = pixels.segmentation, settings.num_classes
    top = int(labels.max(initial=0))
    if labels.min(initial=0) < 0 or top >= count:
        raise UserError(
            f"the segmentation holds labels up to {top}; valid: 0 .. {count - 1}"
        )
    return {"segmentation": labels}


def original(settings: Settings, channels: int) -> Original:
    """`SpatialRescaler`."""
    stages, width = settings.rescaler["num_stages"], settings.rescaler["width"]
    params = dict(n_stages=stages, in_channels=settings.num_classes, out_channels=width)
    return Original("segmentation", "concat", "SpatialRescaler", params, width)


TASK = Task(
    name="semantic",
    conditions=conditions,
    shapes=lambda settings: {"segmentation": (np.int32, (settings.size_px,) * 2)},
    steps=steps,
    example="segmentation",
    hint="label maps in segmentation/ beside images/, or named in metadata.jsonl",
    cache_options=lambda settings: {"num_classes": settings.num_classes},
    field="segmentation",
    ask="draws from label maps: give a segmentation",
    row=row,
    figures="objects",
    original=original,
)
