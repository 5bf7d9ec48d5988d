"""Tasks: conditioning routes + example transform + request builder.

The same code runs at training and at request time, so a prompt is tokenised exactly as
the captions were. A task never builds networks; `build` turns its routes into them.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jax import ShapeDtypeStruct

from lDM_jax.core.arrays import Batch
from lDM_jax.core.errors import UserError
from lDM_jax.data import transforms
from lDM_jax.data.degrade import Degrade
from lDM_jax.data.masks import RandomMask


@dataclasses.dataclass(frozen=True)
class Task:
    """One conditioning scheme.

    route: (batch key, encoder name, field of Cond), or None without condition. The
    encoder "as_is" is no network. `masked` is derived from image and mask by the first
    stage (`training.diffusion.Model`).
    """

    name: str
    route: tuple[str, str, str] | None = None
    field: str = ""
    own_image: bool = False


TASKS = {
    task.name: task
    for task in (
        Task("unconditional"),
        Task("class", ("label", "class", "context"), "label"),
        Task("text", ("tokens", "text", "context"), "prompt"),
        Task("layout", ("boxes", "layout", "context"), "layout"),
        Task("semantic", ("segmentation", "rescaler", "concat"), "segmentation"),
        Task("super_resolution", ("low_res", "as_is", "concat"), "image", True),
        Task("inpaint", ("masked", "as_is", "concat"), "mask", True),
        Task("retrieval", ("embeddings", "as_is", "context")),
    )
}


# CLIP's image and text embeddings, of which retrieval-augmented models read a few.
RETRIEVAL_WIDTH = 768


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
    crop: Sequence[Callable] = (),
    low_res: Mapping | None = None,
    masks: Mapping | None = None,
    num_labels: int = 0,
) -> Callable:
    """Source example -> batch row: image f32 plus the task's condition.

    crop: what makes a square of the picture, before and after it is laid over the
    background: two transforms or None. low_res: arguments of `degrade.Degrade`; masks:
    of `masks.RandomMask`, or kind "given" for those of the data. num_labels: of label
    maps, 0 for any.
    """
    before, after = crop or (None, None)
    steps = [transforms.Composite(background=background)]
    steps = [before] * bool(before) + steps + [after] * bool(after)
    if flip > 0:
        steps.append(transforms.RandomFlip(probability=flip))
    keep = ["image"]
    if task.name == "text":
        steps.append(transforms.Tokenize(tokenizer))
    elif task.name == "layout":
        steps.append(transforms.TokenizeLayout(tokenizer))
    elif task.name == "super_resolution":
        steps.append(Degrade(**(low_res or {})))
    elif task.name == "semantic" and num_labels:
        steps.append(transforms.CheckLabels(num_labels))
    elif task.name == "inpaint":
        if (masks or {}).get("kind") != "given":
            steps.append(RandomMask(**(masks or {})))
        keep.append("mask")
    if task.route is not None and task.name != "inpaint":
        keep.append(task.route[0])
    return transforms.compose(*steps, transforms.Keep(tuple(keep)))


def example_shapes(
    task: Task,
    tokenizer: Callable | None,
    *,
    rows: int,
    size_px: int,
    factor: int = 4,
) -> Batch:
    """Abstract conditions of a batch, for shapes alone; factor: of `low_res`."""
    side = size_px // factor
    shapes = {
        "text": {"tokens": ("i", tokenizer and tokenizer.max_length)},
        "layout": {"boxes": ("i", tokenizer and tokenizer.max_length)},
        "class": {"label": ("i",)},
        "semantic": {"segmentation": ("i", size_px, size_px)},
        "super_resolution": {"low_res": ("f", side, side, 3)},
        "inpaint": {
            "image": ("f", size_px, size_px, 3),
            "mask": ("f", size_px, size_px, 1),
        },
        "retrieval": {"embeddings": ("f", 1, RETRIEVAL_WIDTH)},
    }.get(task.name, {})
    dtypes = {"i": np.int32, "f": np.float32}
    return {
        key: ShapeDtypeStruct((rows, *shape), dtypes[kind])
        for key, (kind, *shape) in shapes.items()
    }
