"""Train every combination of some values: python -m lDM_jax.tools.sweep_train.

    python -m lDM_jax.tools.sweep_train --config=configs/emoji.py --workdir=runs/lr \\
        --over optimizer.learning_rate=3e-4,6e-4 --over seed=0,1 \\
        --set train.num_steps=600 [--share 0/4]

Each combination is one run of train.py in WORKDIR/NAME=VALUE,..., one after another;
the same command continues and skips what is done. A run that fails does not stop the
others. --share INDEX/COUNT takes every COUNT-th run, for several machines or the tasks
of a SLURM array on one disk. At the end, and with --table alone, a Markdown table of
the last held-out figures, also in WORKDIR/sweep.md. A value may be a tuple: "(1,2)".
"""

import argparse
import itertools
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from lDM_jax.core.errors import UserError
from lDM_jax.from_config.config_file import read_config
from lDM_jax.tools import make_main, parse_share
from lDM_jax.training.report import read_metrics

TRAIN = Path(__file__).parents[2] / "train.py"


def split_values(text: str) -> list[str]:
    """ "1,(2,3)" -> ["1", "(2,3)"]: commas inside brackets do not separate."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "([") - (letter in ")]")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def combinations(over: Sequence[str]) -> list[dict[str, str]]:
    """["a=1,2", "b=3"] -> [{"a": "1", "b": "3"}, {"a": "2", "b": "3"}].

    UserError unless each is KEY=VALUE,... and no key comes twice.
    """
    axes: dict[str, list[str]] = {}
    for text in over:
        key, equals, values = text.partition("=")
        if not (key and equals and all(split_values(values))):
            raise UserError(f"--over {text}: write KEY=VALUE,VALUE,...")
        if key in axes:
            raise UserError(f"--over {key} is given twice: join its values by commas")
        axes[key] = split_values(values)
    return [
        dict(zip(axes, row, strict=True)) for row in itertools.product(*axes.values())
    ]


def run_name(run: dict[str, str]) -> str:
    """The folder of a run: "learning_rate=3e-4,seed=0", with full keys if their last
    parts are not unique."""
    ends = [key.rsplit(".", 1)[-1] for key in run]
    names = ends if len(set(ends)) == len(ends) else list(run)
    words = [f"{n}={v}" for n, v in zip(names, run.values(), strict=True)]
    return ",".join(words).replace("/", "_").replace(" ", "")


def changes(args: argparse.Namespace, values: dict[str, str]) -> list[str]:
    """The KEY=VALUE of --set and of one run."""
    return [*args.set, *(f"{key}={value}" for key, value in values.items())]


def train(command: list[str]) -> int:
    """Run train.py; it gets the signals that this program gets, so that it saves."""
    child = subprocess.Popen(command)
    stopped: list[int] = []

    def forward(number, frame) -> None:
        del frame
        stopped.append(number)
        child.send_signal(signal.SIGTERM)

    before = {n: signal.signal(n, forward) for n in (signal.SIGTERM, signal.SIGINT)}
    try:
        code = child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if stopped:
        raise SystemExit(code)
    return code


def last_figures(workdir: Path) -> dict:
    """{"step": ..., "eval_...": ...}: the newest of each held-out figure of a run."""
    figures: dict = {}
    for line in read_metrics(workdir / "metrics.jsonl"):
        figures |= {
            k: v for k, v in line.items() if k == "step" or k.startswith("eval_")
        }
    return {name: value for name, value in figures.items() if "/" not in name}


def table(folder: Path, runs: Sequence[dict[str, str]]) -> str:
    """Markdown: one line per run, "-" where nothing is measured yet."""
    figures = [last_figures(folder / run_name(run)) for run in runs]
    names = list(dict.fromkeys(name for row in figures for name in row))
    keys = list(runs[0])
    lines = [f"| {' | '.join([*keys, *names])} |", "|" + "---|" * len([*keys, *names])]
    for run, row in zip(runs, figures, strict=True):
        values = [f"{row[n]:.5g}" if row.get(n) is not None else "-" for n in names]
        lines.append(f"| {' | '.join([*run.values(), *values])} |")
    return "\n".join(lines)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("--config", required=True, help="file, also with :argument")
    parser.add_argument("--workdir", required=True, help="folder of the runs")
    parser.add_argument(
        "--over", action="append", required=True, metavar="KEY=VALUE,..."
    )
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--share", default="0/1", metavar="INDEX/COUNT")
    parser.add_argument("--table", action="store_true", help="train nothing")


def run(args: argparse.Namespace) -> int:
    """Train what is left, write the table; returns 1 if a run failed, else 0."""
    runs, (index, count) = combinations(args.over), parse_share("--share", args.share)
    for values in runs:  # before the first is trained
        read_config(args.config, changes(args, values))
    folder, failed = Path(args.workdir), []
    for values in () if args.table else runs[index::count]:
        workdir = folder / run_name(values)
        flags = [f"--config.{change}" for change in changes(args, values)]
        command = [sys.executable, str(TRAIN), f"--config={args.config}", *flags]
        if train([*command, f"--workdir={workdir}"]):
            failed.append(workdir.name)
    text = table(folder, runs)
    if folder.is_dir():
        (folder / "sweep.md").write_text(text + "\n")
    sys.stdout.write(text + "\n")
    for name in failed:
        sys.stderr.write(f"sweep_train: {name} failed, see its log above\n")
    return 1 if failed else 0


main = make_main("sweep_train", __doc__, arguments, run)

if __name__ == "__main__":
    sys.exit(main())
