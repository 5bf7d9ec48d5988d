"""From noise alone."""

from lDM_jax.tasks.task import Original, Task

TASK = Task(
    name="unconditional",
    draws_from="noise",
    figures="nearest",
    original=lambda settings, channels: Original("image", None, "__is_unconditional__"),
    diffusers=("LDMPipeline",),
)
