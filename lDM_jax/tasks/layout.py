"""From boxes with labels, as tokens."""

import numpy as np

from lDM_jax.core.errors import UserError
from lDM_jax.data.box_tokens import BoxTokenizer
from lDM_jax.data.transforms import TokenizeLayout
from lDM_jax.models.boxes import TokenBoxes
from lDM_jax.tasks import tokens
from lDM_jax.tasks.task import Condition, Labels, Original, Settings, Task, need_context


def tokenizer(settings: Settings) -> BoxTokenizer:
    """Three tokens an object and two more."""
    return BoxTokenizer(settings.text["max_length"], settings.text["vocab_size"])


def conditions(settings: Settings) -> tuple[Condition, ...]:
    """The tokens, and with `within_boxes` where each of them may be attended to."""
    need_context(settings, TASK.name)
    words = Condition("boxes", "layout", "context", tokens.token_encoder(settings))
    if not settings.layout["within_boxes"]:
        return (words,)
    places = TokenBoxes(settings.text["vocab_size"])
    return words, Condition("boxes", "token_boxes", "boxes", places)


def original(settings: Settings, channels: int) -> Original:
    """`BERTEmbedder` without its tokenizer."""
    if settings.layout["within_boxes"]:
        raise UserError("the original program has no place for layout.within_boxes")
    return tokens.original(settings, "coordinates_bbox", use_tokenizer=False)


TASK = Task(
    name="layout",
    conditions=conditions,
    tokenizer=tokenizer,
    shapes=lambda settings: {"boxes": (np.int32, (settings.tokenizer.max_length,))},
    steps=lambda settings: [TokenizeLayout(settings.tokenizer)],
    example="layout",
    hint="boxes and labels in metadata.jsonl",
    labels=Labels("categories", complete=False),
    field="layout",
    ask="draws from boxes: give a layout",
    row=lambda request, pixels, settings: {
        "boxes": settings.tokenizer([request.layout])[0]
    },
    figures="objects",
    original=original,
)
