"""Line charts as SVG text: what report.html is drawn with, no library, no script.

Owns scales, ticks and paths; what is drawn belongs to `report`. A series is a list of
(step, value); None and non-finite values break its line.
"""

import html
import math
from collections.abc import Mapping, Sequence

WIDTH, HEIGHT = 440, 220
LEFT, RIGHT, TOP, BOTTOM = 52, 10, 10, 24
MAX_POINTS = 300
# Okabe and Ito's colours, told apart by colour-blind readers too.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#666666")

Series = Sequence[tuple[float, float | None]]


def chart(title: str, lines: Mapping[str, Series], *, logarithmic: bool = False) -> str:
    """A <figure> with one line a series; the legend has each one's last value.

    logarithmic: where all values are above 0 and span more than a factor of ten.
    """
    drawn = {name: binned(series) for name, series in lines.items()}
    points = [p for series in drawn.values() for p in series if finite(p[1])]
    if not points:
        return ""
    values = [value for _, value in points]
    low, high = min(values), max(values)
    as_log = logarithmic and low > 0 and high > 10 * low
    scale = math.log10 if as_log else float
    bounds = padded(scale(low), scale(high))
    last_step = max(step for step, _ in points) or 1

    def at(step: float, value: float) -> tuple[float, float]:
        share = (scale(value) - bounds[0]) / (bounds[1] - bounds[0])
        x = LEFT + (WIDTH - LEFT - RIGHT) * step / last_step
        return x, HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * share

    marks = log_ticks(*bounds) if as_log else ticks(*bounds)
    parts = [level(tick, at(0, tick)[1]) for tick in marks]
    parts += [below(tick, at(tick, low)[0]) for tick in ticks(0, last_step)]
    keys = []
    for index, (name, series) in enumerate(drawn.items()):
        colour = COLOURS[index % len(COLOURS)]
        parts.append(path(series, at, colour))
        last = next((v for _, v in reversed(series) if finite(v)), math.nan)
        keys.append(
            f'<span style="color:{colour}">&#9644;</span> {html.escape(name)} '
            f"<b>{short(last)}</b>"
        )
    return (
        f"<figure><figcaption>{html.escape(title)}{' (log)' if as_log else ''}"
        f'</figcaption><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{html.escape(title)}">{"".join(parts)}</svg>'
        f"<p>{' &ensp; '.join(keys)}</p></figure>"
    )


def finite(value: float | None) -> bool:
    """True for a number that can be drawn."""
    return value is not None and math.isfinite(value)


def binned(series: Series) -> list[tuple[float, float | None]]:
    """At most MAX_POINTS points, each the mean of as many neighbours.

    A group without one finite value stays a gap.
    """
    size = math.ceil(len(series) / MAX_POINTS) or 1
    found = []
    for start in range(0, len(series), size):
        group = series[start : start + size]
        known = [value for _, value in group if finite(value)]
        mean = sum(known) / len(known) if known else None
        found.append((group[-1][0], mean))
    return found


def path(series: Series, at, colour: str) -> str:
    """The line of a series; a point alone between two gaps is a dot."""
    pieces, piece = [], []
    for step, value in [*series, (0, None)]:
        if finite(value):
            piece.append(at(step, value))
        elif piece:
            pieces.append(piece)
            piece = []
    drawn = []
    for piece in pieces:
        if len(piece) == 1:
            ((x, y),) = piece
            drawn.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{colour}"/>')
            continue
        route = " ".join(f"{x:.1f},{y:.1f}" for x, y in piece)
        drawn.append(
            f'<polyline points="{route}" fill="none" stroke="{colour}" '
            'stroke-width="1.5" stroke-linejoin="round"/>'
        )
    return "".join(drawn)


def level(value: float, y: float) -> str:
    """A horizontal line with its value."""
    return (
        f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" '
        f'class="grid"/><text x="{LEFT - 5}" y="{y + 3.5:.1f}" '
        f'text-anchor="end">{short(value)}</text>'
    )


def below(step: float, x: float) -> str:
    """A step under the chart."""
    place = "start" if step == 0 else "end" if x > WIDTH - RIGHT - 15 else "middle"
    return (
        f'<text x="{x:.1f}" y="{HEIGHT - 6}" text-anchor="{place}">{short(step)}</text>'
    )


def padded(low: float, high: float) -> tuple[float, float]:
    """Bounds a little wider than the values; never equal."""
    room = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return low - room, high + room


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """At most `most` round numbers (1, 2 or 5 times a power of ten) in [low, high]."""
    raw = (high - low) / most
    power = 10.0 ** math.floor(math.log10(raw))
    stride = next(power * m for m in (1, 2, 5, 10) if power * m >= raw * (1 - 1e-9))
    first = math.ceil(low / stride - 1e-9)
    count = math.floor(high / stride + 1e-9) - first + 1
    return [round(stride * (first + k), 12) for k in range(count)][: most + 1]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2, 5 times powers of ten whose logarithm lies in [low, high]; few of them."""
    exponents = range(math.floor(low), math.ceil(high) + 1)
    for digits in ((1, 2, 5), (1,)):
        found = [
            digit * 10.0**exponent
            for exponent in exponents
            for digit in digits
            if low <= math.log10(digit * 10.0**exponent) <= high
        ]
        if len(found) <= 6:
            break
    return found[:: math.ceil(len(found) / 6) or 1]


def short(value: float) -> str:
    """12000 -> "12k", 0.00012 -> "0.00012", 1234567 -> "1.23M"."""
    if not math.isfinite(value):
        return "-"
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= unit:
            return f"{value / unit:.3g}{name}"
    return f"{value:.3g}"
