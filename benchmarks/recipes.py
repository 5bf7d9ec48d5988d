"""The paper's recipe beside modern ones: same network, data, steps and seeds.

    python -m benchmarks.recipes --steps 2400 --recipes all --out recipes.json
    python -m benchmarks.recipes --out recipes.json --table

A recipe is a list of flags of train.py for configs/emoji.py. Each is trained by
train.py and judged by two commands of lDM_jax.tools.evaluate:

    fd_emoji   `generate --extractor emoji`, against the training images
    accuracy   `prompts`: does the nearest training image have the prompt's subgroup?

All draw with the config's 50 steps of a first-order sampler, so with as many network
evaluations, at the config's guidance; only the grid is each recipe's own. One JSON line
a recipe is appended to --out as soon as it is measured; recipes that stand there
already are skipped, and what was stopped goes on where it was. --work keeps the runs.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent

# Everything that recipes differ in, so that a line means the same whatever the config
# says by itself.
MODERN = {
    "process.kind": "discrete",
    "process.prediction": "v",
    "process.zero_terminal_snr": False,
    "unet.qk_norm": False,
    "loss.loss": "l2",
    "loss.weighting": "uniform",
    "loss.log_variance": False,
    "optimizer.name": "adamw",
    "optimizer.learning_rate": 6e-4,
    "optimizer.schedule": "cosine",
    "optimizer.warmup_steps": 100,
    "optimizer.clip_norm": 1.0,
    "optimizer.b2": 0.99,
    "train.ema_decay": 0.998,
    "train.ema_std": 0.0,
    "sample.sampler": "ddim",
    "sample.spacing": "leading",
}
PAPER = MODERN | {
    "process.prediction": "eps",
    "optimizer.learning_rate": 1e-4,
    "optimizer.schedule": "constant",
    "optimizer.warmup_steps": 0,
    "optimizer.clip_norm": 0.0,
    "optimizer.b2": 0.999,
    "train.ema_decay": 0.9999,
}
# "leading" is the flow's and EDM's own grid; Euler is DDIM's formula.
FLOW = MODERN | {
    "process.kind": "rectified_flow",
    "process.time_distribution": "logit_normal",
    "sample.sampler": "euler",
}
EDM = MODERN | {"process.kind": "edm", "sample.sampler": "euler"}
ZERO_SNR = {"process.zero_terminal_snr": True, "sample.spacing": "trailing"}

# name -> (what it is, values of the config)
RECIPES = {
    "paper": ("eps, AdamW at a constant 1e-4", PAPER),
    "paper_rate": ("the same at 6e-4", PAPER | {"optimizer.learning_rate": 6e-4}),
    "eps": (
        "eps; warm-up, cosine to 0, clipping",
        MODERN | {"process.prediction": "eps"},
    ),
    "v": ("v instead of eps", MODERN),
    "v_min_snr": ("v, min-SNR-5", MODERN | {"loss.weighting": "min_snr"}),
    "v_zero_snr": ("v, zero terminal SNR, trailing grid", MODERN | ZERO_SNR),
    "v_power_ema": ("v, power-function EMA 0.10", MODERN | {"train.ema_std": 0.1}),
    "v_muon": ("v, Muon", MODERN | {"optimizer.name": "muon"}),
    "v_qk_norm": ("v, norms of queries and keys", MODERN | {"unet.qk_norm": True}),
    "flow": ("rectified flow, logit-normal times", FLOW),
    "flow_uniform": (
        "rectified flow, uniform times",
        FLOW | {"process.time_distribution": "uniform"},
    ),
    "edm": ("EDM preconditioning", EDM),
    "edm_log_variance": (
        "EDM, learned log-variance",
        EDM | {"loss.log_variance": True},
    ),
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", required=True, help="file of JSON lines")
    parser.add_argument("--work", help="folder of the runs (default: OUT.runs)")
    parser.add_argument("--config", default="configs/emoji.py")
    parser.add_argument("--recipes", default="all", help="names joined by commas")
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num", type=int, default=1000, help="images for fd_emoji")
    parser.add_argument("--captions", type=int, default=50)
    parser.add_argument("--seeds", type=int, default=8, help="samples a caption")
    parser.add_argument("--table", action="store_true", help="print what is there")
    parser.add_argument("--list", action="store_true", help="print the recipes' flags")
    args = parser.parse_args()
    names = list(RECIPES) if args.recipes == "all" else args.recipes.split(",")
    unknown = [name for name in names if name not in RECIPES]
    if unknown:
        parser.error(f"unknown recipes {unknown}; valid: {', '.join(RECIPES)}")
    args.recipes = names
    return args


def train_flags(recipe: str, args: argparse.Namespace) -> list[str]:
    """The flags of train.py, without the work directory."""
    values = {**RECIPES[recipe][1], "train.num_steps": args.steps, "seed": args.seed}
    warmup = "optimizer.warmup_steps"
    values[warmup] = min(values[warmup], args.steps // 10)
    flags = [f"--config.{name}={value}" for name, value in values.items()]
    return [f"--config={args.config}", *flags]


def call(*command: str) -> str:
    """Run a program of the tree and return what it prints; its log goes to stderr."""
    print(" ".join(command), file=sys.stderr, flush=True)
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with code {done.returncode}")
    return done.stdout


def evaluate(*command: str) -> dict:
    """The JSON line of an evaluate command."""
    printed = call("-m", "lDM_jax.tools.evaluate", *command)
    return json.loads(printed.splitlines()[-1])


def measure(recipe: str, args: argparse.Namespace, work: Path) -> dict:
    """Train one recipe and judge it."""
    run = work / f"{recipe}_{args.steps}_{args.seed}"
    flags, begin = train_flags(recipe, args), time.perf_counter()
    call("train.py", *flags, f"--workdir={run}")
    train_secs = time.perf_counter() - begin
    samples = evaluate(
        "generate",
        *("--workdir", str(run), "--num", str(args.num), "--out", str(run / "drawn")),
        *("--extractor", "emoji"),
    )
    prompts = evaluate(
        "prompts",
        *("--model", str(run), "--captions", str(args.captions)),
        *("--seeds", str(args.seeds)),
    )
    return {
        **identity(recipe, args),
        "about": RECIPES[recipe][0],
        "flags": flags,
        "fd_emoji": samples["fd_emoji"],
        "accuracy": prompts["accuracy"],
        "sampler": [prompts[name] for name in ("sampler", "steps", "guidance")],
        "train_secs": round(train_secs),
        "generate": samples,
    }


def identity(recipe: str, args: argparse.Namespace) -> dict:
    """What makes a line of the file the answer to this question."""
    names = ("config", "steps", "seed", "num", "captions", "seeds")
    return {"recipe": recipe, **{name: getattr(args, name) for name in names}}


def read_lines(out: Path) -> list[dict]:
    """What has been measured."""
    if not out.exists():
        return []
    return [json.loads(line) for line in out.read_text().splitlines() if line]


def table(lines: list[dict]) -> str:
    """Markdown, the best FD first."""
    rows = [
        "| recipe | | steps | seed | fd_emoji | prompt accuracy |",
        "|" + "---|" * 6,
    ]
    for line in sorted(
        lines, key=lambda line: (line["steps"], value(line["fd_emoji"]))
    ):
        rows.append(
            f"| {line['recipe']} | {line['about']} | {line['steps']} | {line['seed']} "
            f"| {value(line['fd_emoji']):.2f} | {line['accuracy']:.1%} |"
        )
    return "\n".join(rows)


def value(figure) -> float:
    """A figure's value, with or without its interval."""
    return figure["value"] if isinstance(figure, dict) else figure


def main() -> None:
    args = arguments()
    out = Path(args.out).absolute()
    work = Path(args.work).absolute() if args.work else out.with_suffix(".runs")
    if args.list:
        for recipe in args.recipes:
            print(recipe, *train_flags(recipe, args))
        return
    for recipe in () if args.table else args.recipes:
        request = identity(recipe, args)
        if any(request.items() <= line.items() for line in read_lines(out)):
            continue
        line = measure(recipe, args, work)
        out.parent.mkdir(parents=True, exist_ok=True)
        with out.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(table([line]).splitlines()[-1], file=sys.stderr, flush=True)
    print(table(read_lines(out)))


if __name__ == "__main__":
    main()
