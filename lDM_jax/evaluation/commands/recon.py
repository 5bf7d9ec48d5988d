"""evaluate recon: reconstruction quality of a first stage.

PSNR, SSIM and LPIPS of each image; with --extractor also R-FID and similar figures,
between the reconstructions and their originals.
"""

import argparse
import hashlib
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from lDM_jax.core import image
from lDM_jax.core.errors import UserError
from lDM_jax.data import pipeline as data_pipeline
from lDM_jax.data import sources
from lDM_jax.evaluation import options
from lDM_jax.evaluation.commands.compare import compare_sides
from lDM_jax.evaluation.commands.generate import tree_digest
from lDM_jax.evaluation.image_sets import Data
from lDM_jax.evaluation.metrics.reconstruction import reconstruction_metrics, summarize
from lDM_jax.from_config import datasets, networks
from lDM_jax.from_config.config_file import change
from lDM_jax.weights.lpips import make_distance

BATCH = 16


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    options.add_model(parser)
    parser.add_argument("--split", choices=sources.SPLITS, default="validation")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="of its config: data.path=DIR measures it on your own images",
    )
    parser.add_argument(
        "--lpips",
        nargs="?",
        const="",
        metavar="VGG16",
        help="also LPIPS; weights from this file, else the cache or a download",
    )
    options.add_extractors(parser, default="")
    options.add_measuring(parser)


def run(args: argparse.Namespace) -> dict:
    """PSNR, SSIM and LPIPS of posterior-mean reconstructions over one split."""
    config, params = networks.load_trained(args.model)
    if config.stage != "autoencoder":
        raise UserError(f"{args.model} is not a first stage (stage: {config.stage})")
    config = change(config, args.set)
    network = networks.autoencoder(config.autoencoder)
    source = datasets.source(config, args.split)
    row = datasets.transform(config, args.split, flip=0.0)
    infer, rows, sheet = jax.jit(network.apply), [], []
    lpips = None if args.lpips is None else make_distance(args.lpips)
    for batch in data_pipeline.batches_once(source, row, batch_size=BATCH):
        real = batch["weight"] > 0
        x_hat = image.to_uint8(infer(params, batch["image"])[real])
        x = image.to_uint8(batch["image"][real])
        rows.append(reconstruction_metrics(x_hat, x, lpips=lpips))
        sheet = sheet or [x, x_hat]
    options.write_sheet(args, "reconstruction", np.concatenate(sheet), len(sheet[0]))
    figures = {}
    for name, summary in summarize(rows).items():
        figures |= {name: round(summary.mean, 4), f"{name}_std": round(summary.std, 4)}
    with options.work_folder(args) as work:
        figures |= reconstruction_figures(args, config, network, params, work)
    return {
        "metric": "reconstruction",
        "model": args.model,
        "split": args.split,
        "images": len(source),
        "size_px": config.data.size_px,
        "factor": network.factor,
        **figures,
    }


class Reconstructions:
    """A set of images after a first stage's posterior mean, as uint8."""

    def __init__(self, images: Data, network, params: dict):
        self._images, self._network, self._params = images, network, params
        self._infer = jax.jit(network.apply)
        self.name = f"{images.name}, rebuilt"
        text = f"{images.identity} {tree_digest(params)}"
        self.identity = hashlib.sha256(text.encode()).hexdigest()
        self.record = {"pictures": "rebuilt"}

    def __len__(self) -> int:
        return len(self._images)

    def read(self, indices: Sequence[int]) -> list[np.ndarray]:
        """The reconstructions, computed in padded batches of one size."""
        images: list[np.ndarray] = []
        for start in range(0, len(indices), BATCH):
            x = self._images.read(indices[start : start + BATCH])
            padded = np.stack([*x, *[x[-1]] * (BATCH - len(x))])
            x_hat = self._infer(self._params, image.to_float(padded))
            images += list(image.to_uint8(x_hat[: len(x)]))
        return images


def reconstruction_figures(
    args: argparse.Namespace, config: ConfigDict, network, params: dict, work: Path
) -> dict:
    """R-FID and similar figures of every extractor, named rfid, rfd_emoji, .."""
    figures: dict = {}
    for extractor in options.extractors(args):
        data = Data(config, args.split)
        rebuilt = Reconstructions(data, network, params)
        sides = [
            options.side(rebuilt, extractor, work, "rebuilt"),
            options.side(data, extractor, work, "originals"),
        ]
        values = compare_sides(args, *sides, extractor, paired=True)
        figures |= {
            f"r{key}": value
            for key, value in values.items()
            if not key.startswith(("prepared", "count", "reference"))
        }
    return figures
