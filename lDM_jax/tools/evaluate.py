"""Measure a trained model: python -m lDM_jax.tools.evaluate COMMAND.

    reference --config configs/emoji.py --out ref.npz   statistics of a data set
    generate --model emoji --num 1000 --out DIR         draw images and measure them
    compare SAMPLES REFERENCE                           folders, batches or statistics
    recon --model emoji_kl_f8      PSNR, SSIM, LPIPS, R-FID of a first stage
    sweep --model emoji --over guidance --values 1 3 5 --out DIR       table and plot
    prompts --model emoji          the share of samples that show their caption
    regions --model emoji          two prompts, each for one half of an image
    task --model runs/emoji_sr     figures of the model's task, beside simple baselines

Figures of --extractor=emoji need no download and compare runs on the embedded set only;
the field's are of --extractor=inception. Each command prints one JSON line, its
warnings on stderr. On several hosts, which find each other as those of train.py do,
reference, generate, compare and sweep share the work; their folders are seen by all.

A command is a module of `evaluation.commands` with `arguments(parser)`, which declares
its flags, and `run(args) -> dict`, whose docstring is its help and whose result is
printed.
"""

import argparse
import sys

import jax

from lDM_jax.core import distributed
from lDM_jax.core.errors import UserError
from lDM_jax.evaluation.commands import (
    compare,
    generate,
    prompts,
    recon,
    reference,
    regions,
    sweep,
    task,
)
from lDM_jax.tools import make_main

MODULES = (prompts, recon, reference, generate, compare, sweep, task, regions)
SHARED = ("reference", "generate", "compare", "sweep")  # by several hosts


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the commands, each with its own flags."""
    commands = parser.add_subparsers(required=True)
    for module in MODULES:
        name = module.__name__.rpartition(".")[2]
        command = commands.add_parser(name, help=module.run.__doc__)
        command.set_defaults(run=module.run, command=name)
        module.arguments(command)


def run(args: argparse.Namespace) -> dict | None:
    """Run the command on this process; its figures on the first one."""
    distributed.start()
    if jax.process_count() > 1 and args.command not in SHARED:
        shared = ", ".join(SHARED)
        raise UserError(f"{args.command} runs in one process; shared are: {shared}")
    result = args.run(args)
    return result if distributed.is_first() else None


main = make_main("evaluate", __doc__, arguments, run)

if __name__ == "__main__":
    sys.exit(main())
