"""Tasks: conditioning routes + example transform + request builder.

The same code runs at training and at request time, so a prompt is tokenised exactly as
the captions were. A task never builds networks; `build` turns its routes into them.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from jax import ShapeDtypeStruct

from lDM_jax.arrays import Batch, UserError
from lDM_jax.data import transforms


@dataclasses.dataclass(frozen=True)
class Task:
    """One conditioning scheme.

    route: (batch key, encoder name, field of Cond), or None without condition.
    """

    name: str
    route: tuple[str, str, str] | None = None


TASKS = {
    task.name: task
    for task in (
        Task("unconditional"),
        Task("class", ("label", "class", "context")),
        Task("text", ("tokens", "text", "context")),
    )
}


def get_task(name: str) -> Task:
    """The task of that name. UserError lists the valid names."""
    if name not in TASKS:
        raise UserError(f"task {name!r} is unknown; valid: {', '.join(TASKS)}")
    return TASKS[name]


def train_transform(
    task: Task,
    tokenizer: Callable | None,
    *,
    background: str,
    flip: float,
) -> Callable:
    """Source example -> batch row: image f32 plus the task's condition."""
    steps = [transforms.Composite(background=background)]
    if flip > 0:
        steps.append(transforms.RandomFlip(probability=flip))
    keep = ["image"]
    if task.name == "text":
        steps.append(transforms.Tokenize(tokenizer))
    if task.route is not None:
        keep.append(task.route[0])
    return transforms.compose(*steps, transforms.Keep(tuple(keep)))


def request_batch(
    task: Task,
    tokenizer: Callable | None,
    *,
    prompts: Sequence[str] | None = None,
    labels: Sequence[int] | None = None,
    rows: int,
) -> Batch:
    """What the conditioner reads at sampling time, for `rows` images.

    prompts (text) or labels (class) hold one entry an image. Raises UserError when
    the task needs a condition that was not given.
    """
    if task.name == "text":
        if not prompts:
            raise UserError("this model draws from text: give at least one prompt")
        if any(not prompt.strip() for prompt in prompts):
            raise UserError("a prompt is empty: give at least one word")
        return {"tokens": tokenizer(list(prompts))}
    if prompts:
        raise UserError(f"this model ({task.name}) takes no prompt")
    if task.name == "class":
        if labels is None:
            raise UserError("this model draws from classes: give labels")
        return {"label": np.asarray(labels, np.int32)}
    return {"rows": np.zeros(rows, np.int32)}


def example_shapes(task: Task, tokenizer: Callable | None, *, rows: int) -> Batch:
    """Abstract conditions of a batch, for shapes alone."""
    if task.name == "text":
        return {"tokens": ShapeDtypeStruct((rows, tokenizer.max_length), np.int32)}
    if task.name == "class":
        return {"label": ShapeDtypeStruct((rows,), np.int32)}
    return {}
