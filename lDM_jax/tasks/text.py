"""From a prompt: by a transformer that trains with the denoiser, or a frozen tower."""

from collections.abc import Callable

import numpy as np

from lDM_jax.core.errors import UserError
from lDM_jax.data.tokenizers import BertTokenizer, ClipTokenizer
from lDM_jax.data.transforms import Tokenize
from lDM_jax.diffusion.latent_diffusion import Tower
from lDM_jax.models.clip_text import ClipText
from lDM_jax.models.conditioners import AsItIs
from lDM_jax.models.construct import construct, lookup
from lDM_jax.tasks import tokens
from lDM_jax.tasks.task import Condition, Original, Settings, Task, need_context

KINDS = {"bert": False, "clip": True}  # whether it is a frozen tower


def is_frozen(settings: Settings) -> bool:
    """True for a frozen tower. UserError for a config.text.kind that is unknown."""
    return lookup(KINDS, settings.text["kind"], "config.text.kind")


def network(settings: Settings) -> ClipText:
    """The frozen tower's."""
    return construct(ClipText, settings.text["network"], "text.network")


def tokenizer(settings: Settings) -> Callable:
    """BERT's word pieces, or CLIP's."""
    if not is_frozen(settings):
        return BertTokenizer(max_length=settings.text["max_length"])
    pad = {key: settings.text[key] for key in ("pad",) if key in settings.text}
    return ClipTokenizer(max_length=network(settings).max_length, **pad)


def towers(settings: Settings) -> tuple[Tower, ...]:
    """The frozen tower, if there is one."""
    if not is_frozen(settings):
        return ()
    return (Tower("text", network(settings), tokens.null_tokens(settings)),)


def conditions(settings: Settings) -> tuple[Condition, ...]:
    """Tokens, or the tower's output, whose rows the tower itself has dropped."""
    need_context(settings, TASK.name)
    if not is_frozen(settings):
        encoder = tokens.token_encoder(settings)
        return (Condition("tokens", "text", "context", encoder),)
    width = network(settings).width
    if width != settings.context_width:
        raise UserError(
            f"the text tower is {width} wide, but config.unet.context_width is "
            f"{settings.context_width}"
        )
    return (Condition("embeddings", "tower", "context", AsItIs(droppable=False)),)


def check(request, settings: Settings) -> None:
    """UserError for a prompt without a word."""
    if not request.prompt.strip():
        raise UserError("a prompt is empty: give at least one word")


def original(settings: Settings, channels: int) -> Original:
    """`BERTEmbedder`, or the tower of Stable Diffusion."""
    if is_frozen(settings):
        return Original("caption", "crossattn", "")
    return tokens.original(settings, "caption")


TASK = Task(
    name="text",
    conditions=conditions,
    tokenizer=tokenizer,
    towers=towers,
    shapes=lambda settings: {"tokens": (np.int32, (settings.tokenizer.max_length,))},
    steps=lambda settings: [Tokenize(settings.tokenizer)],
    example="caption",
    hint="photo.txt beside photo.jpg, or a caption in metadata.jsonl",
    field="prompt",
    ask="draws from text: give at least one prompt",
    check=check,
    row=lambda request, pixels, settings: {
        "tokens": settings.tokenizer([request.prompt])[0]
    },
    draws_from="captions",
    original=original,
    diffusers=("LDMTextToImagePipeline", "StableDiffusionPipeline"),
)
