"""evaluate regions: does each half of a picture show what its region was told?

Two prompts, each for one half of a picture that is drawn in two windows of the model's
own extent, which overlap by a quarter. A half is recognised by the same half of the
nearest training picture, as in `evaluate prompts`.
"""

import argparse
from pathlib import Path

import numpy as np

from lDM_jax import image
from lDM_jax.arrays import UserError
from lDM_jax.data import sources
from lDM_jax.evaluation.prompts import training_pictures
from lDM_jax.metrics.recognition import nearest
from lDM_jax.pipeline import Pipeline


def arguments(parser: argparse.ArgumentParser) -> None:
    """The flags."""
    parser.add_argument("--model", required=True, help="shipped name or directory")
    parser.add_argument("--left", default="pizza", help="a training caption")
    parser.add_argument("--right", default="teddy bear", help="a training caption")
    parser.add_argument("--regional", default="latent", help="attention or latent")
    parser.add_argument("--seeds", type=int, default=32)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--guidance", type=float)
    parser.add_argument("--sampler")
    parser.add_argument("--out", help="directory for a picture sheet")


def run(args: argparse.Namespace) -> dict:
    """Share of seeds that put each of two things on its side."""
    pipe = Pipeline.load(args.model)
    side = pipe.config.data.size_px
    source = sources.EmojiSource(split="train", size_px=side)
    for prompt in (args.left, args.right):
        if prompt not in source.captions:
            raise UserError(f"{prompt!r} is no caption of the training emoji")
    options = {"steps": args.steps, "guidance": args.guidance, "sampler": args.sampler}
    cell = pipe.model.codec.factor
    width = 2 * side - cell * (side // cell // 4)
    pictures = pipe.sample(
        prompt=args.left,
        regions=[(args.left, (0, 0, 0.5, 1)), (args.right, (0.5, 0, 0.5, 1))],
        regional=args.regional,
        size_px=(side, width),
        window_px=side,
        seeds=range(args.seeds),
        **options,
    )
    half = width // 2
    references = training_pictures(source)
    left = shows(pictures[:, :, :half], references[:, :, :half], source, args.left)
    right = shows(pictures[:, :, -half:], references[:, :, -half:], source, args.right)
    if args.out:
        out = Path(args.out)
        out.mkdir(parents=True, exist_ok=True)
        image.write_png(out / "regions.png", image.grid(pictures, columns=4))
    return {
        "metric": "regions",
        "model": args.model,
        "left": args.left,
        "right": args.right,
        "regional": args.regional,
        "seeds": args.seeds,
        "accuracy_left": round(float(left.mean()), 4),
        "accuracy_right": round(float(right.mean()), 4),
        "accuracy_both": round(float((left & right).mean()), 4),
        **pipe.resolved_defaults(**options),
    }


def shows(halves, references, source, prompt: str) -> np.ndarray:
    """bool "n": is the nearest reference of the prompt's subgroup?"""
    index = nearest(np.ascontiguousarray(halves), np.ascontiguousarray(references))
    return source.labels[index] == source.labels[source.captions.index(prompt)]
