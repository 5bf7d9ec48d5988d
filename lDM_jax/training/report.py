"""report.html of a work directory: curves, previews and settings on one page.

The page needs no server, no network and no script: charts are matplotlib's SVG, small
previews are in it, and each opens the image itself in `previews/`. It is made of
metrics.jsonl and previews/ alone, whenever a run looks at itself.
"""

import base64
import html
import io
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle
from pathlib import Path

import numpy as np

from lDM_jax.core import image
from lDM_jax.core.files import replacing

MOST_PREVIEWS, PREVIEW_PX, QUALITY = 24, 256, 80
# (title, pattern of the metrics of one chart); what matches none has its own chart.
CHARTS = (
    ("Loss", r"(eval_)?loss"),
    ("Error by time t / T", r"error/.*"),
    ("Held-out error by time t / T", r"eval_error/.*"),
    ("Frechet distance of samples", r"eval_s?f(i)?d.*"),
    ("Gradient norm", r"(disc_)?gnorm(/.*)?"),
    ("Update norm", r"norm/update"),
    ("Parameter norm", r"norm/parameters"),
)
LATE = ("images_per_sec", "input_wait", "mfu", "memory_gib", "skipped")
HIDDEN = ("step", "it_per_sec", "compile_secs")

# (step, value); None and values that are not finite are gaps.
Series = Sequence[tuple[float, float | None]]
LOGARITHMIC = ("Loss", "Gradient norm", "Update norm")
MAX_POINTS = 300
# Okabe and Ito's colors, told apart by color-blind readers too; gray suits any page.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#666666")
GRAY = "#888888"
STYLE = """
:root{color-scheme:light dark}
body{font:15px/1.45 system-ui,sans-serif;max-width:1380px;margin:1.5rem auto;
padding:0 1rem}
h1{font-size:1.5rem;margin:0}h2{font-size:1.1rem;margin:1.6rem 0 .5rem}
p{margin:.3rem 0}.facts{opacity:.75}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(400px,1fr));
gap:1rem}
figure{margin:0}figcaption{font-weight:600}
.charts figure{border:1px solid #8884;border-radius:6px;padding:.6rem .7rem}
.charts p{font-size:.82rem}
svg{width:100%;height:auto}
.strip{display:flex;gap:.7rem;overflow-x:auto;padding-bottom:.6rem}
.strip figure{flex:none}.strip figcaption{font-weight:400;font-size:.85rem}
.strip img{display:block;border-radius:4px;max-width:256px}
pre{overflow-x:auto;font-size:.8rem}
"""


def write(workdir: Path, config: dict) -> None:
    """Write `report.html`, whole or not at all. config: as config.json has it."""
    lines = read_metrics(workdir / "metrics.jsonl")
    page = "\n".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width,initial-scale=1">',
            f"<title>{html.escape(workdir.name)}</title><style>{STYLE}</style></head>",
            f"<body><h1>{html.escape(workdir.name)}</h1>",
            f'<p class="facts">{html.escape(facts(lines, config))}</p>',
            *previews(workdir / "previews"),
            "<h2>Curves</h2>",
            f'<div class="charts">{"".join(charts(lines))}</div>',
            "<h2>Settings</h2><details><summary>config.json, with the versions of the "
            "packages</summary>",
            f"<pre>{html.escape(json.dumps(config, indent=1, sort_keys=True))}</pre>",
            "</details></body></html>",
        ]
    )
    with replacing(workdir / "report.html") as partial:
        partial.write_text(page)


def read_metrics(file: Path) -> list[dict]:
    """The lines of metrics.jsonl that are whole."""
    metrics = []
    for line in file.read_text(errors="replace").splitlines() if file.exists() else ():
        try:
            values = json.loads(line)
        except ValueError:  # cut short by a full disk
            continue
        if isinstance(values, dict) and "step" in values:
            metrics.append(values)
    return metrics


def facts(lines: list[dict], config: dict) -> str:
    """One line: the kind of run, how far it is, its speed and compile time."""
    train = config.get("train", {})
    last = max((line["step"] for line in lines), default=0)
    words = [str(config[name]) for name in ("stage", "task") if name in config]
    words.append(f"step {last} of {train.get('num_steps', '?')}")
    speeds = [line["images_per_sec"] for line in lines if "images_per_sec" in line]
    if speeds:
        words.append(f"{sorted(speeds)[len(speeds) // 2]:.3g} images/s (median)")
    compiled = [line["compile_secs"] for line in lines if "compile_secs" in line]
    if compiled:
        words.append(f"compiled in {compiled[-1]:.1f} s")
    return " · ".join(words)


def charts(lines: list[dict]) -> Iterator[str]:
    """The charts, the most telling first."""
    rest: dict[str, list] = {}  # (step, value) by metric, as they first appear
    for line in lines:
        for name, value in line.items():
            if name not in HIDDEN and isinstance(value, int | float | None):
                rest.setdefault(name, []).append((line["step"], value))
    for title, pattern in CHARTS:
        names = [name for name in rest if re.fullmatch(pattern, name)]
        group = {name: rest.pop(name) for name in names}
        yield chart(title, group, logarithmic=title in LOGARITHMIC)
    for name in sorted(rest, key=lambda name: (name in LATE, name)):
        yield chart(name.replace("_", " "), {name: rest[name]})


def chart(title: str, lines: Mapping[str, Series], *, logarithmic: bool = False) -> str:
    """A <figure> with one curve a series; the legend has each one's last value.

    logarithmic: where all values are above 0 and span more than a factor of ten. Empty
    where there is no value at all.
    """
    curves = {name: binned(series) for name, series in lines.items()}
    values = [v for series in curves.values() for _, v in series if math.isfinite(v)]
    if not values:
        return ""
    as_log = logarithmic and min(values) > 0 and max(values) > 10 * min(values)
    legend = []
    for color, (name, series) in zip(cycle(COLORS), curves.items(), strict=False):
        last = next((v for _, v in reversed(series) if math.isfinite(v)), math.nan)
        legend.append(
            f'<span style="color:{color}">&#9644;</span> {html.escape(name)} '
            f"<b>{last:.3g}</b>"
        )
    return (
        f"<figure><figcaption>{html.escape(title)}{' (log)' if as_log else ''}"
        f"</figcaption>{svg(curves, as_log=as_log)}<p>{' &ensp; '.join(legend)}</p>"
        "</figure>"
    )


def svg(curves: Mapping[str, Series], *, as_log: bool) -> str:
    """The curves as an <svg> element; the curve of "x" has the id "curve-x"."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator

    figure = Figure(figsize=(5.5, 2.75))
    axes = figure.add_axes((0.12, 0.1, 0.85, 0.87), facecolor="none")
    for color, (name, series) in zip(cycle(COLORS), curves.items(), strict=False):
        steps, values = np.array(series, float).T
        gaps = np.isnan(np.pad(values, 1, constant_values=np.nan))
        alone = gaps[:-2] & gaps[2:]  # a point between two gaps is a dot
        style = dict(color=color, marker=".", markevery=alone.tolist(), clip_on=False)
        axes.plot(steps, values, gid=f"curve-{name}", linewidth=1.5, **style)
    axes.set_xlim(0, max(series[-1][0] for series in curves.values()) or 1)
    if as_log:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=6))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.tick_params(which="both", color=GRAY, labelcolor=GRAY)
    axes.spines[:].set_color(GRAY)
    axes.grid(axis="y", color=GRAY, alpha=0.25)
    text, unsaid = io.StringIO(), ("Creator", "Date", "Format", "Type")
    plain = dict(transparent=True, metadata=dict.fromkeys(unsaid))
    figure.savefig(text, format="svg", **plain)
    return text.getvalue()[text.getvalue().index("<svg") :]


def binned(series: Series) -> list[tuple[float, float]]:
    """At most MAX_POINTS points, each the mean of as many neighbors.

    A group without one finite value is NaN, a gap.
    """
    size = math.ceil(len(series) / MAX_POINTS) or 1
    points = []
    for start in range(0, len(series), size):
        group = series[start : start + size]
        finite = [v for _, v in group if v is not None and math.isfinite(v)]
        points.append((group[-1][0], sum(finite) / len(finite) if finite else math.nan))
    return points


def previews(folder: Path) -> Iterator[str]:
    """A strip for each kind of preview, from the first to the last."""
    kinds: dict[str, list[tuple[int, Path]]] = {}
    for file in sorted(folder.glob("[!.]*.png")) if folder.is_dir() else ():
        step, _, kind = file.stem.partition("_")
        if step.isdigit():
            kinds.setdefault(kind, []).append((int(step), file))
    for kind, files in kinds.items():
        images = "".join(thumbnail(step, file) for step, file in thinned(files))
        title = html.escape(kind.replace("_", " ").capitalize())
        yield f'<h2>{title}</h2><div class="strip">{images}</div>'


def thinned(files: list) -> list:
    """At most MOST_PREVIEWS of them, evenly, always the first and the last."""
    if len(files) <= MOST_PREVIEWS:
        return files
    most = MOST_PREVIEWS - 1
    return [files[round(k * (len(files) - 1) / most)] for k in range(most + 1)]


def thumbnail(step: int, file: Path) -> str:
    """A small image inside the page that opens the large one."""
    try:
        pixels = image.decode(file.read_bytes(), alpha=False)
    except (OSError, ValueError):
        return ""
    height, width = pixels.shape[:2]
    share = min(1.0, PREVIEW_PX / max(height, width))
    if share < 1:
        extent = max(round(height * share), 1), max(round(width * share), 1)
        pixels = image.resample(pixels, *extent)
    data = base64.b64encode(image.jpeg_bytes(pixels, quality=QUALITY)).decode()
    return (
        f'<figure><a href="previews/{html.escape(file.name)}">'
        f'<img alt="step {step}" src="data:image/jpeg;base64,{data}"></a>'
        f"<figcaption>step {step}</figcaption></figure>"
    )
