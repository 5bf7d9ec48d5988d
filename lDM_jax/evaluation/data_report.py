"""What training will see of a data set: figures of its examples, and images of them.

`summarize` reads examples as the source has them; `draw_panel` shows one after the
transform, with its conditions: captions and labels below, boxes and masks over the
image, label maps and small images beside it.
"""

from collections import Counter

import numpy as np
from ml_collections import ConfigDict

from lDM_jax.core import image
from lDM_jax.core.errors import BadExample
from lDM_jax.data.pipeline import example_rng
from lDM_jax.data.transforms import Compose
from lDM_jax.from_config import datasets

PANEL_PX = 192
TEXT_PX = 44
LISTED = 20  # of every list in the report


def summarize(config: ConfigDict, source, *, examine: int) -> dict:
    """Figures of `examine` random examples of a source, and of the source itself."""
    sizes, lengths, labels, objects, bad = [], [], Counter(), [], {}
    for index in shuffle_indices(source)[:examine]:
        try:
            example = source[index]
        except BadExample as error:
            bad[index] = str(error)
            continue
        sizes.append(example["image"].shape[:2])
        texts = example.get("captions", [example.get("caption", "")])
        lengths += [len(text) for text in texts if "caption" in example]
        if "label" in example:
            labels[class_name(source, int(example["label"]))] += 1
        objects += [len(example["layout"])] if "layout" in example else []
    unused = getattr(source, "unused", [])
    row = {
        "examined": min(examine, len(source)),
        "conditions": datasets.conditions(source),
        "cannot_be_used": len(bad),
        "reasons": dict(list(bad.items())[:LISTED]),
        "files_without_a_use": len(unused),
        "such_files": unused[:LISTED],
    }
    if sizes:
        sides = np.array(sizes)
        row["width_px"], row["height_px"] = spread(sides[:, 1]), spread(sides[:, 0])
        enlarged = (sides.min(axis=1) < config.data.size_px).mean()
        row["share_enlarged"] = round(float(enlarged), 4)
    if lengths:
        row["caption_characters"] = spread(lengths)
        row["empty_captions"] = int(np.sum(np.array(lengths) == 0))
    if labels:
        row["labels"] = dict(labels.most_common(LISTED))
        row["labels_seen"] = len(labels)
    if objects:
        row["boxes"] = spread(objects)
    cut, captions = datasets.cut_captions(config, source)
    if captions:
        row["captions_too_long"] = f"{cut} of {captions}"
        row["most_tokens"] = config.text.max_length
    return row


def shuffle_indices(source) -> list[int]:
    """All indices in a fixed random order: sources are often sorted by class."""
    return np.random.default_rng(0).permutation(len(source)).tolist()


def spread(values) -> dict:
    """Least, median and largest of some numbers."""
    names = {"least": 0, "median": 50, "largest": 100}
    return {name: float(np.percentile(values, at)) for name, at in names.items()}


def class_name(source, label: int, where: str = "classes") -> str:
    """A class's name, where the source has names, else its number."""
    names = datasets.class_names(source, where)
    return names[label] if label < len(names) else str(label)


def transform_example(config: ConfigDict, source, index: int, epoch: int) -> dict:
    """An example after the transform, with its original layout, caption, label."""
    row = datasets.transform(config)
    if not isinstance(row, Compose):
        return row(source[index], example_rng(config.seed, index, epoch=epoch))
    readable, example = {}, source[index]
    rng = example_rng(config.seed, index, epoch=epoch)
    for step in row.transforms:
        readable |= {
            k: example[k] for k in ("layout", "caption", "label") if k in example
        }
        example = step(example, rng)
    return {**readable, **example}


def draw_panel(example: dict, source) -> np.ndarray:
    """Draw an example, uint8 "PANEL_PX + TEXT_PX, w, 3": image, conditions, text."""
    pixels = scale(image.to_uint8(example["image"]))
    if "mask" in example:
        mask = scale(np.repeat(example["mask"] > 0, 3, axis=2).astype(np.uint8)) > 0
        pixels = np.where(mask, pixels // 3 + np.array([170, 0, 0]), pixels)
    for label, box in example.get("layout", ()):
        pixels = draw_box(pixels, box, color(label + 1))
    parts = [pixels.astype(np.uint8)]
    if "segmentation" in example:
        parts.append(scale(color(example["segmentation"]), method="nearest"))
    if "low_res" in example:
        parts.append(scale(image.to_uint8(example["low_res"]), method="nearest"))
    panel = np.concatenate(parts, axis=1)
    words = [example["caption"]] if example.get("caption") else []
    if "label" in example:
        words.append(f"[{class_name(source, int(example['label']))}]")
    layout = example.get("layout", ())
    words += [class_name(source, label, "categories") for label, _ in layout][:8]
    text = image.text_strip(" ".join(words), panel.shape[1], TEXT_PX)
    return np.concatenate([panel, text])


def scale(pixels: np.ndarray, *, method: str = "bicubic") -> np.ndarray:
    """Resize an image to the panel."""
    return image.resample(pixels, PANEL_PX, PANEL_PX, method=method)


def draw_box(pixels: np.ndarray, box, rgb: np.ndarray) -> np.ndarray:
    """The image with a frame of two pixels inside the box (fractions)."""
    left, top, width, height = (round(value * (PANEL_PX - 1)) for value in box)
    right, bottom, pixels = left + width, top + height, pixels.copy()
    for rows, columns in (
        (slice(top, top + 2), slice(left, right + 1)),
        (slice(max(bottom - 1, 0), bottom + 1), slice(left, right + 1)),
        (slice(top, bottom + 1), slice(left, left + 2)),
        (slice(top, bottom + 1), slice(max(right - 1, 0), right + 1)),
    ):
        pixels[rows, columns] = rgb
    return pixels


def color(labels) -> np.ndarray:
    """Numbers -> uint8 "... 3", distinct colors for near numbers; 0 is black."""
    labels = np.asarray(labels, np.int64)[..., None]
    mixed = labels * np.array([97, 151, 211]) % 223 + 32
    return np.where(labels > 0, mixed, 0).astype(np.uint8)
