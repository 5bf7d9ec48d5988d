"""The emoji, the script that made them, and the transforms.

Expectations are counts of Unicode's list, PIL's own compositing, coreutils' hash and
probabilities; none is an earlier output of this code. The loader: test_data_pipeline.
"""

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lDM_jax.core import image
from lDM_jax.core.errors import UserError
from lDM_jax.data.sources import EMOJI, ArraySource, EmojiSource, First, pad_square
from lDM_jax.data.tokenizers import BertTokenizer
from lDM_jax.data.transforms import (
    Compose,
    Composite,
    Keep,
    RandomFlip,
    Tokenize,
    compose,
)
from tests.toys import write_records

ROOT = Path(__file__).parents[2]
FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
NAMES = Path("/usr/share/unicode/emoji/emoji-test.txt")
SPLITS = ("train", "validation", "test")


def rng():
    return np.random.default_rng(0)


@pytest.fixture(scope="module")
def emoji():
    return {split: EmojiSource(split=split, size_px=32) for split in SPLITS}


# The embedded data set


def test_emoji_has_the_counts_of_unicode_15(emoji):
    assert sum(len(source) for source in emoji.values()) == 3655
    assert len(emoji["train"].groups) == 9
    assert len(emoji["train"].subgroups) == 99
    assert emoji["train"].subgroups == emoji["test"].subgroups


def test_split_shares_are_those_of_a_uniform_hash(emoji):
    for split, share in (("train", 0.9), ("validation", 0.05), ("test", 0.05)):
        deviation = np.sqrt(3655 * share * (1 - share))
        assert abs(len(emoji[split]) - 3655 * share) < 3 * deviation


def test_labels_are_indices_of_subgroups(emoji):
    source = emoji["train"]
    flag = source.captions.index("flag: France")
    assert source.subgroups[source[flag]["label"]] == "country-flag"
    assert source[flag]["label"] == source.labels[flag]
    assert source[flag]["label"].dtype == np.int32
    assert set(source.labels) == set(range(99))


def test_every_emoji_has_a_picture_that_is_not_empty(emoji):
    for source in emoji.values():
        for i in range(len(source)):
            picture = source[i]["image"]
            assert picture.shape == (32, 32, 4) and picture.dtype == np.uint8
            assert (picture[:, :, 3] > 128).sum() > 20


@pytest.mark.parametrize(
    "caption, near",
    [
        ("red heart", (1.0, -0.6, -0.6)),
        ("green heart", (-0.4, 0.6, -0.6)),
        ("black large square", (-0.6, -0.6, -0.6)),
        ("white large square", (0.8, 0.8, 0.8)),
    ],
)
def test_names_and_pictures_belong_together(emoji, caption, near):
    result = [s for s in emoji.values() if caption in s.captions]
    example = result[0][result[0].captions.index(caption)]
    x = Composite()(example, rng())["image"]
    middle = x[14:18, 14:18].mean(axis=(0, 1))
    np.testing.assert_allclose(middle, near, atol=0.4)


def test_flag_of_france_is_blue_white_red_from_left_to_right(emoji):
    source = next(s for s in emoji.values() if "flag: France" in s.captions)
    x = Composite()(source[source.captions.index("flag: France")], rng())["image"]
    left, middle, right = x[15, 6], x[15, 16], x[15, 26]
    assert left[2] > left[0] + 0.5
    assert middle.min() > 0.6
    assert right[0] > right[2] + 0.5


@pytest.fixture(scope="module")
def white_disc(tmp_path_factory):
    """A white disc on transparent black, 136 x 128 as the font's images are."""
    y, x = np.mgrid[:128, :136]
    inside = (x - 67.5) ** 2 + (y - 63.5) ** 2 < 50**2
    pixels = np.where(inside[:, :, None], 255, 0).astype(np.uint8).repeat(4, axis=2)
    path = tmp_path_factory.mktemp("disc") / "disc.array_record"
    return write_records(path, pixels)


@pytest.mark.parametrize("size_px", [32, 64, 100, 200])
def test_white_on_white_is_white_at_every_edge(white_disc, size_px):
    """Invisible black must not darken the border; 1 level for 8-bit arithmetic."""
    example = EmojiSource(size_px=size_px, path=white_disc)[0]
    x = Composite()(example, rng())["image"]
    assert x.min() >= 1.0 - 1 * 2 / 255


def test_picture_is_centred_and_keeps_its_proportions(white_disc):
    alpha = EmojiSource(size_px=136, path=white_disc)[0]["image"][:, :, 3] / 255.0
    y, x = np.mgrid[:136, :136]
    np.testing.assert_allclose((alpha * x).sum() / alpha.sum(), 67.5, atol=1e-6)
    np.testing.assert_allclose((alpha * y).sum() / alpha.sum(), 67.5, atol=1e-6)
    # A disc of radius 50 has this area; 1 % for counting whole pixels.
    np.testing.assert_allclose(alpha.sum(), np.pi * 50**2, rtol=0.01)


def test_pad_square_keeps_every_pixel():
    pixels = rng().integers(1, 256, (3, 8, 4), np.uint8)
    square = pad_square(pixels)
    assert square.shape == (8, 8, 4)
    np.testing.assert_array_equal(square[2:5], pixels)
    assert square[:2].max() == 0 and square[5:].max() == 0


def test_source_errors_name_what_is_valid(tmp_path):
    with pytest.raises(UserError, match="'train', 'validation', 'test'"):
        EmojiSource(split="dev")
    with pytest.raises(UserError, match="size_px is 0"):
        EmojiSource(size_px=0)
    with pytest.raises(UserError, match="nowhere"):
        EmojiSource(path=tmp_path / "nowhere")
    torn = tmp_path / "torn.array_record"
    torn.write_bytes(EMOJI.read_bytes()[:1_000_000])
    with pytest.raises(UserError, match="not a whole ArrayRecord file"):
        EmojiSource(path=torn)


def test_fingerprint_depends_on_content_and_options(emoji):
    def fingerprint(**options):
        return EmojiSource(**options).fingerprint

    assert fingerprint(split="test", size_px=32) == emoji["test"].fingerprint
    assert fingerprint(split="test", size_px=64) != emoji["test"].fingerprint
    assert emoji["validation"].fingerprint != emoji["test"].fingerprint
    a = {"x": np.arange(6).reshape(3, 2)}
    assert ArraySource(a).fingerprint == ArraySource(dict(a)).fingerprint
    assert ArraySource(a).fingerprint != ArraySource({"x": a["x"] + 1}).fingerprint
    assert ArraySource(a).fingerprint != ArraySource({"y": a["x"]}).fingerprint
    bits = {"x": a["x"].view(np.uint64)}
    assert ArraySource(a).fingerprint != ArraySource(bits).fingerprint
    assert ArraySource(a).fingerprint != ArraySource({"x": a["x"][:, ::-1]}).fingerprint


def test_array_source_gives_rows_and_refuses_unequal_lengths():
    source = ArraySource({"a": np.arange(3), "b": np.eye(3)})
    assert len(source) == 3
    np.testing.assert_array_equal(source[1]["b"], [0, 1, 0])
    for bad in ({}, {"a": np.arange(3), "b": np.arange(4)}, {"a": np.array(1)}):
        with pytest.raises(ValueError, match="one common length"):
            ArraySource(bad)


# The script that made the file

PASSAGE = """\
# group: People & Body
# subgroup: person-role
1F468 200D 1F33E                ; fully-qualified     # \U0001f468 E4.0 man farmer
263A                            ; unqualified         # \u263a E0.6 smiling face
# group: Symbols
# subgroup: keycap
0023 FE0F 20E3                  ; fully-qualified     # #\ufe0f\u20e3 E0.6 keycap: #
"""


def test_read_names_reads_unicode_s_format():
    make_emoji = pytest.importorskip(
        "lDM_jax.tools.make_emoji", reason="needs fontTools of requirements-dev.txt"
    )
    assert list(make_emoji.read_names(PASSAGE)) == [
        ("1F468 200D 1F33E", "man farmer", "People & Body", "person-role"),
        ("0023 FE0F 20E3", "keycap: #", "Symbols", "keycap"),
    ]


@pytest.mark.parametrize(
    "codepoints, split",
    [
        ("1F600", "train"),  # 27
        ("263A FE0F", "train"),  # 10
        ("1F415", "train"),  # 89
        ("1F680", "validation"),  # 90
        ("1F381", "validation"),  # 93
        ("1F4A9", "test"),  # 98
    ],
)
def test_split_is_that_of_coreutils_sha256sum(codepoints, split):
    """printf CODEPOINTS | sha256sum, modulo 100 with bc."""
    make_emoji = pytest.importorskip(
        "lDM_jax.tools.make_emoji", reason="needs fontTools of requirements-dev.txt"
    )
    assert make_emoji.split_of(codepoints) == split


@pytest.mark.skipif(
    not (FONT.exists() and NAMES.exists()), reason="Debian's font and names needed"
)
def test_the_script_makes_the_shipped_file_again(tmp_path):
    make_emoji = pytest.importorskip(
        "lDM_jax.tools.make_emoji", reason="needs fontTools of requirements-dev.txt"
    )
    if "Version: 15.0" not in NAMES.read_text(encoding="utf-8"):
        pytest.skip("other Unicode version")
    report = make_emoji.make(FONT, NAMES, out=tmp_path / "emoji.array_record")
    assert report["without a glyph"] == []
    assert (tmp_path / "emoji.array_record").read_bytes() == EMOJI.read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["emoji.array_record"]


def test_script_refuses_bad_input_in_one_line(tmp_path, capsys):
    make_emoji = pytest.importorskip(
        "lDM_jax.tools.make_emoji", reason="needs fontTools of requirements-dev.txt"
    )
    font = tmp_path / "font.ttf"
    font.write_bytes(b"not a font")
    out = tmp_path / "out"
    flags = ["--font", str(font), "--names", str(font), "--out", str(out)]
    assert make_emoji.main(flags) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not out.exists()


def test_script_leaves_no_half_written_file(tmp_path, monkeypatch):
    make_emoji = pytest.importorskip(
        "lDM_jax.tools.make_emoji", reason="needs fontTools of requirements-dev.txt"
    )

    class TornFont:
        def __init__(self, path):
            self.glyphs = iter([b"first"])

        def png(self, codepoints):
            return next(self.glyphs)

    monkeypatch.setattr(make_emoji, "Font", TornFont)
    names = tmp_path / "names.txt"
    names.write_text(PASSAGE, encoding="utf-8")
    with pytest.raises(StopIteration):
        make_emoji.make("font", names, out=tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["names.txt"]


# Transforms


@pytest.mark.parametrize("background", ["white", "random"])
def test_composite_agrees_with_pil(background):
    pixels = rng().integers(0, 256, (9, 7, 4), np.uint8)
    pixels[0, 0] = 0
    x = Composite(background)({"image": pixels}, rng())["image"]
    assert x.dtype == np.float32 and x.shape == (9, 7, 3)
    colour = image.to_uint8(x[0, 0])
    if background == "white":
        np.testing.assert_array_equal(colour, 255)
    behind = Image.new("RGBA", (7, 9), (*colour.tolist(), 255))
    behind.alpha_composite(Image.fromarray(pixels))
    # PIL rounds once to 8 bits: half a level of 2 / 255, and f32 rounding.
    expected = image.to_float(np.asarray(behind)[:, :, :3])
    np.testing.assert_allclose(x, expected, atol=0.51 * 2 / 255)


def test_random_background_is_uniform_over_colours():
    """Mean 0 and variance 1/3 of a uniform [-1, 1]; 5 standard errors of 3,000."""
    clear = {"image": np.zeros((1, 1, 4), np.uint8)}
    source, transform = np.random.default_rng(3), Composite("random")
    colours = [transform(clear, source)["image"][0, 0] for _ in range(1000)]
    colours = np.array(colours)
    assert abs(colours.mean()) < 5 * np.sqrt(1 / 3 / 3000)
    assert abs(colours.var() - 1 / 3) < 5 * np.sqrt(4 / 45 / 3000)
    assert colours.min() >= -1 and colours.max() <= 1
    assert abs(np.corrcoef(colours.T)[0, 1]) < 5 / np.sqrt(1000)


def test_flip_mirrors_left_and_right_and_keeps_the_rest():
    example = {
        "image": rng().normal(size=(4, 6, 3)),
        "mask": rng().normal(size=(4, 6, 1)),
        "moments": rng().normal(size=(2, 2, 8)),
        "label": np.int32(3),
    }
    before = {key: np.copy(value) for key, value in example.items()}
    flipped = RandomFlip(1.0)(example, rng())
    for column in range(6):
        for key in ("image", "mask"):
            np.testing.assert_array_equal(
                flipped[key][:, column], before[key][:, 5 - column]
            )
    np.testing.assert_array_equal(flipped["moments"], before["moments"])
    np.testing.assert_array_equal(example["image"], before["image"])
    still = RandomFlip(0.0)(example, rng())
    np.testing.assert_array_equal(still["image"], before["image"])


def test_flip_happens_with_its_probability():
    example = {"image": np.array([[[0.0], [1.0]]])}
    source = np.random.default_rng(1)
    flips = [RandomFlip(0.25)(example, source)["image"][0, 0, 0] for _ in range(2000)]
    assert abs(np.mean(flips) - 0.25) < 5 * np.sqrt(0.25 * 0.75 / 2000)


def test_tokenize_replaces_the_caption():
    transform = compose(Tokenize(BertTokenizer(max_length=6)), Keep(("tokens",)))
    example = transform({"caption": "hello world", "label": 0}, rng())
    assert list(example) == ["tokens"]
    assert example["tokens"].tolist() == [101, 7592, 2088, 102, 0, 0]
    assert example["tokens"].dtype == np.int32


def test_transform_errors_name_what_is_valid():
    with pytest.raises(UserError, match="'white', 'random'"):
        Composite("blue")
    with pytest.raises(UserError, match="probability is 2"):
        RandomFlip(2)
    with pytest.raises(KeyError, match="no 'image' to keep"):
        Keep(("image",))({"label": 0}, rng())


def test_sources_and_transforms_survive_pickling(emoji):
    transform = compose(Composite("random"), RandomFlip(0.5), Keep(("image", "label")))
    again = pickle.loads(pickle.dumps(transform))
    assert isinstance(again, Compose) and again == transform
    source = pickle.loads(pickle.dumps(emoji["test"]))
    for i in range(3):
        expected = transform(emoji["test"][i], rng())
        for key, value in again(source[i], rng()).items():
            np.testing.assert_array_equal(value, expected[key])
    assert len(pickle.dumps(emoji["train"])) < 1000


def test_sources_and_transforms_do_not_import_jax():
    """Grain itself imports jax, so `pipeline` is left out."""
    code = "import sys, lDM_jax.data.sources as s, lDM_jax.data.transforms as t;"
    code += "t.Composite()(s.EmojiSource(split='test')[0], None);"
    code += "assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_first_is_the_beginning_of_a_source():
    source = ArraySource({"x": np.arange(10)})
    head = First(source, 4)
    assert [int(head[i]["x"]) for i in range(len(head))] == [0, 1, 2, 3]
    assert len(First(source, 99)) == 10
    assert int(head[-1]["x"]) == 3
    with pytest.raises(IndexError):
        head[4]
    assert head.fingerprint != First(source, 5).fingerprint
