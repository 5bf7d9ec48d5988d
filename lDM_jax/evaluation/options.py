"""Flags that several evaluate commands share, and what follows from them."""

import argparse
import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm

from lDM_jax.core import image
from lDM_jax.core.errors import UserError
from lDM_jax.evaluation.extractors import EXTRACTORS, Extractor, load_extractor
from lDM_jax.evaluation.figures import METRICS
from lDM_jax.evaluation.image_sets import ImageSet
from lDM_jax.evaluation.sides import Side, open_side, side_of_images

INCEPTION = "inception"


def add_model(parser: argparse.ArgumentParser) -> None:
    """--model, required, and --out, a directory for images to look at."""
    parser.add_argument("--model", required=True, help="shipped name or directory")
    parser.add_argument("--out", help="directory for a sheet of images")


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """--steps, --guidance, --sampler, --eta: how images are drawn."""
    parser.add_argument("--steps", type=int, help="default: the model's")
    parser.add_argument("--guidance", type=float, help="default: the model's")
    parser.add_argument("--sampler", help="default: the model's")
    parser.add_argument("--eta", type=float, default=0.0, help="DDIM's noise, 0 to 1")


def sampling(args: argparse.Namespace) -> dict:
    """The flags of `add_sampling` as fields of a request; None: the model's own."""
    names = ("steps", "guidance", "sampler", "eta")
    return {name: getattr(args, name) for name in names}


def write_sheet(
    args: argparse.Namespace, name: str, images: np.ndarray, columns: int
) -> None:
    """name.png in --out, uint8 "n H W 3" in rows; nothing without --out."""
    if args.out:
        out = Path(args.out).expanduser()
        out.mkdir(parents=True, exist_ok=True)
        image.write_png(out / f"{name}.png", image.grid(images, columns=columns))


def add_extractors(parser: argparse.ArgumentParser, *, default: str) -> None:
    """--extractor, --weights, --work."""
    parser.add_argument(
        "--extractor",
        action="append",
        choices=tuple(EXTRACTORS),
        help=f"feature network, may be repeated (default: {default or 'none'})",
    )
    parser.add_argument(
        "--weights",
        action="append",
        default=[],
        metavar="NAME=FILE",
        help="an extractor's weights; else the cache or a download",
    )
    parser.add_argument(
        "--work",
        help="folder that keeps features: a stopped run continues from it, and hosts "
        "share it (default: a temporary one)",
    )
    parser.set_defaults(default_extractor=default)


def add_measuring(parser: argparse.ArgumentParser) -> None:
    """--figures, --bootstrap."""
    parser.add_argument(
        "--figures", nargs="+", choices=tuple(METRICS), help="default: all"
    )
    parser.add_argument(
        "--bootstrap", type=int, default=20, help="replicates of the intervals"
    )


def extractors(args: argparse.Namespace) -> list[Extractor]:
    """The extractors asked for, each once. UserError for malformed --weights."""
    paths = {}
    for text in args.weights:
        name, equals, path = text.partition("=")
        if not equals or name not in EXTRACTORS:
            raise UserError(
                f"--weights={text}: give NAME=FILE, NAME one of {', '.join(EXTRACTORS)}"
            )
        paths[name] = path
    default = [args.default_extractor] if args.default_extractor else []
    names = dict.fromkeys(args.extractor or default)
    return [load_extractor(name, paths.get(name, "")) for name in names]


@contextlib.contextmanager
def work_folder(args: argparse.Namespace) -> Iterator[Path]:
    """--work, or a temporary folder that is removed."""
    if args.work:
        yield Path(args.work).expanduser()
        return
    if jax.process_count() > 1:
        raise UserError("several hosts need --work, a folder that all of them see")
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


@contextlib.contextmanager
def progress(title: str) -> Iterator[Callable[[int], None]]:
    """A bar on stderr that counts images."""
    with tqdm(desc=title, unit="img", disable=None) as bar:
        yield lambda count: bar.update(count) and None


def side(
    images: ImageSet | str, extractor: Extractor, work: Path, key: str, title: str = ""
) -> Side:
    """A side, a set or a path, with its features in WORK/KEY-... and a bar meanwhile.

    title: of the bar, else the key.
    """
    folder = work / f"{key}-{extractor.name}-{extractor.resize}"
    make = open_side if isinstance(images, str) else side_of_images
    with progress(f"{extractor.name} {title or key}") as report:
        return make(images, extractor, folder, report=report)
