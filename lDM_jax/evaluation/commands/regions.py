"""evaluate regions: the share of images whose halves show their regions' prompts.

Two prompts, each for one half of an image that is drawn in two windows of the model's
own extent, which overlap by a quarter. A half is recognized by the same half of the
nearest training image, as in `evaluate prompts`. The pairs are drawn: captions of
different subgroups, every subgroup at most once in all; or one pair is given. The
interval is over pairs, which differ far more than seeds do. alone: the same of images
of one prompt each, of which the judge sees the same half: what the model knows.
"""

import argparse

import numpy as np

from lDM_jax.core.errors import UserError
from lDM_jax.data import sources
from lDM_jax.evaluation import options
from lDM_jax.evaluation.commands.prompts import draw_captions, training_images
from lDM_jax.evaluation.figures import Report
from lDM_jax.evaluation.metrics import bootstrap
from lDM_jax.evaluation.metrics.recognition import nearest
from lDM_jax.sampling.pipeline import Pipeline


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    options.add_model(parser)
    parser.add_argument("--pairs", type=int, default=20, help="pairs to draw")
    parser.add_argument("--draw_seed", type=int, default=0)
    parser.add_argument("--left", help="a training caption, with --right: one pair")
    parser.add_argument("--right", help="a training caption")
    parser.add_argument("--regional", default="latent", help="attention or latent")
    parser.add_argument("--seeds", type=int, default=8, help="images a pair")
    parser.add_argument("--bootstrap", type=int, default=1000, help="replicates")
    options.add_sampling(parser)


def run(args: argparse.Namespace) -> dict:
    """Share of images that show each of two prompts on its side."""
    pipe = Pipeline.load(args.model)
    source = sources.EmojiSource(split="train", size_px=pipe.config.data.size_px)
    pairs, references = choose_pairs(args, source), training_images(source)
    sheets, hits, hits_alone = [], [], []
    for pair in pairs:
        prompts = [source.captions[i] for i in pair]
        images = draw(pipe, args, *prompts)
        half = images.shape[2] // 2
        sides = (slice(half), slice(-half, None))
        single = [draw_alone(pipe, args, prompt) for prompt in prompts]
        for outcomes, both in ((hits, [images] * 2), (hits_alone, single)):
            outcomes.append(
                [
                    shows(one[:, :, part], references[:, :, part], source.labels, i)
                    for one, part, i in zip(both, sides, pair, strict=True)
                ]
            )
        sheets.append(images)
    options.write_sheet(args, "regions", np.concatenate(sheets), args.seeds)
    left, right = np.moveaxis(np.array(hits), 1, 0)
    alone = shares(*np.moveaxis(np.array(hits_alone), 1, 0), args.bootstrap)
    return {
        "metric": "regions",
        "model": args.model,
        "regional": args.regional,
        "pairs": len(pairs),
        "seeds": args.seeds,
        "draw_seed": None if args.left else args.draw_seed,
        **shares(left, right, args.bootstrap),
        **{k.replace("accuracy", "alone"): value for k, value in alone.items()},
        "both_of_pairs": [
            [source.captions[i], source.captions[j], float(share)]
            for (i, j), share in zip(pairs, (left & right).mean(axis=1), strict=True)
        ],
        **pipe.resolved_defaults(**options.sampling(args)),
    }


def choose_pairs(args: argparse.Namespace, source: sources.EmojiSource) -> np.ndarray:
    """Indices i64 "n 2" of captions: the pair of the flags, or random ones.

    UserError for an unknown caption, and for more pairs than there are subgroups.
    """
    if not args.left and not args.right:
        if args.pairs < 1:
            raise UserError(f"--pairs={args.pairs}: give at least 1")
        count, seed = 2 * args.pairs, args.draw_seed
        return draw_captions(source, count, draw="subgroups", seed=seed).reshape(-1, 2)
    for prompt in (args.left, args.right):
        if prompt not in source.captions:
            raise UserError(
                f"{prompt!r} is not a caption of the training emoji: give --left and "
                "--right, or neither"
            )
    return np.array([[source.captions.index(p) for p in (args.left, args.right)]])


def draw(pipe: Pipeline, args: argparse.Namespace, left: str, right: str) -> np.ndarray:
    """Images uint8 "n H W 3" of two prompts, one for each half."""
    side, cell = pipe.config.data.size_px, pipe.model.codec.factor
    return pipe.sample(
        prompt=left,
        regions=[(left, (0, 0, 0.5, 1)), (right, (0.5, 0, 0.5, 1))],
        regional=args.regional,
        size_px=(side, 2 * side - cell * (side // cell // 4)),
        window_px=side,
        seeds=range(args.seeds),
        **options.sampling(args),
    )


def draw_alone(pipe: Pipeline, args: argparse.Namespace, prompt: str) -> np.ndarray:
    """Images uint8 "n H H 3" of one prompt, of the same seeds."""
    seeds = range(args.seeds)
    return pipe.sample(prompt=prompt, seeds=seeds, **options.sampling(args))


def shows(
    halves: np.ndarray, references: np.ndarray, labels: np.ndarray, target: int
) -> np.ndarray:
    """bool "n": whether the nearest reference has the label of reference `target`."""
    index = nearest(np.ascontiguousarray(halves), np.ascontiguousarray(references))
    return labels[index] == labels[target]


def shares(left: np.ndarray, right: np.ndarray, replicates: int) -> dict:
    """Means of hits bool "pairs seeds", with intervals over pairs where several are."""
    counts = bootstrap.counts(len(left), replicates if len(left) > 1 else 0)
    figures = {}
    for name, hit in (("left", left), ("right", right), ("both", left & right)):
        figure = bootstrap.mean_figure(hit.mean(axis=1), counts)
        figures[f"accuracy_{name}"] = bootstrap.Figure(*np.clip(figure, 0, 1).tolist())
    return Report(figures).as_json()
