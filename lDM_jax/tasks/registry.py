"""All tasks by their names."""

from jax import ShapeDtypeStruct

from lDM_jax.core.arrays import Batch
from lDM_jax.core.errors import UserError
from lDM_jax.tasks import (
    class_label,
    inpaint,
    layout,
    retrieval,
    semantic,
    super_resolution,
    text,
    unconditional,
)
from lDM_jax.tasks.task import Settings, Task

TASKS: dict[str, Task] = {}


def register(task: Task) -> Task:
    """Make a task known by its name, in place of another of that name; the task."""
    TASKS[task.name] = task
    return task


WORDS = (unconditional, class_label, text, layout)
PICTURES = (semantic, super_resolution, inpaint, retrieval)
for module in WORDS + PICTURES:
    register(module.TASK)


def get_task(name: str) -> Task:
    """The task of that name. UserError lists the valid names."""
    if name not in TASKS:
        raise UserError(f"task {name!r} is unknown; valid: {', '.join(TASKS)}")
    return TASKS[name]


def example_shapes(task: Task, settings: Settings, *, rows: int) -> Batch:
    """Abstract conditions of a batch, for shapes alone."""
    return {
        key: ShapeDtypeStruct((rows, *shape), dtype)
        for key, (dtype, shape) in task.shapes(settings).items()
    }
