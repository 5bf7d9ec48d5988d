"""What training will see: python -m lDM_jax.tools.inspect_data --config CONFIG.

    python -m lDM_jax.tools.inspect_data --config configs/emoji_layout.py --out look.png
    python -m lDM_jax.tools.inspect_data --config configs/ffhq_ldm4.py \\
        --set data.path=DIR --check

Writes a grid of examples after the transform, with their conditions: captions and
labels below, boxes and masks over the picture, label maps and small pictures beside it.
Prints JSON: how many examples each split has, the pictures' sizes, lengths of captions,
a histogram of labels, files that are not used, examples that cannot be read (of
--examine examples in random order; of all with --check).
"""

import argparse
import contextlib
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lDM_jax.core import image
from lDM_jax.core.errors import BadExample, UserError
from lDM_jax.data.pipeline import example_rng
from lDM_jax.data.sources import SPLITS
from lDM_jax.data.transforms import Compose
from lDM_jax.from_config import datasets, networks
from lDM_jax.from_config.config_file import read_config
from lDM_jax.tools import run_tool

PANEL_PX = 192
TEXT_PX = 44
SHOWN = 20  # of every list in the report


def report(config, source, *, examine: int) -> dict:
    """Figures of `examine` examples of a source, and what it says of itself."""
    sizes, lengths, labels, objects, bad = [], [], Counter(), [], {}
    for index in some(source)[:examine]:
        try:
            example = source[index]
        except BadExample as error:
            bad[index] = str(error)
            continue
        sizes.append(example["image"].shape[:2])
        texts = example.get("captions", [example.get("caption", "")])
        lengths += [len(text) for text in texts if "caption" in example]
        if "label" in example:
            labels[name_of(source, int(example["label"]))] += 1
        objects += [len(example["layout"])] if "layout" in example else []
    unused = getattr(source, "unused", [])
    found = {
        "examined": min(examine, len(source)),
        "conditions": datasets.conditions(source),
        "cannot_be_used": len(bad),
        "reasons": dict(list(bad.items())[:SHOWN]),
        "files_without_a_use": len(unused),
        "such_files": unused[:SHOWN],
    }
    if sizes:
        sides = np.array(sizes)
        found["width_px"], found["height_px"] = spread(sides[:, 1]), spread(sides[:, 0])
        enlarged = (sides.min(axis=1) < config.data.size_px).mean()
        found["share_enlarged"] = round(float(enlarged), 4)
    if lengths:
        found["caption_characters"] = spread(lengths)
        found["empty_captions"] = int(np.sum(np.array(lengths) == 0))
    if labels:
        found["labels"] = dict(labels.most_common(SHOWN))
        found["labels_seen"] = len(labels)
    if objects:
        found["boxes"] = spread(objects)
    cut, looked = datasets.cut_captions(config, source)
    if looked:
        found["captions_too_long"] = f"{cut} of {looked}"
        found["most_tokens"] = config.text.max_length
    return found


def some(source) -> list[int]:
    """All indices in a fixed random order: sources are often sorted by class."""
    return np.random.default_rng(0).permutation(len(source)).tolist()


def spread(values) -> dict:
    """Least, median and largest of some numbers."""
    names = {"least": 0, "median": 50, "largest": 100}
    return {name: float(np.percentile(values, at)) for name, at in names.items()}


def name_of(source, label: int, task: str = "class") -> str:
    """A class's name, where the source has names, else its number."""
    names = datasets.class_names(source, task)
    return names[label] if label < len(names) else str(label)


def seen(config, source, index: int, epoch: int) -> dict:
    """An example after the transform, its layout and caption still readable."""
    row = datasets.transform(config)
    if not isinstance(row, Compose):
        return row(source[index], example_rng(config.seed, index, epoch=epoch))
    kept, example = {}, source[index]
    rng = example_rng(config.seed, index, epoch=epoch)
    for step in row.transforms:
        kept |= {k: example[k] for k in ("layout", "caption", "label") if k in example}
        example = step(example, rng)
    return {**kept, **example}


def panel(example: dict, source) -> np.ndarray:
    """One example as uint8 "PANEL_PX + TEXT_PX, w, 3": picture, conditions, text."""
    picture = shown(image.to_uint8(example["image"]))
    if "mask" in example:
        mask = shown(np.repeat(example["mask"] > 0, 3, axis=2).astype(np.uint8)) > 0
        picture = np.where(mask, picture // 3 + np.array([170, 0, 0]), picture)
    for label, box in example.get("layout", ()):
        picture = outline(picture, box, colour(label + 1))
    parts = [picture.astype(np.uint8)]
    if "segmentation" in example:
        parts.append(shown(colour(example["segmentation"]), method="nearest"))
    if "low_res" in example:
        small = image.to_uint8(example["low_res"])
        parts.append(shown(small, method="nearest"))
    beside = np.concatenate(parts, axis=1)
    words = [example["caption"]] if example.get("caption") else []
    if "label" in example:
        words.append(f"[{name_of(source, int(example['label']))}]")
    layout = example.get("layout", ())
    words += [name_of(source, label, "layout") for label, _ in layout][:8]
    text = image.text_strip(" ".join(words), beside.shape[1], TEXT_PX)
    return np.concatenate([beside, text])


def shown(pixels: np.ndarray, *, method: str = "bicubic") -> np.ndarray:
    """A picture at the panel's extent."""
    return image.resample(pixels, PANEL_PX, PANEL_PX, method=method)


def outline(picture: np.ndarray, box, rgb: np.ndarray) -> np.ndarray:
    """The picture with a frame of two pixels inside the box (fractions)."""
    left, top, width, height = (round(value * (PANEL_PX - 1)) for value in box)
    right, bottom = left + width, top + height
    picture = picture.copy()
    for rows, columns in (
        (slice(top, top + 2), slice(left, right + 1)),
        (slice(max(bottom - 1, 0), bottom + 1), slice(left, right + 1)),
        (slice(top, bottom + 1), slice(left, left + 2)),
        (slice(top, bottom + 1), slice(max(right - 1, 0), right + 1)),
    ):
        picture[rows, columns] = rgb
    return picture


def colour(labels) -> np.ndarray:
    """Numbers -> uint8 "... 3", unlike colours for near numbers; 0 is black."""
    labels = np.asarray(labels, np.int64)[..., None]
    mixed = labels * np.array([97, 151, 211]) % 223 + 32
    return np.where(labels > 0, mixed, 0).astype(np.uint8)


def run(args: argparse.Namespace) -> str:
    """Write the grid; returns the report as JSON."""
    config = read_config(args.config, args.changes)
    if config.data.source == "latents":
        raise UserError("latents cannot be looked at: give a source of images")
    networks.check_pixels(config, 1)
    source = datasets.source(config, args.split)
    result = {"source": config.data.source, "split": args.split}
    result["examples"] = {name: _length(config, name) for name in SPLITS}
    examine = len(source) if args.check else args.examine
    result |= report(config, source, examine=examine)
    panels = []
    for index in some(source):
        if len(panels) == args.count:
            break
        with contextlib.suppress(BadExample):
            panels.append(panel(seen(config, source, index, args.epoch), source))
    if panels and args.out:
        image.write_png(args.out, image.grid(np.stack(panels), columns=args.columns))
        result["picture"] = str(args.out)
    return json.dumps(result, indent=1, ensure_ascii=False)


def _length(config, split: str) -> int | None:
    try:
        return len(datasets.source(config, split))
    except UserError:
        return None


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("--config", required=True, help="file, also with :argument")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="changes"
    )
    parser.add_argument("--split", choices=SPLITS, default="train")
    parser.add_argument("--out", type=Path, help="PNG to write")
    parser.add_argument("--count", type=int, default=24, help="examples in the picture")
    parser.add_argument("--columns", type=int, default=6)
    parser.add_argument("--epoch", type=int, default=0, help="whose random choices")
    parser.add_argument("--examine", type=int, default=500, help="examples for figures")
    parser.add_argument("--check", action="store_true", help="read every example")


def main(argv: Sequence[str] | None = None) -> int:
    return run_tool("inspect_data", __doc__, arguments, run, argv)


if __name__ == "__main__":
    sys.exit(main())
