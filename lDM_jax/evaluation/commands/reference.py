"""evaluate reference: statistics of a data set through a config's own transform."""

import argparse
from pathlib import Path

from lDM_jax.core.distributed import is_first, together
from lDM_jax.core.errors import UserError
from lDM_jax.data import sources
from lDM_jax.evaluation import options
from lDM_jax.evaluation.image_sets import Data, Folder, ImageSet
from lDM_jax.evaluation.sides import save
from lDM_jax.from_config import networks
from lDM_jax.from_config.config_file import read_config


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    origin = parser.add_mutually_exclusive_group(required=True)
    origin.add_argument("--config", help="a file of configs/, as train.py takes it")
    origin.add_argument("--model", help="the config of a trained model")
    origin.add_argument("--folder", help="images that are prepared already")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="of --config"
    )
    parser.add_argument("--split", choices=sources.SPLITS, default="train")
    parser.add_argument("--out", required=True, help="the npz file, a new one")
    options.add_extractors(parser, default=options.INCEPTION)


def run(args: argparse.Namespace) -> dict:
    """Write the reference of a data set: statistics, 10,000 images, a record."""
    out = Path(args.out).expanduser()
    if out.exists() or out.suffix != ".npz":
        raise UserError(f"--out={out}: give a new file that ends in .npz")
    images = open_images(args)
    extractors = options.extractors(args)
    if len(extractors) != 1:
        raise UserError("a reference is of one --extractor")
    (extractor,) = extractors
    with options.work_folder(args) as work:
        side = options.side(images, extractor, work, "reference", title=images.name)
        with together("writing the reference"):
            if is_first():
                save(out, side, images)
    return {"metric": "reference", "out": str(out), "record": side.record}


def open_images(args: argparse.Namespace) -> ImageSet:
    """The image set that the flags name."""
    if args.folder:
        return Folder(args.folder)
    if args.config:
        return Data(read_config(args.config, args.set), args.split)
    return Data(networks.load_trained(args.model)[0], args.split)
