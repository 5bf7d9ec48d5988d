"""From a class: one context token, or without cross-attention a vector."""

import numpy as np

from lDM_jax.core.errors import UserError
from lDM_jax.models.conditioners import ClassConditioner
from lDM_jax.tasks.task import IDENTITY, Condition, Labels, Original, Settings, Task


def conditions(settings: Settings) -> tuple[Condition, ...]:
    """A context token a class; without cross-attention the original's label_emb."""
    if settings.drop_rate and not settings.null_class:
        raise UserError(
            "config.loss.drop_rate needs a null class: set config.null_class = True"
        )
    if settings.num_classes < 1:
        raise UserError(
            "config.num_classes = 0 stands for as many as the data has: "
            "lDM_jax.from_config.datasets.resolve(config) counts them"
        )
    width = settings.context_width
    network = ClassConditioner(
        settings.num_classes,
        width or settings.time_width,
        null_class=settings.null_class,
        as_vector=not width,
    )
    return (Condition("label", "class", "context" if width else "vector", network),)


def check(request, settings: Settings) -> None:
    """UserError for a label that is no class."""
    if not 0 <= request.label < settings.num_classes:
        raise UserError(
            f"label is {request.label}; valid: 0 .. {settings.num_classes - 1}"
            + listed(settings.class_names)
        )


def listed(names: tuple[str, ...]) -> str:
    """ " (cat, dog)" for a message; "" without names."""
    some = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
    return f" ({some})" if names else ""


def original(settings: Settings, channels: int) -> Original:
    """`ClassEmbedder`, or the UNet's own `label_emb`."""
    rows, width = settings.num_classes + settings.null_class, settings.context_width
    note = "the last class is the null class, which the YAML cannot say"
    note = note if settings.null_class else ""
    if not width:
        return Original("class_label", "adm", IDENTITY, num_classes=rows, note=note)
    params = dict(n_classes=rows, embed_dim=width, key="class_label")
    return Original("class_label", "crossattn", "ClassEmbedder", params, note=note)


TASK = Task(
    name="class",
    conditions=conditions,
    shapes=lambda settings: {"label": (np.int32, ())},
    example="label",
    hint="every image in a sub-folder, one a class, or a label in metadata.jsonl",
    labels=Labels("classes", complete=True),
    field="label",
    ask="draws from classes: give a label",
    check=check,
    row=lambda request, pixels, settings: {
        "label": np.asarray(request.label, np.int32)
    },
    draws_from="classes",
    figures="recognition",
    original=original,
)
