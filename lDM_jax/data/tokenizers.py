"""Text -> token ids: BERT's word pieces (the paper), CLIP's BPE (Stable Diffusion).

Owns the vocabulary files. Imports no jax, so that data workers may tokenize.
"""

import gzip
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tokenizers import Regex, Tokenizer
from tokenizers.models import BPE, WordPiece
from tokenizers.normalizers import NFC, BertNormalizer, Lowercase
from tokenizers.normalizers import Sequence as InTurn
from tokenizers.pre_tokenizers import BertPreTokenizer, ByteLevel, Split
from tokenizers.pre_tokenizers import Sequence as SplitInTurn
from tokenizers.processors import BertProcessing

from lDM_jax.core.errors import UserError
from lDM_jax.core.files import ASSETS

BERT_VOCAB = ASSETS / "bert_vocab.txt"
CLIP_MERGES = ASSETS / "clip_merges.txt.gz"
PAD, UNK, CLS, SEP, MASK = "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"
SPECIAL = (PAD, UNK, CLS, SEP, MASK)
START, END = "<|startoftext|>", "<|endoftext|>"
# CLIP's words: special tokens (those in capitals still are in a text by then), English
# clitics, runs of letters, single digits, runs of the rest.
CLIP_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d"
CLIP_WORDS += r"|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"


class _Padded:
    """What both tokenizers share: rows of `max_length` from the library's tokenizer."""

    max_length: int
    _backend: Tokenizer

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """i32 "b n", one row a text."""
        if isinstance(texts, str):
            name = type(self).__name__
            raise TypeError(f"{name} takes a list of texts, was given one str")
        # One at a time: the batch call starts a thread pool that outlives it.
        rows = [self._backend.encode(text).ids for text in texts]
        return np.array(rows, np.int32).reshape(len(rows), self.max_length)

    def loses(self, text: str) -> bool:
        """True if the text is too long, so that its end is left out."""
        return bool(self._backend.encode(text).overflowing)


def _check_length(length: int, ends: str) -> None:
    if length < 2:
        raise UserError(f"max_length is {length}: at least 2 are needed, {ends}")


class BertTokenizer(_Padded):
    """`tokenizer(texts)` -> i32 "b n": [CLS] pieces [SEP], then zeros up to max_length.

    The same ids as transformers' BertTokenizerFast of bert-base-uncased with
    padding="max_length" and truncation: lower case, no accents, a word cut greedily
    into the longest pieces of the vocabulary, an ideograph a word of its own. A text
    that is too long loses its end and keeps [SEP]. QUIRK(special tokens): as there, a
    text that spells a special token, "[MASK]", gets that token.

    vocab_path: one piece a line, the line number being the id; None is the shipped
        vocabulary of 30,522. Raises UserError without the file or a special token.
    max_length: n, at least 2.
    """

    def __init__(self, vocab_path: str | Path | None = None, max_length: int = 77):
        _check_length(max_length, "[CLS] and [SEP]")
        self.max_length, self.vocab_path = max_length, Path(vocab_path or BERT_VOCAB)
        try:
            pieces = self.vocab_path.read_text(encoding="utf-8").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read {self.vocab_path}: {error}") from None
        vocab = {piece: index for index, piece in enumerate(pieces) if piece}
        missing = [token for token in SPECIAL if token not in vocab]
        if missing:
            text = f"{self.vocab_path} is not a BERT vocabulary: no line {missing[0]}"
            raise UserError(text)
        self.vocab_size = len(vocab)
        backend = Tokenizer(WordPiece(vocab, unk_token=UNK))
        backend.normalizer = BertNormalizer(lowercase=True)
        backend.pre_tokenizer = BertPreTokenizer()
        backend.post_processor = BertProcessing((SEP, vocab[SEP]), (CLS, vocab[CLS]))
        backend.add_special_tokens(list(SPECIAL))
        backend.enable_truncation(max_length)
        backend.enable_padding(length=max_length, pad_id=vocab[PAD], pad_token=PAD)
        self._backend = backend

    def __reduce__(self):
        return BertTokenizer, (self.vocab_path, self.max_length)


class ClipTokenizer(_Padded):
    """`tokenizer(texts)` -> i32 "b n": start, pieces, end, padding up to max_length.

    The same ids as transformers' CLIPTokenizer with padding="max_length" and
    truncation: NFC, lower case, words without the blanks between them, whose bytes are
    joined pair by pair in the order of the shipped merges. A text that is too long
    loses its end and keeps the end token, 49407.

    OpenAI's and OpenCLIP's own tokenizers repair a text first: HTML entities, and by
    the library ftfy typographic quotes, full width forms and broken encodings. That is
    out of scope here. Of a text in good repair they make the same ids, but for a
    capital sigma that ends a word. QUIRK(special tokens): a text that spells
    "<|endoftext|>" gets that token.

    max_length: n, at least 2.
    pad: "eos", the end token (Stable Diffusion 1.x), or "zero", the id 0 of OpenCLIP
        (2.x); transformers calls 0 "!" and, unlike OpenCLIP and this tokenizer, then
        reads a "!" of the text as 0 too. Raises UserError for any other.
    """

    vocab_size = 49_408

    def __init__(self, max_length: int = 77, pad: str = "eos"):
        _check_length(max_length, "start and end")
        if pad not in ("eos", "zero"):
            raise UserError(f"pad is {pad!r}: one of eos, zero")
        self.max_length, self.pad = max_length, pad
        vocab, merges = clip_vocabulary()
        backend = Tokenizer(BPE(vocab, merges, end_of_word_suffix="</w>"))
        backend.normalizer = InTurn([NFC(), Lowercase()])
        words = Split(Regex(CLIP_WORDS), behavior="removed", invert=True)
        backend.pre_tokenizer = SplitInTurn([words, ByteLevel(add_prefix_space=False)])
        ends = (END, vocab[END]), (START, vocab[START])
        backend.post_processor = BertProcessing(*ends)
        backend.add_special_tokens([START, END])
        backend.enable_truncation(max_length)
        pad_id = vocab[END] if pad == "eos" else 0
        backend.enable_padding(length=max_length, pad_id=pad_id)
        self._backend = backend

    def __reduce__(self):
        return ClipTokenizer, (self.max_length, self.pad)


def clip_vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """(id by piece, merges in order) of CLIP, 49,408 and 48,894 of them.

    A byte is written as one character: itself where Latin-1 prints it, else the next
    one from U+0100 on. Ids: the printed bytes, the other ones, all 256 at the end of a
    word ("</w>"), what each merge makes, start and end.
    """
    lines = gzip.decompress(CLIP_MERGES.read_bytes()).decode("utf-8").splitlines()
    merges = [tuple(line.split(" ")) for line in lines]
    printed = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = range(0x100, 0x200 - len(printed))
    characters = [chr(code) for code in (*printed, *others)]
    pieces = characters + [character + "</w>" for character in characters]
    pieces += ["".join(merge) for merge in merges] + [START, END]
    return {piece: index for index, piece in enumerate(pieces)}, merges
