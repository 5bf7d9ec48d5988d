"""From noise alone."""

from lDM_jax.tasks.task import Original, Settings, Task


def original(settings: Settings, channels: int) -> Original:
    """No conditioner."""
    del settings, channels
    return Original("image", None, "__is_unconditional__")


TASK = Task(
    name="unconditional",
    draws_from="noise",
    figures="nearest",
    original=original,
    diffusers=("LDMPipeline",),
)
