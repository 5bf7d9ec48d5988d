"""report.html and its charts: self-contained, whole, and true to the metrics."""

import base64
import json
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from lDM_jax.core import image
from lDM_jax.core.sharding import make_mesh
from lDM_jax.training import charts, loop, report
from tests import toy_run


class Page(HTMLParser):
    """Tags with their attributes, and whether all of them are closed."""

    VOID = {"meta", "img"}

    def __init__(self, text):
        super().__init__()
        self.found, self.open = [], []
        self.feed(text)

    def handle_startendtag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def all(self, tag):
        return [attrs for name, attrs in self.found if name == tag]


def lines(count=50):
    for step in range(10, 10 * count + 1, 10):
        yield {
            "step": step,
            "loss": 1 / step,
            "gnorm": 2.0,
            "error/t0.00": 0.5,
            "error/t0.25": None if step < 100 else 0.25,
            "it_per_sec": 3.0,
            "images_per_sec": 96.0,
        }
    yield {"step": 500, "eval_loss": 0.01, "eval_fd_emoji": 12.5}


@pytest.fixture
def workdir(tmp_path):
    rows = [json.dumps(line) for line in lines()]
    (tmp_path / "metrics.jsonl").write_text("\n".join([*rows, '{"step": 510, "lo']))
    previews = tmp_path / "previews"
    previews.mkdir()
    for step in range(40):
        pixels = np.full((300, 150, 3), 5 * step, np.uint8)
        image.write_png(previews / f"{step:07d}_samples.png", pixels)
    (previews / "0000099_samples.png").write_bytes(b"cut short")
    return tmp_path


def test_the_page_stands_alone(workdir):
    report.write(workdir, {"stage": "diffusion", "x": "<script>alert(1)</script>"})
    text = (workdir / "report.html").read_text()
    page = Page(text)
    assert not page.open
    assert not page.all("script") and not page.all("link")
    addresses = [a.get("src") or a.get("href") for _, a in page.found]
    for address in filter(None, addresses):
        assert address.startswith(("data:image/jpeg;base64,", "previews/"))
        if address.startswith("previews/"):
            assert (workdir / address).is_file()
    assert "http" not in re.sub(r"base64,[^\"]+", "", text)
    assert not list(workdir.glob(".report*"))


def test_previews_are_thinned_evenly_and_small(workdir):
    report.write(workdir, {})
    pictures = Page((workdir / "report.html").read_text()).all("img")
    steps = [int(picture["alt"].split()[1]) for picture in pictures]
    assert steps[0] == 0 and len(steps) == report.MOST_PREVIEWS - 1  # one is damaged
    gaps = np.diff(steps)
    assert set(gaps) <= {1, 2}
    data = base64.b64decode(pictures[-1]["src"].split(",")[1])
    pixels = image.decode(data, alpha=False)
    assert pixels.shape == (256, 128, 3)
    assert abs(int(pixels.mean()) - 5 * steps[-1]) <= 1  # JPEG of a flat picture


def test_every_metric_is_drawn_once(workdir):
    report.write(workdir, {})
    text = (workdir / "report.html").read_text()
    for name in ("loss", "eval_loss", "gnorm", "error/t0.00", "error/t0.25"):
        assert len(re.findall(rf"</span> {re.escape(name)} <b>", text)) == 1
    assert "it_per_sec" not in text  # images a second say the same
    assert "</span> eval_fd_emoji <b>12.5</b>" in text
    assert "step 500" in text


def points_of(svg):
    found = re.findall(r'points="([^"]+)"', svg)
    return [[tuple(map(float, p.split(","))) for p in line.split()] for line in found]


def test_a_straight_line_is_drawn_straight_and_a_gap_is_a_gap():
    series = [(step, None if 40 <= step < 60 else 2.0 * step) for step in range(100)]
    svg = charts.chart("x", {"a": series})
    first, second = points_of(svg)
    assert (len(first), len(second)) == (40, 40)
    xy = np.array(first + second)
    slope = np.diff(xy[:, 1]) / np.diff(xy[:, 0])
    np.testing.assert_allclose(slope, slope.mean(), rtol=0.1)  # one digit of a pixel
    assert slope.mean() < 0  # larger values stand higher


def test_a_power_law_is_straight_on_the_logarithmic_scale():
    series = [(step, 10 ** (-step / 50)) for step in range(0, 201)]
    (line,) = points_of(charts.chart("x", {"a": series}, logarithmic=True))
    xy = np.array(line)
    fit = np.polyval(np.polyfit(xy[:, 0], xy[:, 1], 1), xy[:, 0])
    np.testing.assert_allclose(fit, xy[:, 1], atol=0.12)  # both are rounded to 0.1
    assert "(log)" in charts.chart("x", {"a": series}, logarithmic=True)
    assert "(log)" not in charts.chart(
        "x", {"a": [(0, -1.0), (1, 9.0)]}, logarithmic=True
    )


def test_many_points_become_few_means():
    series = [(step, float(step % 2)) for step in range(100_000)]
    found = charts.binned(series)
    assert len(found) <= charts.MAX_POINTS
    np.testing.assert_allclose([value for _, value in found], 0.5, atol=2e-3)
    assert found[-1][0] == 99_999


@pytest.mark.parametrize(
    ("low", "high", "wanted"),
    [(0, 100, [0, 20, 40, 60, 80, 100]), (0.13, 0.31, [0.15, 0.2, 0.25, 0.3])],
)
def test_ticks_are_round(low, high, wanted):
    np.testing.assert_allclose(charts.ticks(low, high), wanted, rtol=1e-12)


@pytest.mark.parametrize("low", [-7.3, -2.0, -0.4, 3.0])
@pytest.mark.parametrize("width", [0.9, 2.5, 9.0])
def test_logarithmic_ticks_are_few_and_inside(low, width):
    found = charts.log_ticks(low, low + width)
    assert 1 <= len(found) <= 6
    assert all(low <= math.log10(tick) <= low + width for tick in found)


@pytest.mark.parametrize(
    ("value", "text"),
    [(12_000, "12k"), (1_234_567, "1.23M"), (0.00012, "0.00012"), (math.nan, "-")],
)
def test_numbers_are_short(value, text):
    assert charts.short(value) == text


@pytest.mark.parametrize("series", [[], [(0, None)], [(0, 0.0)], [(5, 3.0), (5, 3.0)]])
def test_no_series_breaks_a_chart(series):
    assert "nan" not in charts.chart("x", {"a": series}, logarithmic=True)


def test_a_run_writes_its_report_when_it_looks(tmp_path):
    settings = toy_run.config(num_steps=20, preview_every_steps=10, eval_every_steps=20)
    loop.run(toy_run.experiment(settings), str(tmp_path / "run"), mesh=make_mesh())
    text = (tmp_path / "run" / "report.html").read_text()
    assert len(Page(text).all("img")) == 2
    assert "eval_distance" in text and "versions" in text
