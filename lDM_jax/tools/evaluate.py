"""Measure a trained model: python -m lDM_jax.tools.evaluate prompts | recon.

    prompts --model emoji     do samples show what their captions say? (recognition)
    recon --model emoji_kl_f8 PSNR, SSIM, LPIPS of a first stage on held-out pictures

Each prints one JSON line; pictures go to --out where given.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from lDM_jax import build, experiment, image
from lDM_jax.arrays import UserError
from lDM_jax.data import pipeline as data_pipeline
from lDM_jax.data import sources
from lDM_jax.data.transforms import Composite
from lDM_jax.metrics.recognition import recognise
from lDM_jax.metrics.reconstruction import reconstruction_metrics, summarise
from lDM_jax.perceptual import make_distance
from lDM_jax.pipeline import Pipeline
from lDM_jax.training.checkpoint import quiet_orbax

DRAWS = ("captions", "subgroups")


def training_pictures(source: sources.EmojiSource) -> np.ndarray:
    """All pictures of a source on white, uint8 "m S S 3"."""
    lay, rng = Composite(), np.random.default_rng(0)
    rows = [lay(source[i], rng)["image"] for i in range(len(source))]
    return image.to_uint8(np.stack(rows))


def draw_captions(
    source: sources.EmojiSource, count: int, *, draw: str, seed: int
) -> np.ndarray:
    """Indices of `count` training captions.

    "captions": uniformly among all captions, without replacement. "subgroups": first
    `count` distinct subgroups, then one caption of each.
    """
    rng = np.random.default_rng(seed)
    if draw == "captions":
        return rng.choice(len(source), count, replace=False)
    labels = source.labels
    present = np.unique(labels)
    if count > len(present):
        raise UserError(f"--captions={count}: there are {len(present)} subgroups")
    chosen = rng.choice(present, count, replace=False)
    return np.array([rng.choice(np.flatnonzero(labels == label)) for label in chosen])


def prompts(args: argparse.Namespace) -> dict:
    """Share of samples whose nearest training picture has the prompt's subgroup."""
    pipe = Pipeline.load(args.model)
    source = sources.EmojiSource(split="train", size_px=pipe.config.data.size_px)
    chosen = draw_captions(source, args.captions, draw=args.draw, seed=args.draw_seed)
    captions = [source.captions[i] for i in chosen]
    options = {"steps": args.steps, "guidance": args.guidance, "sampler": args.sampler}
    pictures = pipe.sample(prompt=captions, seeds=range(args.seeds), **options)
    references = training_pictures(source)
    result = recognise(
        pictures,
        np.repeat(source.labels[chosen], args.seeds),
        references=references,
        labels=source.labels,
    )
    if args.out:
        out = Path(args.out)
        out.mkdir(parents=True, exist_ok=True)
        rows = pictures.reshape(len(chosen), args.seeds, *pictures.shape[1:])
        rows = np.concatenate([references[chosen][:, None], rows], axis=1)
        sheet = image.grid(rows.reshape(-1, *rows.shape[2:]), columns=args.seeds + 1)
        image.write_png(out / "prompts.png", sheet)
    request = pipe.resolved_defaults(**options)
    return {
        "metric": "prompt_accuracy",
        "model": args.model,
        "accuracy": round(result.accuracy, 4),
        "chance": round(result.chance, 4),
        "captions": args.captions,
        "seeds": args.seeds,
        "draw": args.draw,
        "draw_seed": args.draw_seed,
        **request,
    }


def recon(args: argparse.Namespace) -> dict:
    """PSNR, SSIM and LPIPS of posterior-mean reconstructions over one split."""
    config, params = build.load_trained(args.model)
    if config.stage != "autoencoder":
        raise UserError(f"{args.model} is no first stage (stage: {config.stage})")
    network = build.autoencoder(config.autoencoder)
    source = experiment.source(config, args.split)
    infer, rows, sheet = jax.jit(network.apply), [], None
    lpips = None if args.lpips is None else make_distance(args.lpips)
    for batch in data_pipeline.batches_once(
        source, experiment.transform(config), batch_size=16
    ):
        real = batch["weight"] > 0
        x_hat = image.to_uint8(infer(params, batch["image"])[real])
        x = image.to_uint8(batch["image"][real])
        rows.append(reconstruction_metrics(x_hat, x, lpips=lpips))
        if sheet is None:
            sheet = image.grid(np.concatenate([x, x_hat]), columns=len(x))
    if args.out:
        out = Path(args.out)
        out.mkdir(parents=True, exist_ok=True)
        image.write_png(out / "reconstruction.png", sheet)
    figures = {}
    for name, summary in summarise(rows).items():
        figures |= {name: round(summary.mean, 4), f"{name}_std": round(summary.std, 4)}
    return {
        "metric": "reconstruction",
        "model": args.model,
        "split": args.split,
        "images": len(source),
        "size_px": config.data.size_px,
        "factor": network.factor,
        **figures,
    }


def parser() -> argparse.ArgumentParser:
    """The command line."""
    main = argparse.ArgumentParser(
        prog="python -m lDM_jax.tools.evaluate", description=__doc__.splitlines()[0]
    )
    commands = main.add_subparsers(required=True)
    one = commands.add_parser("prompts", help=prompts.__doc__)
    one.set_defaults(run=prompts)
    one.add_argument("--model", required=True, help="shipped name or directory")
    one.add_argument("--captions", type=int, default=20)
    one.add_argument("--seeds", type=int, default=8, help="samples a caption")
    one.add_argument("--draw", choices=DRAWS, default="captions")
    one.add_argument("--draw_seed", type=int, default=0)
    one.add_argument("--steps", type=int)
    one.add_argument("--guidance", type=float)
    one.add_argument("--sampler")
    one.add_argument("--out", help="directory for a picture sheet")
    two = commands.add_parser("recon", help=recon.__doc__)
    two.set_defaults(run=recon)
    two.add_argument("--model", required=True, help="shipped name or directory")
    two.add_argument("--split", choices=sources.SPLITS, default="validation")
    two.add_argument(
        "--lpips",
        nargs="?",
        const="",
        metavar="VGG16",
        help="also LPIPS; weights from this file, else the cache or a download",
    )
    two.add_argument("--out", help="directory for a picture sheet")
    return main


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    quiet_orbax()
    try:
        result = args.run(args)
    except (UserError, OSError) as error:
        sys.stderr.write(f"evaluate: error: {' '.join(str(error).split())}\n")
        return 2
    sys.stdout.write(json.dumps(result) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
