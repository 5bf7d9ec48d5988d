"""evaluate prompts: the share of samples that show their caption.

Needs a model of captioned emoji; `metrics.recognition` decides what an image shows.
"""

import argparse

import numpy as np

from lDM_jax.core import image
from lDM_jax.core.errors import UserError
from lDM_jax.data import sources
from lDM_jax.data.transforms import Composite
from lDM_jax.evaluation import options
from lDM_jax.evaluation.metrics.recognition import recognize
from lDM_jax.sampling.pipeline import Pipeline

DRAWS = ("captions", "subgroups")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    options.add_model(parser)
    parser.add_argument("--captions", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=8, help="samples a caption")
    parser.add_argument("--draw", choices=DRAWS, default="captions")
    parser.add_argument("--draw_seed", type=int, default=0)
    options.add_sampling(parser)


def run(args: argparse.Namespace) -> dict:
    """Share of samples whose nearest training image has the prompt's subgroup."""
    pipe = Pipeline.load(args.model)
    source = sources.EmojiSource(split="train", size_px=pipe.config.data.size_px)
    indices = draw_captions(source, args.captions, draw=args.draw, seed=args.draw_seed)
    captions = [source.captions[i] for i in indices]
    drawing, labels = options.sampling(args), source.labels
    images = pipe.sample(prompt=captions, seeds=range(args.seeds), **drawing)
    references = training_images(source)
    expected = np.repeat(labels[indices], args.seeds)
    result = recognize(images, expected, references=references, labels=labels)
    rows = images.reshape(len(indices), args.seeds, *images.shape[1:])
    rows = np.concatenate([references[indices][:, None], rows], axis=1)
    rows = rows.reshape(-1, *rows.shape[2:])
    options.write_sheet(args, "prompts", rows, args.seeds + 1)
    return {
        "metric": "prompt_accuracy",
        "model": args.model,
        "accuracy": round(result.accuracy, 4),
        "chance": round(result.chance, 4),
        **{k: getattr(args, k) for k in ("captions", "seeds", "draw", "draw_seed")},
        **pipe.resolved_defaults(**drawing),
    }


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
    labels, present = source.labels, np.unique(source.labels)
    if count > len(present):
        raise UserError(
            f"{count} captions of different subgroups: there are {len(present)} "
            "subgroups"
        )
    subgroups = rng.choice(present, count, replace=False)
    return np.array([rng.choice(np.flatnonzero(labels == one)) for one in subgroups])


def training_images(source: sources.EmojiSource) -> np.ndarray:
    """All images of a source on white, uint8 "m S S 3"."""
    composite, rng = Composite(), np.random.default_rng(0)
    rows = [composite(source[i], rng)["image"] for i in range(len(source))]
    return image.to_uint8(np.stack(rows))
