"""evaluate sweep: figures over guidance scales, steps, or models (EMA lengths).

Every value is one `generate` in a folder of its own, so that a stopped sweep continues.
The images of all values have the same seeds and captions, but for --over first_seed,
which shows how far figures move from one set of seeds to the next. Writes sweep.md, a
table, and sweep.png, a plot with the intervals. Models are given by
name or directory: the averages of one run over several EMA lengths, for example.
"""

import argparse
from pathlib import Path

from lDM_jax.core.distributed import is_first
from lDM_jax.core.errors import UserError
from lDM_jax.evaluation import options
from lDM_jax.evaluation.commands.generate import drawn_and_measured, sampling_arguments
from lDM_jax.sampling.pipeline import Pipeline

OVER = {
    "guidance": float,
    "steps": int,
    "eta": float,
    "first_seed": int,
    "sampler": str,
    "model": str,
}


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("--model", help="shipped name or directory")
    parser.add_argument("--over", choices=tuple(OVER), required=True)
    parser.add_argument("--values", nargs="+", required=True)
    parser.add_argument("--num", type=int, default=5000, help="images of each value")
    parser.add_argument("--out", required=True, help="folder of samples and figures")
    sampling_arguments(parser)


def run(args: argparse.Namespace) -> dict:
    """A metric over guidance scales, steps or models: table and plot."""
    values = parse_values(args)
    if args.bootstrap < 2:
        raise UserError("a sweep shows intervals: give --bootstrap of at least 2")
    extractors = options.extractors(args)
    out, rows = Path(args.out).expanduser(), []
    args.work = args.work or args.out  # one bank of the reference for all values
    pipe = Pipeline.load(args.model) if args.over != "model" else None
    for value in values:
        if args.over != "model":
            setattr(args, args.over, value)
        name = value if args.over == "model" else args.model
        folder = out / f"{args.over}-{str(value).strip('/').replace('/', '_')}"
        model = pipe or Pipeline.load(name)
        rows.append(drawn_and_measured(args, model, name, folder, extractors))
    names = figure_names(rows)
    if is_first():
        (out / "sweep.md").write_text(table(args.over, values, rows, names))
        plot(out / "sweep.png", args.over, values, rows, names)
    return {
        "metric": "sweep",
        "over": args.over,
        "values": values,
        "num": args.num,
        **{name: [row[name] for row in rows] for name in names},
        "table": str(out / "sweep.md"),
        "plot": str(out / "sweep.png") if is_first() else None,
    }


def parse_values(args: argparse.Namespace) -> list:
    """The values in the type of the swept parameter. UserError if they do not parse."""
    if (args.over == "model") == bool(args.model):
        raise UserError("give --model, or the models as --over model --values A B")
    try:
        return [OVER[args.over](text) for text in args.values]
    except ValueError:
        kind = OVER[args.over].__name__
        raise UserError(f"--values of {args.over} are {kind}s: {args.values}") from None


def figure_names(rows: list[dict]) -> list[str]:
    """The figures that all rows have."""
    return [
        key.removesuffix("_95")
        for key in rows[0]
        if key.endswith("_95") and all(key in row for row in rows)
    ]


def table(over: str, values: list, rows: list[dict], names: list[str]) -> str:
    """Markdown with one line per value; each figure with its interval."""
    lines = [f"| {over} | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for value, row in zip(values, rows, strict=True):
        cells = []
        for name in names:
            low, high = row[f"{name}_95"]
            cells.append(f"{row[name]:.4g} ({low:.4g} .. {high:.4g})")
        lines.append(f"| {value} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def plot(
    file: Path, over: str, values: list, rows: list[dict], names: list[str]
) -> None:
    """Plot one panel per figure."""
    from matplotlib.figure import Figure

    columns, is_named = min(3, len(names)), OVER[over] is str
    lines = -(-len(names) // columns)
    figure = Figure(figsize=(4 * columns, 3 * lines), layout="constrained")
    positions = range(len(values)) if is_named else values
    for index, name in enumerate(names):
        axes = figure.add_subplot(lines, columns, index + 1)
        heights = [row[name] for row in rows]
        reach = [row[f"{name}_95"][1] - row[name] for row in rows]
        axes.errorbar(positions, heights, yerr=reach, marker="o", capsize=3)
        axes.set(xlabel=over, title=name)
        if is_named:
            axes.set_xticks(list(positions), [Path(value).name for value in values])
    figure.savefig(file, dpi=120)
