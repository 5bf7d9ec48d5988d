"""evaluate task: does a model do what its task asks? On held-out pictures.

super_resolution, inpaint   PSNR and SSIM beside the simple ways: bicubic, and the mean
                            of what is known (of the hole alone: psnr_hole, and of the
                            mean of a few samples)
layout, semantic            the share of objects that are recognised where they were
                            asked for (`metrics.objects`); as the judge's bound, of
                            training scenes, whose objects it knows; as what a model
                            gets that does not read its condition, of real scenes of
                            other layouts, and of the mean training picture
class                       the share of samples recognised as of their class
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

AVERAGED = 4  # samples of a hole


def arguments(parser: argparse.ArgumentParser) -> None:
    """The flags."""
    options.add_model(parser)
    parser.add_argument("--num", type=int, default=64, help="pictures to draw")
    parser.add_argument("--split", choices=sources.SPLITS, default="validation")
    options.add_sampling(parser)
    options.add_sheet(parser)


def run(args: argparse.Namespace) -> dict:
    """Figures of a model's task on held-out pictures, beside simple baselines."""
    pipe = Pipeline.load(args.model)
    kind = KINDS.get(pipe.task.name)
    if kind is None:
        raise UserError(
            f"task {pipe.task.name!r} has no figure of its own; valid: "
            f"{', '.join(KINDS)}; others: evaluate prompts, evaluate generate"
        )
    figures, shown = kind(pipe, args)
    rows = [pictures[:BATCH] for pictures in shown]
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
    drawing = options.sampling(args)
    wanted = [
        pipe.resolved(Request(seeds=(seed,), **one, **drawing))
        for seed, one in enumerate(fields, first_seed)
    ]
    parts = []
    for start in range(0, len(wanted), BATCH):
        batch = wanted[start : start + BATCH]
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
    names = parts[0]
    rows = {name: np.concatenate([part[name] for part in parts]) for name in names}
    return {name: value[: args.num] for name, value in rows.items()}


def super_resolution(pipe: Pipeline, args) -> tuple[dict, list]:
    """PSNR and SSIM of enlarged pictures, and of PIL's bicubic enlargement."""
    rows = held_out(pipe, args)
    x, small = image.to_uint8(rows["image"]), image.to_uint8(rows["low_res"])
    found = draw(pipe, [{"image": one} for one in small], args)
    height, width = x.shape[1:3]
    plain = np.stack([image.resample(one, height, width) for one in small])
    return compared(found, x) | compared(plain, x, "_bicubic"), [plain, found, x]


def inpaint(pipe: Pipeline, args) -> tuple[dict, list]:
    """PSNR and SSIM of completed pictures, and with the mean colour in the holes.

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
    drawn = [draw(pipe, fields, args, k * len(x)) for k in range(AVERAGED)]
    found, plain = drawn[0], x.copy()
    for picture, hole in zip(plain, mask, strict=True):
        picture[hole] = picture[~hole].mean(axis=0).round() if (~hole).any() else 128
    holes = np.where(mask[..., None], np.uint8(128), x)
    figures = {
        "psnr_hole": psnr_inside(found, x, mask),
        "psnr_hole_average": psnr_inside(np.mean(drawn, axis=0), x, mask),
        "psnr_hole_mean_fill": psnr_inside(plain, x, mask),
        "hole": mask.mean(),
    }
    figures |= compared(found, x) | compared(plain, x, "_mean_fill")
    return figures, [holes, plain, found, x]


def compared(x_hat: np.ndarray, x: np.ndarray, suffix: str = "") -> dict:
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


def layout(pipe: Pipeline, args) -> tuple[dict, list]:
    """The share of objects recognised in their boxes."""
    return drawn_objects(pipe, args, "layout")


def semantic(pipe: Pipeline, args) -> tuple[dict, list]:
    """The share of objects recognised where the label map has them."""
    return drawn_objects(pipe, args, "segmentation")


def drawn_objects(pipe: Pipeline, args, key: str) -> tuple[dict, list]:
    """Figures of pictures drawn from the layouts or label maps of held-out scenes."""
    known = datasets.source(pipe.config, "train")
    source = datasets.source(pipe.config, args.split)
    if pipe.config.data.source != "scenes":
        raise UserError("objects are recognised in scenes of emoji only")
    examples = [source[i] for i in range(args.num)]
    found = draw(pipe, [{key: one[key]} for one in examples], args)
    emoji = EmojiSource(split="train", size_px=136)
    pictures = [trim(emoji[i]["image"]) for i in range(len(emoji))]
    judge = dict(
        references=objects.make_references(pictures), labels=emoji.group_labels
    )
    layouts, real = scenes(examples)
    known_layouts, known_pictures = scenes([known[i] for i in range(args.num)])
    mean = np.rint(known_pictures.mean(axis=0)).astype(np.uint8)
    figures = {
        "accuracy": objects.accuracy(found, layouts, **judge),
        "accuracy_known": objects.accuracy(known_pictures, known_layouts, **judge),
        "accuracy_unrelated": objects.accuracy(np.roll(real, 1, 0), layouts, **judge),
        "accuracy_blank": objects.accuracy(
            np.stack([mean] * len(real)), layouts, **judge
        ),
        "chance": 1 / len(emoji.groups),
        "objects": sum(map(len, layouts)),
    }
    shown = np.stack([drawn_condition(one, key) for one in examples])
    return figures, [shown, found, real]


def scenes(examples: list[dict]) -> tuple[list, np.ndarray]:
    """(layouts, uint8 "n H W 3") of examples of `SceneSource`."""
    pictures = np.stack([one["image"][:, :, :3] for one in examples])
    return [one["layout"] for one in examples], pictures


# Ten colours that are easily told apart, the background's first.
PALETTE = np.array(
    [
        (255, 255, 255),
        (31, 119, 180),
        (255, 127, 14),
        (44, 160, 44),
        (214, 39, 40),
        (148, 103, 189),
        (140, 86, 75),
        (227, 119, 194),
        (127, 127, 127),
        (188, 189, 34),
    ],
    np.uint8,
)


def drawn_condition(example: dict, key: str) -> np.ndarray:
    """A layout's boxes or a label map in colours, uint8 "H W 3"."""
    if key == "segmentation":
        return PALETTE[example["segmentation"] % len(PALETTE)]
    height, width, _ = example["image"].shape
    sheet = np.full((height, width, 3), 255, np.uint8)
    for label, (left, top, w, h) in example["layout"]:
        x0, x1 = round(left * width), min(width, round((left + w) * width))
        y0, y1 = round(top * height), min(height, round((top + h) * height))
        sheet[y0:y1, x0:x1] = PALETTE[1 + label % (len(PALETTE) - 1)]
    return sheet


def classes(pipe: Pipeline, args) -> tuple[dict, list]:
    """The share of samples, of classes in turn, whose nearest picture has the class."""
    source = EmojiSource(split="train", size_px=pipe.config.data.size_px)
    if pipe.config.num_classes != len(source.subgroups):
        raise UserError("classes are recognised among the emoji's subgroups only")
    # in an order that is not the alphabet's, so that few pictures are varied too
    order = np.random.default_rng(0).permutation(np.unique(source.labels))
    labels = np.resize(order, args.num)
    found = draw(pipe, [{"label": int(label)} for label in labels], args)
    references = training_images(source)
    result = recognize(found, labels, references=references, labels=source.labels)
    first = [np.flatnonzero(source.labels == label)[0] for label in labels]
    figures = {"accuracy": result.accuracy, "chance": result.chance}
    return figures, [references[first], found, references[result.nearest]]


def unconditional(pipe: Pipeline, args) -> tuple[dict, list]:
    """Root mean squares of samples less their nearest training pictures."""
    if pipe.config.data.source != "emoji":
        raise UserError("the nearest pictures are looked for among the emoji only")
    size = dict(size_px=pipe.config.data.size_px)
    references = training_images(EmojiSource(split="train", **size))
    held = training_images(EmojiSource(split=args.split, **size))
    found = draw(pipe, [{}] * args.num, args)
    near, near_held = (references[nearest(x, references)] for x in (found, held))
    figures = {
        "rms_nearest": rms(found, near),
        "rms_nearest_held_out": rms(held, near_held),
    }
    return figures, [found, near]


def rms(a: np.ndarray, b: np.ndarray) -> float:
    """Root mean square differences of pictures, in grey levels: their mean."""
    return float((PEAK * 10 ** (-psnr(a, b) / 20)).mean())


KINDS = {
    "super_resolution": super_resolution,
    "inpaint": inpaint,
    "layout": layout,
    "semantic": semantic,
    "class": classes,
    "unconditional": unconditional,
}
