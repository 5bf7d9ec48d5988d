"""A folder of images: layout, split, pixels, captions, classes, and the user's errors.

Files are written by PIL; pixels are compared with PIL's own crop and resize, with the
colors that were drawn, and with what the file formats say.
"""

import io
import pickle
import shutil

import numpy as np
import pytest
from PIL import Image

from lDM_jax.core import image
from lDM_jax.core.errors import BadExample, UserError
from lDM_jax.data.crop import Crop
from lDM_jax.data.folder import FolderSource, split_files
from lDM_jax.data.pipeline import batches_once, loader
from lDM_jax.data.transforms import Composite, Keep, compose
from lDM_jax.training import experiment
from tests.toys import EMPTY, config_of, png_header

SPLITS = ("train", "validation", "test")
RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def draw(path, colour=RED, size=(8, 8), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path, **options)
    return path


def noise(height, width, channels=3):
    values = np.random.default_rng(0).integers(0, 256, (height, width, channels))
    return values.astype(np.uint8)


def encoded(picture, file_format="PNG", **options):
    data = io.BytesIO()
    picture.save(data, file_format, **options)
    return data.getvalue()


# Layout


def test_images_of_all_formats_at_any_depth_in_sorted_order(tmp_path):
    names = ["b.JPG", "a/z.webp", "a/b/c.png", "a/b.bmp", "c.jpeg"]
    for name in names:
        draw(tmp_path / name)
    for other in ("notes.md", ".hidden.png", ".trash/a.png", "a/._b.png"):
        (tmp_path / other).parent.mkdir(exist_ok=True)
        (tmp_path / other).write_bytes(b"no image")
    source = FolderSource(tmp_path)
    assert source.unused == ["notes.md"]
    assert source.files == ["a/b.bmp", "a/b/c.png", "a/z.webp", "b.JPG", "c.jpeg"]
    assert len(source) == 5
    for i in range(5):
        example = source[i]
        assert set(example) == {"image"}
        assert example["image"].shape == (8, 8, 3)
        assert example["image"].dtype == np.uint8
        np.testing.assert_allclose(example["image"][2, 2], RED, atol=2)
    assert source.captions is None and source.labels is None and source.classes == []


def test_linked_folders_are_followed_and_cycles_end(tmp_path):
    draw(tmp_path / "elsewhere/dog/a.png")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/dog").symlink_to(tmp_path / "elsewhere/dog")
    (tmp_path / "elsewhere/dog/again").symlink_to(tmp_path / "data")
    assert FolderSource(tmp_path / "data").files == ["dog/a.png"]


def test_captions_come_from_files_of_the_same_stem(tmp_path):
    for name in ("a.b.png", "c.jpg", "d.png"):
        draw(tmp_path / name)
    (tmp_path / "a.b.txt").write_text("\ufeffrød\n  «hat» \n", encoding="utf-8")
    (tmp_path / "c.txt").write_text("a cat", encoding="utf-8")
    source = FolderSource(tmp_path)
    assert source.captions == ["rød «hat»", "a cat", ""]
    assert [source[i]["caption"] for i in range(3)] == source.captions


def test_labels_are_indices_of_the_first_sub_folder(tmp_path):
    for name in ("dog/x/a.png", "cat/b.png", "dog/c.png"):
        draw(tmp_path / name)
    (tmp_path / "empty").mkdir()
    source = FolderSource(tmp_path)
    assert source.files == ["cat/b.png", "dog/c.png", "dog/x/a.png"]
    assert source.classes == ["cat", "dog"]
    np.testing.assert_array_equal(source.labels, [0, 1, 1])
    assert source[2]["label"] == 1 and source[2]["label"].dtype == np.int32
    draw(tmp_path / "stray.png")
    assert FolderSource(tmp_path).classes == []


def test_classes_are_those_of_all_splits(tmp_path):
    for i in range(30):
        draw(tmp_path / f"{i:02}" / "a.png", size=(1, 1))
    for split in SPLITS:
        source = FolderSource(tmp_path, split=split)
        assert len(source.classes) == 30
        named = [source.classes[label] for label in source.labels]
        assert named == [name.split("/")[0] for name in source.files]


# Split


@pytest.mark.parametrize("count", [20, 21, 37, 60, 2000])
def test_every_file_is_in_one_split_and_no_split_is_empty(count):
    files = [f"{i}.png" for i in range(count)]
    parts = split_files(files)
    assert sorted(sum(parts.values(), [])) == sorted(files)
    assert all(parts[split] for split in SPLITS)
    assert len(parts["train"]) > 0.75 * count


def test_split_shares_are_those_of_a_uniform_hash():
    parts = split_files([f"{i}.png" for i in range(4000)])
    for split, share in zip(SPLITS, (0.9, 0.05, 0.05), strict=True):
        deviation = np.sqrt(4000 * share * (1 - share))
        assert abs(len(parts[split]) - 4000 * share) < 3 * deviation


def test_files_stay_in_their_split_when_others_come():
    few = split_files([f"{i}.png" for i in range(1000)])
    many = split_files([f"{i}.png" for i in range(3000)])
    for split in SPLITS:
        assert set(few[split]) <= set(many[split])


def test_below_twenty_images_every_split_is_all_of_them(tmp_path):
    for i in range(19):
        draw(tmp_path / f"{i:02}.png", size=(1, 1))
    assert [len(FolderSource(tmp_path, split=split)) for split in SPLITS] == [19] * 3
    draw(tmp_path / "19.png", size=(1, 1))
    sizes = [len(FolderSource(tmp_path, split=split)) for split in SPLITS]
    assert sum(sizes) == 20 and min(sizes) > 0


# Pixels


@pytest.mark.parametrize("height, width, size", [(40, 61, 16), (90, 33, 48)])
def test_pixels_are_pils_centre_crop_and_bicubic(tmp_path, height, width, size):
    picture = Image.fromarray(noise(height, width))
    picture.save(tmp_path / "a.png")
    side = min(height, width)
    left, top = (width - side) // 2, (height - side) // 2
    square = picture.crop((left, top, left + side, top + side))
    expected = square.resize((size, size), Image.Resampling.BICUBIC)
    result = Crop(size)(FolderSource(tmp_path)[0], None)["image"]
    np.testing.assert_array_equal(result, np.asarray(expected))


def test_pixels_of_the_right_size_are_untouched_also_transparent_ones(tmp_path):
    pixels = noise(8, 8, 4)
    pixels[:, :, 3] = 255 * (pixels[:, :, 3] > 99)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    result = Crop(8)(FolderSource(tmp_path)[0], None)["image"]
    visible = pixels[:, :, 3] > 0
    np.testing.assert_array_equal(result[visible], pixels[visible])
    np.testing.assert_array_equal(result[:, :, 3], pixels[:, :, 3])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation):
    # EXIF 2.32: where row 0 and column 0 of the stored image are on the upright one.
    upright = np.zeros((3, 4, 3), np.uint8)
    upright[0, 0], upright[0, 3], upright[2, 0] = RED, GREEN, BLUE
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(np.ascontiguousarray(stored)), exif=exif.tobytes())
    np.testing.assert_array_equal(image.decode(data)[:, :, :3], upright)


def test_sixteen_bits_become_the_nearest_eight():
    values = np.arange(0, 65536, 97, dtype=np.uint16).reshape(4, -1)
    result = image.decode(encoded(Image.fromarray(values)))
    np.testing.assert_array_equal(result[:, :, 0], np.rint(values / 65535 * 255))
    assert (result[:, :, 3] == 255).all()


def test_palette_with_a_transparent_entry_cmyk_and_grey():
    palette = Image.new("P", (2, 1))
    palette.putpalette([*RED, *GREEN])
    palette.putpixel((1, 0), 1)
    result = image.decode(encoded(palette, transparency=0))
    assert result[0, 0, 3] == 0 and tuple(result[0, 1]) == (*GREEN, 255)
    red = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    result = image.decode(encoded(red, "JPEG"))
    np.testing.assert_allclose(result[4, 4], (*RED, 255), atol=2)
    grey = image.decode(encoded(Image.new("L", (1, 1), 7)))
    assert tuple(grey[0, 0]) == (7, 7, 7, 255)


def test_the_first_frame_of_an_animation():
    frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, GREEN)]
    data = encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:])
    np.testing.assert_allclose(image.decode(data)[1, 1], (*RED, 255), atol=2)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("width, height", [(2**14, 2**13 + 1), (60_000, 60_000)])
def test_a_decompression_bomb_is_refused_by_its_header(width, height):
    with pytest.raises(ValueError, match="exceeds"):
        image.decode(png_header(width, height, EMPTY))


# Errors and interface


def damaged(name):
    whole = encoded(Image.fromarray(noise(32, 32)), "JPEG")
    return {
        "empty.png": b"",
        "text.jpg": b"<html>not found</html>",
        "short.jpg": whole[: len(whole) // 2],
        "chunk.png": encoded(Image.fromarray(noise(9, 9)))[:60] + b"\0" * 40,
        "other.png": encoded(Image.fromarray(noise(9, 9)), "PPM"),
    }[name]


@pytest.mark.parametrize(
    "name", ["empty.png", "text.jpg", "short.jpg", "chunk.png", "other.png"]
)
def test_an_unreadable_image_is_named_in_one_line(tmp_path, name):
    (tmp_path / name).write_bytes(damaged(name))
    source = FolderSource(tmp_path)
    with pytest.raises(BadExample) as error:
        source[0]
    assert str(tmp_path / name) in str(error.value)
    assert "\n" not in str(error.value) and "0x" not in str(error.value)


def test_a_file_that_went_away_and_a_caption_that_is_no_text(tmp_path):
    draw(tmp_path / "a.png")
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\x00")
    source = FolderSource(tmp_path)
    with pytest.raises(UserError, match=r"a\.txt is not UTF-8"):
        source[0]
    (tmp_path / "a.png").unlink()
    with pytest.raises(UserError, match=r"cannot read .*a\.png: No such file"):
        source[0]


def test_paths_that_hold_no_images(tmp_path):
    with pytest.raises(UserError, match=r"config\.data\.path is empty: give a folder"):
        FolderSource("")
    with pytest.raises(UserError, match="nowhere' does not exist"):
        FolderSource(tmp_path / "nowhere")
    file = draw(tmp_path / "data/a.png")
    with pytest.raises(UserError, match="a.png' is not a folder"):
        FolderSource(file)
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/a.txt").write_text("a cat")
    with pytest.raises(UserError, match=r"holds no images.*\.png, \.jpg"):
        FolderSource(tmp_path / "texts")
    with pytest.raises(UserError, match="'train', 'validation', 'test'"):
        FolderSource(tmp_path, split="dev")


def test_fingerprint_knows_content_options_and_captions_but_not_the_place(tmp_path):
    for name in ("a.png", "b.png"):
        draw(tmp_path / "one" / name)
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    first = FolderSource(tmp_path / "one").fingerprint
    assert FolderSource(tmp_path / "two").fingerprint == first
    seen = {first, FolderSource(tmp_path / "two", min_px=8).fingerprint}
    seen.add(FolderSource(tmp_path / "two", split="test").fingerprint)
    draw(tmp_path / "two/b.png", colour=BLUE)
    seen.add(FolderSource(tmp_path / "two").fingerprint)
    (tmp_path / "two/a.txt").write_text("a cat")
    seen.add(FolderSource(tmp_path / "two").fingerprint)
    (tmp_path / "two/a.txt").write_text("a dog")
    seen.add(FolderSource(tmp_path / "two").fingerprint)
    assert len(seen) == 6


def test_loader_and_evaluation_read_a_folder(tmp_path):
    for i, colour in enumerate((RED, GREEN, BLUE)):
        draw(tmp_path / f"{i}.png", colour, size=(5 + i, 9))
    source = pickle.loads(pickle.dumps(FolderSource(tmp_path)))
    row = compose(Crop(4), Composite(), Keep(("image",)))
    (batch,) = batches_once(source, row, batch_size=3)
    np.testing.assert_array_equal(
        batch["image"][:, 0, 0], [[1, -1, -1], [-1, 1, -1], [-1, -1, 1]]
    )
    batch = next(loader(source, row, batch_size=3, seed=0))
    assert batch["image"].shape == (3, 4, 4, 3)


# From a config


def config(path, **changes):
    data = dict(source="folder", path=str(path), size_px=8)
    return config_of(data=data, **changes)


def test_build_makes_the_source_and_checks_what_the_task_needs(tmp_path):
    draw(tmp_path / "a.png")
    assert experiment.source(config(tmp_path), "train")[0]["image"].shape == (8, 8, 3)
    with pytest.raises(UserError, match=r"needs data with a caption: photo\.txt"):
        experiment.source(config(tmp_path, task="text"), "train")
    (tmp_path / "a.txt").write_text("a cat")
    assert experiment.source(config(tmp_path, task="text"), "test").captions == [
        "a cat"
    ]
    classes = dict(task="class", num_classes=2)
    with pytest.raises(UserError, match="every image in a sub-folder"):
        experiment.source(config(tmp_path, **classes), "train")
    for name in ("cat/a.png", "dog/a.png", "owl/a.png"):
        draw(tmp_path / "by_class" / name)
    with pytest.raises(UserError, match="num_classes = 2, but .* 3 classes"):
        experiment.source(config(tmp_path / "by_class", **classes), "train")
    classes["num_classes"] = 3
    source = experiment.source(config(tmp_path / "by_class", **classes), "train")
    np.testing.assert_array_equal(source.labels, [0, 1, 2])
