"""From a picture with a hole: its latents and the mask, stacked to the latents."""

import numpy as np

from lDM_jax.data.masks import RandomMask
from lDM_jax.diffusion.latent_diffusion import MaskedLatents
from lDM_jax.models.conditioners import AsItIs
from lDM_jax.tasks.task import Condition, Original, Settings, Task


def shapes(settings: Settings) -> dict:
    """The picture and the mask, whatever else training reads of the picture."""
    side = (settings.size_px,) * 2
    return {"image": (np.float32, (*side, 3)), "mask": (np.float32, (*side, 1))}


def steps(settings: Settings) -> list:
    """Random masks, unless the data has its own."""
    own = settings.masks["kind"] == "given"
    return [] if own else [RandomMask(**settings.masks)]


TASK = Task(
    name="inpaint",
    conditions=lambda settings: (Condition("masked", "as_is", "concat", AsItIs()),),
    derive=lambda codec: (MaskedLatents(codec),),
    shapes=shapes,
    steps=steps,
    uncached="encodes the masked picture, which no cache holds",
    field="mask",
    ask="completes: give an image and a mask",
    own_image=True,
    row=lambda request, pixels, settings: {"image": pixels.image, "mask": pixels.mask},
    figures="completion",
    original=lambda settings, channels: Original(
        "masked_image", "concat", "__is_first_stage__", channels=channels + 1
    ),
)
