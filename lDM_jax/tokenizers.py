"""Text -> token ids: BERT's word pieces (the text-to-image model of the paper).

Owns the vocabulary file. Imports no jax, so that data workers may tokenise.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import BertProcessing

from lDM_jax.errors import UserError

BERT_VOCAB = Path(__file__).parent / "assets" / "bert_vocab.txt"
PAD, UNK, CLS, SEP, MASK = "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"
SPECIAL = (PAD, UNK, CLS, SEP, MASK)


class BertTokenizer:
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
        if max_length < 2:
            raise UserError(
                f"max_length is {max_length}: at least 2 are needed, [CLS] and [SEP]"
            )
        self.vocab_path = Path(vocab_path or BERT_VOCAB)
        self.max_length = max_length
        try:
            pieces = self.vocab_path.read_text(encoding="utf-8").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read {self.vocab_path}: {error}") from None
        vocab = {piece: index for index, piece in enumerate(pieces) if piece}
        missing = [token for token in SPECIAL if token not in vocab]
        if missing:
            raise UserError(
                f"{self.vocab_path} is not a BERT vocabulary: no line {missing[0]}"
            )
        self.vocab_size = len(vocab)
        backend = Tokenizer(WordPiece(vocab, unk_token=UNK))
        backend.normalizer = BertNormalizer(lowercase=True)
        backend.pre_tokenizer = BertPreTokenizer()
        backend.post_processor = BertProcessing((SEP, vocab[SEP]), (CLS, vocab[CLS]))
        backend.add_special_tokens(list(SPECIAL))
        backend.enable_truncation(max_length)
        backend.enable_padding(length=max_length, pad_id=vocab[PAD], pad_token=PAD)
        self._backend = backend

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """i32 "b n", one row a text."""
        if isinstance(texts, str):
            raise TypeError("BertTokenizer takes a list of texts, was given one str")
        # One at a time: the batch call starts a thread pool that outlives it.
        rows = [self._backend.encode(text).ids for text in texts]
        return np.array(rows, np.int32).reshape(len(rows), self.max_length)

    def __reduce__(self):
        return BertTokenizer, (self.vocab_path, self.max_length)
