"""What training will see: python -m lDM_jax.tools.inspect_data --config CONFIG.

    python -m lDM_jax.tools.inspect_data --config configs/emoji_layout.py --out look.png
    python -m lDM_jax.tools.inspect_data --config configs/ffhq_ldm4.py \\
        --set data.path=DIR --check

Writes a grid of examples after the transform, with their conditions: captions and
labels below, boxes and masks over the image, label maps and small images beside it.
Prints JSON: how many examples each split has, the images' sizes, lengths of captions,
a histogram of labels, files that are not used, examples that cannot be read (of
--examine examples in random order; of all with --check).
"""

import argparse
import contextlib
import json
import sys
from pathlib import Path

import numpy as np

from lDM_jax.core import image
from lDM_jax.core.errors import BadExample, UserError
from lDM_jax.data.sources import SPLITS
from lDM_jax.evaluation import data_report
from lDM_jax.from_config import datasets, networks
from lDM_jax.from_config.config_file import read_config
from lDM_jax.tools import make_main


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("--config", required=True, help="file, also with :argument")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="changes"
    )
    parser.add_argument("--split", choices=SPLITS, default="train")
    parser.add_argument("--out", type=Path, help="PNG to write")
    parser.add_argument("--count", type=int, default=24, help="examples in the image")
    parser.add_argument("--columns", type=int, default=6)
    parser.add_argument("--epoch", type=int, default=0, help="whose random choices")
    parser.add_argument("--examine", type=int, default=500, help="examples for figures")
    parser.add_argument("--check", action="store_true", help="read every example")


def run(args: argparse.Namespace) -> str:
    """Write the grid; returns the report as JSON."""
    config = read_config(args.config, args.changes)
    if config.data.source == "latents":
        raise UserError("latents are not images: give a source of images")
    networks.check_pixels(config, 1)
    source = datasets.source(config, args.split)
    result = {"source": config.data.source, "split": args.split}
    result["examples"] = {name: _length(config, name) for name in SPLITS}
    examine = len(source) if args.check else args.examine
    result |= data_report.summarize(config, source, examine=examine)
    panels = []
    for index in data_report.shuffle_indices(source):
        if len(panels) == args.count:
            break
        with contextlib.suppress(BadExample):
            example = data_report.transform_example(config, source, index, args.epoch)
            panels.append(data_report.draw_panel(example, source))
    if panels and args.out:
        image.write_png(args.out, image.grid(np.stack(panels), columns=args.columns))
        result["picture"] = str(args.out)
    return json.dumps(result, indent=1, ensure_ascii=False)


def _length(config, split: str) -> int | None:
    try:
        return len(datasets.source(config, split))
    except UserError:
        return None


main = make_main("inspect_data", __doc__, arguments, run)

if __name__ == "__main__":
    sys.exit(main())
