"""From CLIP embeddings of similar pictures (Blattmann et al. 2022), converted only."""

import numpy as np

from lDM_jax.core.errors import UserError
from lDM_jax.models.conditioners import AsItIs
from lDM_jax.tasks import task
from lDM_jax.tasks.task import IDENTITY, Condition, Original, Settings, Task

WIDTH = 768  # of CLIP's image and text embeddings, of which these models read a few


def conditions(settings: Settings) -> tuple[Condition, ...]:
    """The embeddings themselves."""
    task.need_context(settings, TASK.name)
    return (Condition("embeddings", "as_is", "context", AsItIs()),)


def check(request, settings: Settings) -> None:
    """UserError: no request holds embeddings."""
    raise UserError(
        "this model draws from CLIP embeddings, which a request cannot hold: drive it "
        "by Pipeline.model"
    )


TASK = Task(
    name="retrieval",
    conditions=conditions,
    shapes=lambda settings: {"embeddings": (np.float32, (1, WIDTH))},
    check=check,
    original=lambda settings, channels: Original("image", "crossattn", IDENTITY),
)
