"""BERT's and CLIP's word pieces against published ids and against other programs."""

import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lDM_jax.core.errors import UserError
from lDM_jax.data.sources import EmojiSource
from lDM_jax.data.tokenizers import (
    BERT_VOCAB,
    BertTokenizer,
    ClipTokenizer,
    clip_vocabulary,
)
from tests.reference import rule

ROOT = Path(__file__).parents[2]
HARD_TEXTS = [
    "",
    "   \t\n ",
    "Héllo, Wörld! naïve façade São Tomé & Príncipe Côte d’Ivoire Åland",
    "can't won't ... --- (a)[b]{c} <d> #5 $3.50 50% a/b_c a\\b ~ ^ `x` |",
    "東京タワー 北京 서울 한국어 日本語のテキスト",
    "привет мир Ελληνικά ΑΒΓ İstanbul ß straße",
    "Ｆｕｌｌ ｗｉｄｔｈ ﬁne ½ ² №",
    "emoji 😀 👩‍🚀 ❤️ between words",
    "zero\u200bwidth\u00a0nbsp\u2028line\x00nul\ufffdreplacement\u00adsoft",
    "e\u0301 combining cafe\u0301 n\u0303",
    "antidisestablishmentarianism supercalifragilisticexpialidocious qzxvj",
    "x" * 100,
    "x" * 101,
    "a [MASK] b [SEP] c [UNK]",
    "word " * 200,
    "-" * 90,
    "مرحبا بالعالم שלום עולם สวัสดี नमस्ते",
]
# Special tokens, clitics in both cases, a final sigma, letters that lower to several.
CLIP_TEXTS = [
    "A Photo   of\n\ta CAT!!! it's 2024's, don't I'LL we've they're I'd I'M",
    "a <|endoftext|> b <|startoftext|> <|EndOfText|> <|ENDOFTEXT|>! <start_of_text>",
    "\u03a3\u0391\u03a3 \u0130 \u01c5 \u1e9e \u0345 'S '\u017f x'y ''s",
    "\u2026\u2014\u201cquotes\u201d \u2018x\u2019 a\x1cb\x85c &amp; &lt;b&gt;",
    "1234567890 \u0661\u0662 \u2167 \u00bd",
]


@pytest.fixture(scope="module")
def tokenizer():
    return BertTokenizer()


def pad(ids, length):
    return ids + [0] * (length - len(ids))


@pytest.mark.parametrize(
    "text, ids",
    [
        ("hello world", [101, 7592, 2088, 102]),
        ("", [101, 102]),
        # The two sentences of Hugging Face's course, chapter 2.2.
        (
            "I've been waiting for a HuggingFace course my whole life.",
            [101, 1045, 1005, 2310, 2042, 3403, 2005, 1037]
            + [17662, 12172, 2607, 2026, 2878, 2166, 1012, 102],
        ),
        ("I hate this so much!", [101, 1045, 5223, 2023, 2061, 2172, 999, 102]),
    ],
)
def test_published_ids_of_bert_base_uncased(tokenizer, text, ids):
    tokens = tokenizer([text])
    assert tokens.dtype == np.int32
    assert tokens.tolist() == [pad(ids, 77)]


def test_the_example_of_google_s_bert_repository(tmp_path):
    """tokenization_test.py there: un ##want ##ed , runn ##ing has these ids."""
    pieces = ["[UNK]", "[CLS]", "[SEP]", "want", "##want", "##ed", "wa", "un"]
    pieces += ["runn", "##ing", ",", "[PAD]", "[MASK]"]
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(pieces) + "\n", encoding="utf-8")
    tokens = BertTokenizer(path, max_length=8)(["UNwant\u00e9d,running"])
    assert tokens.tolist() == [[1, 7, 4, 5, 10, 8, 9, 2]]


@pytest.fixture(scope="module")
def reference():
    """transformers' tokenizer in pure Python, which shares no code with ours."""
    module = pytest.importorskip(
        "transformers.models.bert.tokenization_bert_legacy",
        reason="this transformers has no slow BERT tokenizer",
    )
    return module.BertTokenizerLegacy(str(BERT_VOCAB))


def padded(reference, texts):
    encoded = reference(texts, padding="max_length", truncation=True, max_length=77)
    return np.array(encoded["input_ids"])


@pytest.mark.parametrize("text", HARD_TEXTS)
def test_hard_texts_agree_with_transformers_python_tokenizer(
    tokenizer, reference, text
):
    np.testing.assert_array_equal(tokenizer([text]), padded(reference, [text]))


def test_hard_texts_agree_with_transformers_fast_tokenizer(tokenizer):
    transformers = pytest.importorskip(
        "transformers", reason="needs requirements-dev.txt"
    )
    fast = transformers.BertTokenizerFast(vocab=str(BERT_VOCAB))
    np.testing.assert_array_equal(tokenizer(HARD_TEXTS), padded(fast, HARD_TEXTS))


def test_captions_agree_with_transformers_python_tokenizer(tokenizer, reference):
    source = EmojiSource(split="test")
    expected = padded(reference, source.captions)
    np.testing.assert_array_equal(tokenizer(source.captions), expected)


def test_no_caption_is_truncated_and_none_holds_an_unknown_piece(tokenizer):
    for split in ("train", "validation", "test"):
        tokens = tokenizer(EmojiSource(split=split).captions)
        assert (tokens[:, -1] == 0).all()
        assert not (tokens == 100).any()


def test_a_long_text_keeps_its_separator():
    tokens = BertTokenizer(max_length=5)(["one two three four five", "one"])
    assert tokens.tolist() == [[101, 2028, 2048, 2093, 102], [101, 2028, 102, 0, 0]]


def test_vocabulary_is_whole_and_shapes_hold(tokenizer):
    assert tokenizer.vocab_size == 30_522
    assert tokenizer([]).shape == (0, 77)
    assert tokenizer(["a", "b", "c"]).shape == (3, 77)


def test_pickled_tokenizer_says_the_same():
    tokenizer = BertTokenizer(max_length=9)
    again = pickle.loads(pickle.dumps(tokenizer))
    np.testing.assert_array_equal(again(["red heart"]), tokenizer(["red heart"]))


def test_bad_input_is_named(tmp_path, tokenizer):
    with pytest.raises(UserError, match="max_length is 1"):
        BertTokenizer(max_length=1)
    with pytest.raises(UserError, match="cannot read .*nowhere"):
        BertTokenizer(tmp_path / "nowhere")
    path = tmp_path / "vocab.txt"
    path.write_text("just\nwords\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"vocab.txt is not a BERT vocabulary"):
        BertTokenizer(path)
    with pytest.raises(TypeError, match="list of texts"):
        tokenizer("red heart")


def test_tokenizing_does_not_import_jax():
    code = "import sys, lDM_jax.data.tokenizers as t; t.BertTokenizer()(['a']);"
    code += "t.ClipTokenizer()(['a']);"
    code += "assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


# CLIP.
@pytest.fixture(scope="module")
def clip():
    return ClipTokenizer()


@pytest.mark.parametrize(
    "text, ids",
    [
        # Ids that the tests of other programs expect.
        ("a photo of a cat", [49406, 320, 1125, 539, 320, 2368, 49407]),
        ("a photo of a dog", [49406, 320, 1125, 539, 320, 1929, 49407]),
        ("", [49406, 49407]),
    ],
)
def test_clip_known_ids_and_both_paddings(clip, text, ids):
    tokens = clip([text])
    assert tokens.dtype == np.int32
    assert tokens.tolist() == [ids + [49407] * (77 - len(ids))]
    assert ClipTokenizer(pad="zero")([text]).tolist() == [pad(ids, 77)]


def test_clip_ids_recorded_from_open_clip():
    """Texts in good repair: what OpenCLIP's own tokenizer, which needs ftfy, made."""
    recorded = rule.read_arrays(rule.FOLDER / "open_clip.npz")
    tokens = ClipTokenizer(pad="zero")(recorded["texts"].tolist())
    assert len(tokens) == 10
    np.testing.assert_array_equal(tokens, recorded["ids"])


@pytest.fixture(scope="module")
def clip_reference(tmp_path_factory):
    """transformers' tokenizer, from the two files it reads, written from the asset."""
    transformers = pytest.importorskip(
        "transformers", reason="needs requirements-dev.txt"
    )
    folder = tmp_path_factory.mktemp("clip")
    vocab, merges = clip_vocabulary()
    (folder / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(merge) for merge in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return transformers.CLIPTokenizerFast.from_pretrained(folder)


@pytest.mark.parametrize("text", HARD_TEXTS + CLIP_TEXTS)
def test_clip_hard_texts_agree_with_transformers(clip, clip_reference, text):
    expected = padded(clip_reference, [text])
    np.testing.assert_array_equal(clip([text]), expected)
    # The other padding: zeros after the first end that is not the text's own.
    ends = np.flatnonzero(expected[0] != 49407)[-1] + 2
    expected[:, ends:] = 0
    np.testing.assert_array_equal(ClipTokenizer(pad="zero")([text]), expected)


def test_clip_captions_agree_with_transformers(clip, clip_reference):
    captions = EmojiSource(split="test").captions
    np.testing.assert_array_equal(clip(captions), padded(clip_reference, captions))


def test_clip_vocabulary_is_whole(clip):
    vocab, merges = clip_vocabulary()
    assert (len(vocab), len(merges)) == (clip.vocab_size, 49_152 - 256 - 2)
    assert vocab["!"] == 0 and vocab["!</w>"] == 256
    assert vocab["<|startoftext|>"] == 49_406 and vocab["<|endoftext|>"] == 49_407


def test_clip_keeps_its_end_pickles_and_takes_no_text(clip):
    short = ClipTokenizer(max_length=4, pad="zero")
    expected = [[49406, 320, 1125, 49407], [49406, 320, 49407, 0]]
    assert short(["a photo of a cat", "a"]).tolist() == expected
    assert pickle.loads(pickle.dumps(short))(["a"]).tolist() == expected[1:]
    assert clip([]).shape == (0, 77)


def test_clip_bad_input_is_named(clip):
    with pytest.raises(UserError, match="max_length is 1"):
        ClipTokenizer(max_length=1)
    with pytest.raises(UserError, match="pad is 'left': one of eos, zero"):
        ClipTokenizer(pad="left")
    with pytest.raises(TypeError, match="list of texts"):
        clip("red heart")
