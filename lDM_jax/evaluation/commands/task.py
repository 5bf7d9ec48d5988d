"""evaluate task: does a model do what its task asks? On held-out pictures.

super_resolution, inpaint   PSNR and SSIM beside simple methods: bicubic, and the mean
                            of what is known (of the hole alone: psnr_hole, and of the
                            mean of a few samples)
layout, semantic            the share of objects that are recognized where they were
                            asked for (`metrics.objects`); as the judge's bound, of
                            training scenes, whose objects it knows; as what a model
                            gets that does not read its condition, of real scenes of
                            other layouts, and of the mean training picture
class                       the share of samples recognized as of their class
unconditional               how far samples are from the nearest training picture (0:
                            copies), beside what held-out pictures are

The first two kinds work with any data; the others are judged among the emoji.
"""

import argparse

import numpy as np

from lDM_jax.core import image
from lDM_jax.core.errors import UserError
from lDM_jax.data import pipeline as data_pipeline
from lDM_jax.data import sources
from lDM_jax.data.scenes import trim
from lDM_jax.data.sources import EmojiSource
from lDM_jax.evaluation import options
from lDM_jax.evaluation.commands.prompts import training_images
from lDM_jax.evaluation.metrics import objects
from lDM_jax.evaluation.metrics.recognition import nearest, recognize
from lDM_jax.evaluation.metrics.reconstruction import PEAK, psnr, ssim
from lDM_jax.from_config import datasets
from lDM_jax.sampling.pipeline import BATCH, Pipeline
from lDM_jax.sampling.request import Request
from lDM_jax.tasks.registry import TASKS

AVERAGED = 4  # samples of a hole


def arguments(parser: argparse.ArgumentParser) -> None:
    """The flags."""
    options.add_model(parser)
    parser.add_argument("--num", type=int, default=64, help="pictures to draw")
    parser.add_argument("--split", choices=sources.SPLITS, default="validation")
    options.add_sampling(parser)


def run(args: argparse.Namespace) -> dict:
    """Figures of a model's task on held-out pictures, beside simple baselines."""
    pipe = Pipeline.load(args.model)
    if not pipe.task.figures:
        valid = ", ".join(task.name for task in TASKS.values() if task.figures)
        raise UserError(
            f"task {pipe.task.name!r} has no figure of its own; valid: {valid}; "
            "others: evaluate prompts, evaluate generate"
        )
    figures, pictures = FIGURES[pipe.task.figures](pipe, args)
    rows = [column[:BATCH] for column in pictures]
    options.write_sheet(args, pipe.task.name, np.concatenate(rows), len(rows[0]))
    return {
        "metric": "task",
        "task": pipe.task.name,
        "model": args.model,
        "pictures": args.num,
        **{name: round(float(value), 4) for name, value in figures.items()},
        **pipe.resolved_defaults(**options.sampling(args)),
    }


def draw(
    pipe: Pipeline, fields: list[dict], args: argparse.Namespace, first_seed: int = 0
) -> np.ndarray:
    """One picture a dict of request fields, with the seeds from the first on: uint8."""
    drawing, parts = options.sampling(args), []
    requests = [
        pipe.resolve(Request(seeds=(seed,), **one, **drawing))
        for seed, one in enumerate(fields, first_seed)
    ]
    for start in range(0, len(requests), BATCH):
        batch = requests[start : start + BATCH]
        padded = batch + [batch[-1]] * (BATCH - len(batch))
        parts.append(pipe.each(padded)[: len(batch)])
    return np.concatenate(parts)


def held_out(pipe: Pipeline, args: argparse.Namespace) -> dict:
    """The first pictures of a split, through the config's own transform."""
    source = datasets.source(pipe.config, args.split)
    if len(source) < args.num:
        raise UserError(f"--num={args.num}: {args.split} has {len(source)} pictures")
    row, parts, count = datasets.transform(pipe.config, args.split), [], 0
    for batch in data_pipeline.batches_once(source, row, batch_size=BATCH):
        real = batch.pop("weight") > 0
        parts.append({name: value[real] for name, value in batch.items()})
        count += len(parts[-1]["image"])
        if count >= args.num:
            break
    return {
        name: np.concatenate([part[name] for part in parts])[: args.num]
        for name in parts[0]
    }


def enlargement(pipe: Pipeline, args) -> tuple[dict, list]:
    """PSNR and SSIM of enlarged pictures, and of PIL's bicubic enlargement."""
    rows = held_out(pipe, args)
    x, small = image.to_uint8(rows["image"]), image.to_uint8(rows["low_res"])
    x_hat = draw(pipe, [{"image": one} for one in small], args)
    height, width = x.shape[1:3]
    plain = np.stack([image.resample(one, height, width) for one in small])
    return compare(x_hat, x) | compare(plain, x, "_bicubic"), [plain, x_hat, x]


def completion(pipe: Pipeline, args) -> tuple[dict, list]:
    """PSNR and SSIM of completed pictures, and with the mean color in the holes.

    psnr_hole_average is that of the mean of AVERAGED samples a hole. A sample of the
    true posterior has twice the least squared error, a mean of k only (1 + 1/k) of it:
    what is guessed anew in every sample costs less there, what is known does not.
    """
    rows = held_out(pipe, args)
    x, mask = image.to_uint8(rows["image"]), rows["mask"][..., 0] > 0
    fields = [
        {"image": picture, "mask": hole.astype(np.uint8)}
        for picture, hole in zip(x, mask, strict=True)
    ]
    samples = [draw(pipe, fields, args, k * len(x)) for k in range(AVERAGED)]
    x_hat, plain = samples[0], x.copy()
    for picture, hole in zip(plain, mask, strict=True):
        picture[hole] = picture[~hole].mean(axis=0).round() if (~hole).any() else 128
    holes = np.where(mask[..., None], np.uint8(128), x)
    figures = {
        "psnr_hole": psnr_inside(x_hat, x, mask),
        "psnr_hole_average": psnr_inside(np.mean(samples, axis=0), x, mask),
        "psnr_hole_mean_fill": psnr_inside(plain, x, mask),
        "hole": mask.mean(),
    }
    figures |= compare(x_hat, x) | compare(plain, x, "_mean_fill")
    return figures, [holes, plain, x_hat, x]


def compare(x_hat: np.ndarray, x: np.ndarray, suffix: str = "") -> dict:
    """Means of PSNR (dB) and SSIM."""
    return {
        f"psnr{suffix}": psnr(x_hat, x).mean(),
        f"ssim{suffix}": ssim(x_hat, x).mean(),
    }


def psnr_inside(x_hat: np.ndarray, x: np.ndarray, mask: np.ndarray) -> float:
    """PSNR of all masked pixels of all pictures together."""
    difference = x_hat[mask].astype(np.float64) - x[mask]
    with np.errstate(divide="ignore"):
        return float(10 * np.log10(255**2 / np.mean(difference**2)))


def object_figures(pipe: Pipeline, args) -> tuple[dict, list]:
    """The share of objects that are recognized where held-out scenes have them.

    The pictures are drawn from the scenes' layouts, or from their label maps.
    """
    key = pipe.task.field
    known = datasets.source(pipe.config, "train")
    source = datasets.source(pipe.config, args.split)
    if pipe.config.data.source != "scenes":
        raise UserError("objects are recognized in scenes of emoji only")
    examples = [source[i] for i in range(args.num)]
    x_hat = draw(pipe, [{key: one[key]} for one in examples], args)
    emoji = EmojiSource(split="train", size_px=136)
    pictures = [trim(emoji[i]["image"]) for i in range(len(emoji))]
    references = objects.make_references(pictures)
    judge = dict(references=references, labels=emoji.group_labels)
    layouts, real = scenes(examples)
    known_layouts, known_pictures = scenes([known[i] for i in range(args.num)])
    mean = np.rint(known_pictures.mean(axis=0)).astype(np.uint8)
    blank = np.stack([mean] * len(real))
    figures = {
        "accuracy": objects.accuracy(x_hat, layouts, **judge),
        "accuracy_known": objects.accuracy(known_pictures, known_layouts, **judge),
        "accuracy_unrelated": objects.accuracy(np.roll(real, 1, 0), layouts, **judge),
        "accuracy_blank": objects.accuracy(blank, layouts, **judge),
        "chance": 1 / len(emoji.groups),
        "objects": sum(map(len, layouts)),
    }
    maps = np.stack([condition_map(one, key) for one in examples])
    return figures, [maps, x_hat, real]


def scenes(examples: list[dict]) -> tuple[list, np.ndarray]:
    """(layouts, uint8 "n H W 3") of examples of `SceneSource`."""
    pictures = np.stack([one["image"][:, :, :3] for one in examples])
    return [one["layout"] for one in examples], pictures


# Ten colors that are easily told apart, the background's first.
COLORS = "ffffff 1f77b4 ff7f0e 2ca02c d62728 9467bd 8c564b e377c2 7f7f7f bcbd22"
PALETTE = np.frombuffer(bytes.fromhex(COLORS), np.uint8).reshape(-1, 3)


def condition_map(example: dict, key: str) -> np.ndarray:
    """A layout's boxes or a label map in colors, uint8 "H W 3"."""
    if key == "segmentation":
        return PALETTE[example["segmentation"] % len(PALETTE)]
    height, width, _ = example["image"].shape
    sheet = np.full((height, width, 3), 255, np.uint8)
    for label, (left, top, w, h) in example["layout"]:
        x0, x1 = round(left * width), min(width, round((left + w) * width))
        y0, y1 = round(top * height), min(height, round((top + h) * height))
        sheet[y0:y1, x0:x1] = PALETTE[1 + label % (len(PALETTE) - 1)]
    return sheet


def recognition(pipe: Pipeline, args) -> tuple[dict, list]:
    """The share of samples, of classes in turn, whose nearest picture has the class."""
    source = EmojiSource(split="train", size_px=pipe.config.data.size_px)
    if pipe.config.num_classes != len(source.subgroups):
        raise UserError("classes are recognized among the emoji's subgroups only")
    # in an order that is not the alphabet's, so that few pictures are varied too
    order = np.random.default_rng(0).permutation(np.unique(source.labels))
    labels = np.resize(order, args.num)
    x_hat = draw(pipe, [{"label": int(label)} for label in labels], args)
    references = training_images(source)
    result = recognize(x_hat, labels, references=references, labels=source.labels)
    first = [np.flatnonzero(source.labels == label)[0] for label in labels]
    figures = {"accuracy": result.accuracy, "chance": result.chance}
    return figures, [references[first], x_hat, references[result.nearest]]


def distance_to_training(pipe: Pipeline, args) -> tuple[dict, list]:
    """Root mean squares of samples less their nearest training pictures."""
    if pipe.config.data.source != "emoji":
        raise UserError("the nearest pictures are looked for among the emoji only")
    size = dict(size_px=pipe.config.data.size_px)
    references = training_images(EmojiSource(split="train", **size))
    held = training_images(EmojiSource(split=args.split, **size))
    x_hat = draw(pipe, [{}] * args.num, args)
    near, near_held = (references[nearest(x, references)] for x in (x_hat, held))
    samples, real = rms(x_hat, near), rms(held, near_held)
    return {"rms_nearest": samples, "rms_nearest_held_out": real}, [x_hat, near]


def rms(a: np.ndarray, b: np.ndarray) -> float:
    """Root mean square differences of pictures, in gray levels: their mean."""
    return float((PEAK * 10 ** (-psnr(a, b) / 20)).mean())


# By `Task.figures`: (pipeline, flags) -> (figures, columns of pictures for the sheet).
FIGURES = {
    "enlargement": enlargement,
    "completion": completion,
    "objects": object_figures,
    "recognition": recognition,
    "nearest": distance_to_training,
}
