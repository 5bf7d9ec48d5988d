"""Words or boxes as tokens, read by a transformer that trains with the denoiser."""

from lDM_jax.core.errors import UserError
from lDM_jax.models.bert_text import TextTransformer
from lDM_jax.models.conditioners import TextConditioner
from lDM_jax.models.construct import construct
from lDM_jax.tasks.task import Original, Settings

THEIR_HEADS = (8, 64)  # heads and their width, which the original program fixes


def token_encoder(settings: Settings) -> TextConditioner:
    """The transformer of config.text. UserError unless its width is attended to."""
    section = {k: v for k, v in settings.text.items() if k not in ("kind", "path")}
    if section["width"] != settings.context_width:
        raise UserError(
            f"config.text.width ({section['width']}) must equal "
            f"config.unet.context_width ({settings.context_width})"
        )
    network = construct(TextTransformer, section, "text")
    return TextConditioner(network, null_tokens(settings))


def null_tokens(settings: Settings) -> tuple[int, ...]:
    """The tokens of the dropped condition: of no text, of no boxes."""
    return tuple(settings.tokenizer([""])[0].tolist())


def original(settings: Settings, key: str, **params) -> Original:
    """`BERTEmbedder` under a cond_stage_key. UserError for other heads than its own."""
    text = settings.text
    if (text["num_heads"], text["head_width"]) != THEIR_HEADS:
        raise UserError(
            "the original program's text transformer has 8 heads of 64, this one "
            f"{text['num_heads']} of {text['head_width']}: it cannot be written"
        )
    sizes = dict(n_embed=text["width"], n_layer=text["depth"])
    sizes |= dict(max_seq_len=text["max_length"], vocab_size=text["vocab_size"])
    return Original(key, "crossattn", "BERTEmbedder", sizes | params)
