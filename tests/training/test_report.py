"""report.html and its charts: self-contained, whole, and true to the metrics."""

import base64
import json
import math
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest

from lDM_jax.core import image
from lDM_jax.core.sharding import make_mesh
from lDM_jax.training import loop, report
from tests import toy_run

SVG = "{http://www.w3.org/2000/svg}"


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
    names = "src", "href", "xlink:href"
    addresses = [attrs.get(name) for _, attrs in page.found for name in names]
    for address in filter(None, addresses):
        if address.startswith("#"):  # a shape in the page itself
            assert f'id="{address[1:]}"' in text
            continue
        assert address.startswith(("data:image/jpeg;base64,", "previews/"))
        if address.startswith("previews/"):
            assert (workdir / address).is_file()
    plain = re.sub(r"base64,[^\"]+|xmlns(:xlink)?=\"[^\"]+\"", "", text)
    assert "http" not in plain
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


def points_of(figure, name="a"):
    """The pieces of a curve, each "n 2" in units of the SVG, y downward."""
    root = ElementTree.fromstring(
        figure[figure.index("<svg") : figure.index("</svg>")] + "</svg>"
    )
    (curve,) = (g for g in root.iter(f"{SVG}g") if g.get("id") == f"curve-{name}")
    path = curve.find(f"{SVG}path").get("d")
    return [
        np.array(re.findall(r"-?[\d.]+", piece), float).reshape(-1, 2)
        for piece in path.split("M")[1:]
    ]


def test_a_straight_line_is_drawn_straight_and_a_gap_is_a_gap():
    series = [(step, None if 40 <= step < 60 else 2.0 * step) for step in range(100)]
    first, second = points_of(report.chart("x", {"a": series}))
    xy = np.concatenate([first, second])
    slope = np.diff(xy[:, 1]) / np.diff(xy[:, 0])
    np.testing.assert_allclose(slope, slope.mean(), rtol=1e-3)  # it has six digits
    assert slope.mean() < 0  # larger values stand higher
    place = np.interp(xy[:, 0], [first[0, 0], second[-1, 0]], [0, 99])
    np.testing.assert_allclose([place[len(first) - 1], place[len(first)]], [39, 60])


def test_each_series_has_its_curve_and_a_single_point_is_a_dot():
    rows = [(step, 1.0 * step) for step in range(10)]
    dots = [(0, 1.0), (1, None), (2, 3.0), (3, math.inf), (4, 2.0), (5, 2.0)]
    figure = report.chart("x", {"loss": rows, "eval_loss": dots})
    assert len(points_of(figure, "loss")) == 1
    curve = figure[figure.index('id="curve-eval_loss"') :]
    uses = curve[: curve.index("</g>\n   </g>")].count("<use")
    assert uses == 2  # the points at 0 and 2


def test_a_power_law_is_straight_on_the_logarithmic_scale():
    series = [(step, 10 ** (-step / 50)) for step in range(0, 201)]
    figure = report.chart("x", {"a": series}, logarithmic=True)
    (xy,) = points_of(figure)
    fit = np.polyval(np.polyfit(xy[:, 0], xy[:, 1], 1), xy[:, 0])
    np.testing.assert_allclose(fit, xy[:, 1], atol=1e-3)
    assert "(log)" in figure
    signed = report.chart("x", {"a": [(0, -1.0), (1, 9.0)]}, logarithmic=True)
    assert "(log)" not in signed


def test_many_points_become_few_means():
    series = [(step, float(step % 2)) for step in range(100_000)]
    points = report.binned(series)
    assert len(points) <= report.MAX_POINTS
    np.testing.assert_allclose([value for _, value in points], 0.5, atol=2e-3)
    assert points[-1][0] == 99_999


@pytest.mark.parametrize("series", [[], [(0, None)], [(0, 0.0)], [(5, 3.0), (5, 3.0)]])
def test_no_series_breaks_a_chart(series):
    assert "nan" not in report.chart("x", {"a": series}, logarithmic=True)


def test_a_run_writes_its_report_when_it_looks(tmp_path):
    settings = toy_run.config(num_steps=20, preview_every_steps=10, eval_every_steps=20)
    loop.run(toy_run.experiment(settings), str(tmp_path / "run"), mesh=make_mesh())
    text = (tmp_path / "run" / "report.html").read_text()
    assert len(Page(text).all("img")) == 2
    assert "eval_distance" in text and "versions" in text
