"""Tasks from data to request: what training reads, what a user may ask for."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lDM_jax.core import image, rng
from lDM_jax.core.errors import UserError
from lDM_jax.data import pipeline as data_pipeline
from lDM_jax.from_config.task_settings import task_of, task_settings
from lDM_jax.pipeline import Pipeline
from lDM_jax.sampling import request as request_lib
from lDM_jax.sampling.request import Request
from lDM_jax.tasks import semantic
from lDM_jax.tasks.registry import example_shapes
from lDM_jax.tasks.task import Settings
from lDM_jax.training import experiment
from lDM_jax.weights import directory as weights_directory
from tests.toys import HOLE, PICTURE, difference, drawn, smoke


def rows(name: str) -> dict:
    """The first training rows of a config, without its networks."""
    config = smoke(name)
    data = experiment.source(config, "train")
    row = experiment.transform(config)
    return next(iter(data_pipeline.batches_once(data, row, batch_size=4)))


@pytest.mark.parametrize(
    ("task", "key", "shape"),
    [
        ("layout", "boxes", (4, 20)),
        ("semantic", "segmentation", (4, 32, 32)),
        ("super_resolution", "low_res", (4, 8, 8, 3)),
        ("inpaint", "mask", (4, 32, 32, 1)),
        ("class", "label", (4,)),
    ],
)
def test_training_rows_hold_the_condition_and_fit_the_abstract_ones(task, key, shape):
    batch = rows(f"emoji_{task}")
    assert set(batch) == {"image", "weight", key} and batch[key].shape == shape
    config = smoke(f"emoji_{task}")

    abstract = example_shapes(task_of(config), task_settings(config), rows=4)
    for name, leaf in abstract.items():
        assert (leaf.shape, leaf.dtype) == (batch[name].shape, batch[name].dtype), name


def test_low_resolution_and_label_maps_belong_to_their_picture():
    batch = rows("emoji_super_resolution")
    small = batch["image"].reshape(4, 8, 4, 8, 4, 3).mean(axis=(2, 4))
    # bicubic against the mean of a cell: the same picture, not the same filter
    assert np.abs(small - batch["low_res"]).mean() < 0.1
    assert np.abs(small - np.roll(batch["low_res"], 1, axis=0)).mean() > 0.1
    batch = rows("emoji_semantic")
    flat = np.abs(batch["image"] - batch["image"][:, :1, :1]).max(axis=-1) < 1e-6
    assert (batch["segmentation"][flat] == 0).mean() > 0.9


def test_data_without_the_condition_is_refused():
    config = smoke("emoji_layout")
    config.data.source = "emoji"
    with pytest.raises(UserError, match="needs data with a layout.*caption, image"):
        experiment.source(config, "train")


@pytest.fixture(scope="module")
def class_pipe() -> Pipeline:
    return drawn("emoji_class")


def test_image_to_image_goes_from_the_image_to_another(class_pipe):
    common = dict(label=3, seeds=[0, 1], steps=4)
    free = class_pipe.sample(**common)
    whole = class_pipe.sample(image=PICTURE, strength=1.0, **common)
    assert difference(free, whole) <= 1  # everything may change: as if without image
    half = class_pipe.sample(image=PICTURE, strength=0.5, **common)
    assert difference(half, whole) > 1 and difference(half[0], half[1]) > 1
    # a quarter of four steps is the last one, here by hand: DDIM (eta 0) from z_t
    pipe, process = class_pipe, class_pipe.model.process
    found = pipe.sample(image=PICTURE, strength=0.25, guidance=1.0, **common)
    grid, keys = process.grid(4), rng.seed_keys(common["seeds"])
    z0 = pipe.encode(PICTURE[None])
    eps = rng.normal_per_seed(keys, z0.shape[1:])
    z_t = grid.alphas[3] * z0 + grid.sigmas[3] * eps
    label = {"label": jnp.array([3, 3], jnp.int32)}
    cond = pipe.model.condition(pipe.params, pipe.frozen, label)
    t = jnp.full(2, grid.times[3], jnp.int32)
    v = pipe.denoise(z_t.astype(jnp.float32), t, cond)
    z0_hat = grid.alphas[3] * z_t - grid.sigmas[3] * v
    eps_hat = grid.sigmas[3] * z_t + grid.alphas[3] * v
    z = grid.alphas[4] * z0_hat + grid.sigmas[4] * eps_hat
    assert difference(found, pipe.to_pixels(z.astype(jnp.float32))) <= 1


def test_blending_holds_what_is_known(class_pipe):
    request = dict(label=3, seeds=[0, 1], steps=4, image=PICTURE, mask=HOLE)
    found = class_pipe.sample(**request)
    known = np.broadcast_to(HOLE[None, :, :, None] == 0, found.shape)
    expected = np.broadcast_to(PICTURE, found.shape)
    np.testing.assert_array_equal(found[known], expected[known])
    assert difference(found[0], found[1]) > 1
    last = list(class_pipe.stream(**request))[-1]
    z0 = class_pipe.encode(PICTURE[None])
    held = np.ones((8, 8), bool)
    held[2:5, 2:5] = False
    np.testing.assert_allclose(last.z[:, held], np.stack([z0[0][held]] * 2), atol=1e-5)
    assert difference(class_pipe.finish(last), found) <= 1


def test_the_course_changes_midway_without_a_new_program(class_pipe):
    options = dict(seeds=[0], steps=4, guidance=2.0)
    plain = list(class_pipe.stream(label=3, **options))
    programs = len(class_pipe._programs)
    same, other = [], []
    for step in class_pipe.stream(label=3, **options):
        same.append(step)
        class_pipe.update(step, label=3)
    for step in class_pipe.stream(label=3, **options):
        other.append(step)
        class_pipe.update(step, label=5, guidance=3.0)
    assert len(class_pipe._programs) == programs
    np.testing.assert_array_equal(same[-1].z, plain[-1].z)
    np.testing.assert_array_equal(other[0].z, plain[0].z)
    assert np.abs(other[1].z - plain[1].z).max() > 1e-3
    with pytest.raises(UserError, match="steps cannot change midway"):
        class_pipe.update(plain[0], steps=9)
    for changes in (dict(image=PICTURE), dict(image=PICTURE, mask=HOLE)):
        with pytest.raises(UserError, match="cannot come, go or change"):
            class_pipe.update(plain[0], **changes)


def test_guidance_that_begins_at_one_can_still_change_midway(class_pipe):
    options = dict(label=3, seeds=[0], steps=4)
    plain = list(class_pipe.stream(guidance=1.0, **options))
    expected = class_pipe.sample(guidance=1.0, **options)
    assert difference(class_pipe.to_pixels(plain[-1].z), expected) <= 1
    for step in class_pipe.stream(guidance=1.0, **options):
        class_pipe.update(step, guidance=9.0)
    assert np.abs(step.z - plain[-1].z).max() > 1e-3


def test_larger_pictures_by_convolution(class_pipe):
    found = class_pipe.sample(label=3, steps=2, size_px=(64, 32))
    assert found.shape == (1, 64, 32, 3)
    with pytest.raises(UserError, match="multiples"):
        class_pipe.sample(label=3, steps=2, size_px=(36, 32))


@pytest.mark.parametrize(
    ("name", "request_fields", "other", "shape"),
    [
        (
            "emoji_super_resolution",
            dict(image=PICTURE[:16, :8]),
            dict(image=PICTURE[16:, :8]),
            (64, 32),
        ),
        (
            "emoji_inpaint",
            dict(image=PICTURE, mask=HOLE),
            dict(image=255 - PICTURE, mask=HOLE),
            (32, 32),
        ),
        pytest.param(
            "emoji_semantic",
            dict(segmentation=HOLE.astype(int) // 128),
            dict(segmentation=HOLE.astype(int) // 64),
            (32, 32),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "emoji_layout",
            dict(layout=[(3, (0.1, 0.1, 0.5, 0.5))], guidance=30.0),
            dict(layout=[(3, (0.4, 0.1, 0.5, 0.5))], guidance=30.0),
            (32, 32),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_every_task_draws_by_its_condition(name, request_fields, other, shape):
    pipe = drawn(name)
    found = pipe.sample(steps=2, seeds=[0], **request_fields)
    assert found.shape == (1, *shape, 3)
    assert difference(found, pipe.sample(steps=2, seeds=[0], **other)) > 1


def test_a_batch_of_different_pictures_is_each_of_them_alone():
    """Image, mask and seed of every row are its own."""
    pipe = drawn("emoji_inpaint")
    rows = [
        pipe.resolve(Request(image=picture, mask=mask, seeds=(seed,), steps=2))
        for seed, (picture, mask) in enumerate(
            [
                (PICTURE, HOLE),
                (255 - PICTURE, HOLE.T[::-1]),
                (PICTURE[::-1], 255 - HOLE),
            ]
        )
    ]
    together = pipe.each(rows)
    for row, picture in zip(rows, together, strict=True):
        assert difference(picture, next(pipe.run(row))) <= 1


@pytest.mark.parametrize(
    ("name", "fields", "reason"),
    [
        ("emoji_class", dict(), "give a label"),
        ("emoji_class", dict(label=99), "valid: 0 .. 98"),
        ("emoji_class", dict(label=1, prompt="x"), "takes no prompt"),
        ("emoji_class", dict(label=1, layout=[]), "takes no layout"),
        ("emoji_class", dict(label=1, strength=0.5), "strength needs an image"),
        ("emoji_class", dict(label=1, image=PICTURE, strength=0.0), r"in \(0, 1\]"),
        ("emoji_class", dict(label=1, mask=HOLE), "needs the image"),
        ("emoji_class", dict(label=1, image=PICTURE[:, :, :1]), "uint8"),
        ("emoji_class", dict(label=1, image="nowhere.png"), "image nowhere.png"),
        ("emoji_class", dict(label=1, image=PICTURE, mask=HOLE[:8]), "on an image of"),
        ("emoji_class", dict(label=1, image=PICTURE, size_px=(64, 64)), "size_px is"),
        ("emoji_inpaint", dict(image=PICTURE), "give an image and a mask"),
        ("emoji_super_resolution", dict(), "give an image"),
        ("emoji_semantic", dict(), "give a segmentation"),
        ("emoji", dict(prompt=" "), "a prompt is empty"),
        ("emoji", dict(prompt="x", rescale=2.0), "valid: 0 to 1"),
        ("emoji", dict(prompt="x", interval=(0.8, 0.2)), r"give \(low, high\)"),
        ("emoji", dict(prompt="x", target_loss="l3"), "valid: l2, lpips"),
        ("emoji", dict(prompt="x", classifier_scale=1.0), "needs the label"),
        ("emoji", dict(prompt="x", autoguidance=2, guidance=3), "leave one"),
        ("emoji", dict(prompt="x", source=""), "source needs an image"),
        ("emoji", dict(prompt="x", label=1), "takes no label"),
    ],
)
def test_impossible_requests(name, fields, reason):
    request, config = Request(**fields), smoke(name)
    with pytest.raises(UserError, match=reason):
        request_lib.check(request, task_of(config), task_settings(config))
        request_lib.canvas(request, task_of(config), task_settings(config))


def test_files_stand_for_pixels_and_records_remember_their_names(tmp_path):
    picture, hole = tmp_path / "photo.png", tmp_path / "mask.png"
    image.write_png(picture, PICTURE)
    image.write_png(hole, np.repeat(HOLE[:, :, None], 3, axis=2))
    request = Request(label=1, image=str(picture), mask=hole)
    config = smoke("emoji_class")
    given = request_lib.canvas(request, task_of(config), task_settings(config))
    np.testing.assert_array_equal(given.image, image.to_float(PICTURE))
    np.testing.assert_array_equal(given.mask[:, :, 0], HOLE > 0)
    record = request.record()
    assert record["image"] == str(picture) and record["mask"] == str(hole)
    assert "layout" not in record and "strength" not in record
    regions = [("a dog", (0.0, 0.0, 0.5, 1.0)), ("a cat", HOLE)]
    kept = json.loads(json.dumps(Request("x", regions=regions).record()["regions"]))
    assert kept[0] == ["a dog", [0.0, 0.0, 0.5, 1.0]]
    assert kept[1][1].startswith("data:image/png;base64,")


def test_a_preset_holds_its_pixels_and_draws_the_same(class_pipe, tmp_path):
    """Files gone, through JSON and back: the same arrays, the same picture."""
    picture, hole = tmp_path / "photo.png", tmp_path / "mask.png"
    image.write_png(picture, PICTURE)
    image.write_png(hole, HOLE)
    request = Request(label=1, image=str(picture), mask=str(hole), seeds=(4,), steps=2)
    drawn_before = class_pipe.sample(**vars(request))
    preset = json.dumps(request.embedded().record())
    picture.unlink()
    hole.unlink()
    again = request_lib.from_record(json.loads(preset))
    np.testing.assert_array_equal(request_lib.read_pixels(again.image, "x"), PICTURE)
    np.testing.assert_array_equal(class_pipe.sample(**vars(again)), drawn_before)
    regions = [("a dog", (0.0, 0.0, 0.5, 1.0)), ("a cat", HOLE)]
    stored = json.loads(json.dumps(Request("x", regions=regions).embedded().record()))
    maps = [
        request_lib.region_maps(one, request_lib.RequestPixels(32, 32))
        for one in (Request("x", regions=regions), request_lib.from_record(stored))
    ]
    np.testing.assert_array_equal(*maps)
    with pytest.raises(UserError, match="a request has no colour"):
        request_lib.from_record({"colour": 3})
    for broken in ("data:image/png;base64,@@", "data:image/png,abc"):
        with pytest.raises(UserError, match="base64"):
            request_lib.read_pixels(broken, "image")
    with pytest.raises(UserError, match="fits no grey PNG"):
        Request(segmentation=np.full((2, 2), 300)).record()


def test_labels_beyond_the_map_are_refused():
    given = request_lib.RequestPixels(2, 2, segmentation=np.array([[0, 10], [0, 0]]))
    with pytest.raises(UserError, match="labels up to 10; valid: 0 .. 9"):
        settings = Settings(size_px=2, num_classes=10)
        semantic.TASK.row(Request(), given, settings)


def test_a_trained_directory_serves_its_task(tmp_path):
    """Saved and loaded like any other model: the task travels in the config."""
    pipe = drawn("emoji_super_resolution")
    weights_directory.save(
        tmp_path / "sr", pipe.config.to_dict(), jax.device_get(pipe.params)
    )
    again = Pipeline.load(str(tmp_path / "sr"))
    assert again.task.name == "super_resolution"
