"""Every known way to a wrong figure, and that this tool is not caught by it.

The list is the field's: resizing and its type, value ranges, rounding, JPEG, mirrored
references, crops, the wrong split, too few samples, unbalanced classes, dropped and
doubled rows, equal seeds, normalisation in training mode, low precision, n for n - 1,
complex roots, statistics of another network of the same width, the best of three, each
figure at its own guidance.
f32 covariances, n - 1 and complex roots are in test_metrics_statistics.py, value types
and dropped rows in test_evaluate.py.
"""

import argparse
import dataclasses
import json

import jax
import numpy as np
import pytest
from PIL import Image

from lDM_jax.core.errors import UserError
from lDM_jax.evaluation import extractors, figures, options, sides
from lDM_jax.evaluation.commands import generate, sweep
from lDM_jax.evaluation.features import ArrayBank
from lDM_jax.evaluation.image_sets import Data, Folder
from lDM_jax.evaluation.metrics import frechet
from lDM_jax.evaluation.metrics.frechet import FrechetDistance
from lDM_jax.evaluation.metrics.statistics import Gaussian
from lDM_jax.from_config import networks
from lDM_jax.models import inception
from lDM_jax.sampling import bulk
from lDM_jax.sampling.request import Request
from tests.toys import drawn, pictures, with_config


@pytest.fixture(scope="module")
def emoji():
    return dataclasses.replace(extractors.load_emoji(), rows=4)


def side(name: str, count: int = 12, width: int = 5, **record) -> sides.Side:
    """A side of noise features with that record."""
    rng = np.random.default_rng(len(name))
    made = {
        "extractor": "inception",
        "weights_sha256": "a" * 64,
        "resize": "legacy",
        "count": count,
    }
    bank = ArrayBank(rng.normal(size=(count, width)), made | record)
    return sides.Side(name, bank.gaussian(), None, bank, bank.record)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"resize": "clean"}, "resize"),
        ({"weights_sha256": "b" * 64}, "weights_sha256"),
        ({"extractor": "dinov2"}, "extractor"),
        ({"sizes_px": [[512, 512]]}, "sizes_px"),
        ({"transform": {"size_px": 64, "background": "random"}}, "transform"),
        ({"width": 6}, "features"),
    ],
)
def test_sides_prepared_differently_are_refused_with_both_records(changes, what):
    """Resize, weights of the same width, crop and extent, transform, width."""
    common = {
        "sizes_px": [[256, 256]],
        "transform": {"size_px": 64, "background": "white"},
    }
    a = side("one", **common)
    b = side("two", **{**common, **changes})
    sides.check_same(a, side("same", **common))
    with pytest.raises(UserError) as error:
        sides.check_same(a, b)
    text = str(error.value)
    assert f"prepared differently ({what}" in text and "\n" not in text
    assert json.dumps(a.record, sort_keys=True) in text
    assert json.dumps(b.record, sort_keys=True) in text


def test_jpeg_on_one_side_is_noticed(emoji, tmp_path):
    x, made = pictures(0, 12), []
    for suffix in ("png", "jpg"):
        folder = tmp_path / suffix
        folder.mkdir()
        for index, picture in enumerate(x):
            Image.fromarray(picture).save(folder / f"{index}.{suffix}")
        work = tmp_path / f"work-{suffix}"
        made.append(sides.side_of_images(Folder(folder), emoji, work))
    result = figures.measure(*made, emoji, kinds=["frechet"], replicates=0)
    assert any("JPEG or WebP" in text for text in result.warnings)
    same = figures.measure(made[1], made[1], emoji, kinds=["frechet"], replicates=0)
    assert not any("JPEG" in text for text in same.warnings)


def test_a_reference_is_never_mirrored_and_says_so():
    config, _ = networks.load_trained("emoji")
    config.data.limit = 6
    plain = Data(config, "train")
    config.data.flip = 1.0
    mirrored = Data(config, "train")
    for index in range(6):
        np.testing.assert_array_equal(*(d.read([index])[0] for d in (plain, mirrored)))
    assert mirrored.record["transform"]["flip"] == 0.0


@pytest.mark.parametrize(
    "change",
    [
        {"resize_px": 80},
        {"filter": "linear"},
        {"size_px": 32},
        {"background": "random"},
    ],
)
def test_references_of_a_data_set_that_was_cut_otherwise_are_refused(change):
    """The record of a config's data says all that makes its pictures."""
    config, _ = networks.load_trained("emoji")
    config.data.limit = 6
    with config.unlocked():
        config.data.update(dict(resize_px=0, filter="bicubic"))
    common = dict(sizes_px=[[64, 64]])
    a = side("one", **common, **Data(config, "train").record)
    sides.check_same(a, side("same", **common, **Data(config, "train").record))
    config.data.update(change)
    b = side("two", **common, **Data(config, "train").record)
    with pytest.raises(UserError, match="prepared differently .transform"):
        sides.check_same(a, b)


def test_the_validation_split_as_reference_is_noticed(emoji):
    a, b = side("samples", width=112), side("held out", width=112, split="validation")
    result = figures.measure(a, b, emoji, kinds=["frechet"], replicates=0)
    assert any("training split" in text for text in result.warnings)


def test_the_bias_of_few_samples_is_told_and_about_right(emoji):
    """Samples of the reference's own distribution: the whole distance is bias, so the
    estimate is to be about it; within a third, of 400 draws of 20 features."""
    rng, width = np.random.default_rng(0), 20
    bank = ArrayBank(rng.normal(size=(400, width)), {})
    distance = FrechetDistance(Gaussian(np.zeros(width), np.eye(width)))
    value = distance(bank.gaussian())
    assert frechet.bias(distance, bank, "pool", value) == pytest.approx(value, rel=0.33)
    result = figures.measure(side("a"), side("b"), emoji, kinds=["frechet"])
    assert any("12 samples is too high by about" in text for text in result.warnings)


def test_copies_are_noticed(emoji):
    """Hosts with the same seeds, or the rows that fill a batch."""
    rows = np.random.default_rng(0).normal(size=(50, 5)).astype(np.float32)
    twice = side("twice")
    twice.bank = ArrayBank(np.concatenate([rows, rows]), twice.record)
    result = figures.measure(twice, side("b"), emoji, kinds=[], replicates=0)
    assert any("50 of 100 samples are exact copies" in t for t in result.warnings)


def test_every_picture_has_its_own_seed_and_conditions_are_balanced():
    """Also across hosts: the request of a picture depends on its number alone."""
    request = Request(prompt="x", seeds=(7,), label=None)
    rows = [bulk.row_request(request, i, 5) for i in range(20)]
    assert [row.seeds for row in rows] == [(7 + i,) for i in range(20)]
    assert np.bincount([row.label for row in rows]).tolist() == [4] * 5
    rows = [bulk.row_request(request, i, 0, ["a", "b", "c"]) for i in range(9)]
    assert [row.prompt for row in rows] == ["a", "b", "c"] * 3


def products(jaxpr) -> list:
    """All convolutions and matrix products of a program, inner ones too."""
    result = []
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("dot_general", "conv_general_dilated"):
            result.append(equation)
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                result += products(inner)
    return result


def test_features_are_float32_at_the_highest_precision(emoji):
    """No TF32, no bf16: in every product of resizing and of both networks."""
    resized, _ = emoji._programs
    x = jax.ShapeDtypeStruct((2, 24, 24, 3), np.uint8)
    matrix = jax.ShapeDtypeStruct((64, 24), np.float32)
    network = inception.Inception()
    pixels = jax.ShapeDtypeStruct((1, 107, 107, 3), np.float32)
    variables = jax.eval_shape(network.init, jax.random.key(0), pixels)
    assert variables.keys() == {"params"}  # no statistics that a batch could change
    programs = [
        jax.make_jaxpr(resized)(emoji.variables, x, matrix, matrix),
        jax.make_jaxpr(network.apply)(variables, pixels),
    ]
    counts = []
    for program in programs:
        result = products(program.jaxpr)
        counts.append(len(result))
        for equation in result:
            assert equation.outvars[0].aval.dtype == np.float32
            assert "HIGHEST" in str(equation.params["precision"])
    assert counts == [2 + 5 + 1, 94 + 1]


def test_a_picture_s_features_do_not_depend_on_its_companions(emoji):
    """Normalisation has no training mode: to the bit, at the same place of a batch."""
    x = pictures(3, 20)
    alone = emoji.features([x[0]] * 20)["pool"][0]
    np.testing.assert_array_equal(emoji.features(list(x))["pool"][0], alone)


@pytest.fixture
def settings(tmp_path, monkeypatch):
    """(arguments, toy pipeline, extractors) of a small `generate`."""
    pipe = with_config(drawn("emoji_class"), num_classes=3, data__limit=20)
    parser = argparse.ArgumentParser()
    generate.arguments(parser)
    text = f"--model=emoji --num=14 --out={tmp_path} --steps=2 --batch=8 --bootstrap=2"
    args = parser.parse_args([*text.split(), "--extractor=emoji", "--figures=frechet"])
    monkeypatch.setattr(bulk, "PART", 8)
    return args, pipe, options.extractors(args)


def test_generate_tells_everything_and_never_picks_the_best(settings, tmp_path, capsys):
    """One line a set of seeds and a guidance, with all figures of these pictures, all
    lines kept; the same command again changes nothing."""
    args, pipe, result = settings
    args.figures = ["frechet", "score"]
    lines = []
    for first in (0, 100, 0):
        args.first_seed = first
        out = tmp_path / str(first)
        lines.append(generate.drawn_and_measured(args, pipe, "emoji", out, result))
    assert lines[0] == lines[2] and lines[0]["fd_emoji"] != lines[1]["fd_emoji"]
    assert lines[1]["seeds"] == [100, 113] and lines[0]["count"] == 14
    assert {"fd_emoji", "is_emoji"} <= lines[0].keys()
    expected = {"config_sha256", "step", "ema", "sampler", "steps", "guidance", "seeds"}
    assert expected | {"weights_sha256", "prepared_emoji", "reference"} <= set(lines[0])
    written = (tmp_path / "0" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in written] == [lines[0]]
    args.first_seed = 5
    with pytest.raises(UserError, match="samples of another request"):
        generate.drawn_and_measured(args, pipe, "emoji", tmp_path / "0", result)
    with np.load(tmp_path / "0" / "samples.npz") as npz:
        assert np.bincount(npz["arr_1"]).tolist() == [5, 5, 4]


@pytest.mark.slow
def test_a_sweep_shows_every_value(settings, tmp_path, monkeypatch, capsys):
    """Equal settings under two names draw the same; other seeds do not."""
    pytest.importorskip("matplotlib", reason="needs requirements-dev.txt")
    args, pipe, _ = settings
    monkeypatch.setattr(sweep.Pipeline, "load", lambda name: pipe)
    args.over, args.values, args.out = "steps", ["1", "2"], str(tmp_path / "sweep")
    result = sweep.run(args)
    assert result["values"] == [1, 2] and len(result["fd_emoji"]) == 2
    lines = (tmp_path / "sweep" / "sweep.md").read_text().splitlines()
    assert lines[0].startswith("| steps | fd_emoji") and len(lines) == 4
    with Image.open(tmp_path / "sweep" / "sweep.png") as plot:
        assert plot.size[0] > 100
    for over, values in (("sampler", ["ddim", "euler"]), ("first_seed", ["0", "90"])):
        args.sampler, args.first_seed, args.over, args.values = "ddim", 0, over, values
        first, second = sweep.run(args)["fd_emoji"]
        # DDIM without noise is Euler's method; rounding may move single levels
        assert (first == pytest.approx(second, rel=1e-3)) == (over == "sampler")
    args.over, args.values = "steps", ["many"]
    with pytest.raises(UserError, match="are ints"):
        sweep.run(args)
