"""Another EMA length after the run: python -m lDM_jax.tools.reconstruct_ema.

    python train.py ... --config.train.ema_stds="(0.05, 0.1)"
    python -m lDM_jax.tools.reconstruct_ema --workdir runs/emoji --std 0.07 --out DIR
    python -m lDM_jax.tools.evaluate generate --model DIR --num 1000 --out DIR/figures

Writes a weights directory whose parameters are the power-function average of relative
width --std at --step, made of the averages that the run has stored
(`training.posthoc_ema`). Prints a JSON line: `distance` says how far the profile is
from the one asked for.
"""

import argparse
import sys
from pathlib import Path

from ml_collections import ConfigDict

from lDM_jax.tools import make_main
from lDM_jax.training.posthoc_ema import reconstruct
from lDM_jax.weights import directory as weights_directory


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("--workdir", required=True, help="of the run")
    parser.add_argument("--std", type=float, required=True, help="width, e.g. 0.07")
    parser.add_argument("--step", type=int, help="default: the last stored one")
    parser.add_argument("--out", required=True, help="directory to write")
    parser.add_argument("--half", action="store_true", help="store f16")


def run(args: argparse.Namespace) -> dict:
    """Write --out; returns what was done, for people and programs."""
    config = ConfigDict(weights_directory.read_config(Path(args.workdir)))
    stds = tuple(config.get("train", {}).get("ema_stds", ()))
    average = reconstruct(args.workdir, stds, args.std, args.step)
    config.train.ema_std = args.std
    fields, out = config.to_dict(), Path(args.out)
    weights_directory.save(out, fields, average.params, half=args.half)
    return {
        "std": args.std,
        "step": average.step,
        "averages": average.used,
        "distance": round(average.distance, 5),
        "out": args.out,
    }


main = make_main("reconstruct_ema", __doc__, arguments, run)

if __name__ == "__main__":
    sys.exit(main())
