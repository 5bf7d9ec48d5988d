"""A metric is added through the public places alone: a function, a line of METRICS."""

import json

import numpy as np
import pytest

from lDM_jax.evaluation import figures
from lDM_jax.evaluation.metrics import bootstrap
from lDM_jax.tools import evaluate

MEANS = {"a": 60, "b": 100}


def brightness(comparison, report):
    """The difference of the mean first features of two sides."""
    means = [side.pool.mean[0] for side in (comparison.samples, comparison.reference)]
    replicates = np.full(comparison.replicates, means[0] - means[1])
    name = comparison.name("brightness")
    report.figures[name] = bootstrap.figure(means[0] - means[1], replicates)
    report.warnings.append("a warning of the toy metric")


@pytest.fixture
def statistics(tmp_path):
    """Two files of statistics of 112 features, written by numpy."""
    for name, mean in MEANS.items():
        arrays = dict(mu=np.full(112, float(mean)), sigma=np.eye(112))
        np.savez(tmp_path / f"{name}.npz", **arrays)
    return [str(tmp_path / f"{name}.npz") for name in MEANS]


def test_a_metric_from_outside_is_a_figure_of_compare(statistics, monkeypatch, capsys):
    monkeypatch.setitem(figures.METRICS, "brightness", brightness)
    command = ["compare", *statistics, "--extractor=emoji"]
    assert evaluate.main([*command, "--figures", "brightness"]) == 0
    output = capsys.readouterr()
    row = json.loads(output.out)
    assert row["brightness_emoji"] == MEANS["a"] - MEANS["b"]
    assert row["brightness_emoji_95"] == [-40.0, -40.0]
    assert not any(name.startswith("fd") for name in row)
    assert "a warning of the toy metric" in output.err
    assert evaluate.main(command) == 0  # among all figures by default
    row = json.loads(capsys.readouterr().out)
    assert row["brightness_emoji"] == -40.0
    assert row["fd_emoji"] == pytest.approx(112 * 40.0**2)


def test_without_its_line_a_metric_is_no_choice(statistics, capsys):
    with pytest.raises(SystemExit):
        evaluate.main(["compare", *statistics, "--figures", "brightness"])
    assert "invalid choice: 'brightness'" in capsys.readouterr().err
