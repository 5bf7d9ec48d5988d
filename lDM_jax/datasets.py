"""A config's data section -> sources and transforms.

The data sets of `config.data.source`; what each expects of `config.data.path` is in the
module named:

    emoji        embedded, nothing else is needed              data.sources
    scenes       made of the emoji                             data.scenes
    folder       pictures, sub-folders, sidecars, metadata     data.folder
    array_record shards of pictures with their metadata        data.records
    tfds         a prepared TensorFlow data set, by its name   data.tfds_source
    coco, openimages   as they are handed out                  data.annotated
    latents      encoded before                                data.latents
"""

from collections.abc import Callable
from pathlib import Path

from ml_collections import ConfigDict

from lDM_jax import build, tasks
from lDM_jax.arrays import UserError
from lDM_jax.data import annotated, sources
from lDM_jax.data.bad_examples import Ledger
from lDM_jax.data.crop import Crop
from lDM_jax.data.degrade import RandomCrop
from lDM_jax.data.folder import FolderSource
from lDM_jax.data.latents import LatentsSource
from lDM_jax.data.records import RecordSource
from lDM_jax.data.scenes import SceneSource
from lDM_jax.data.tfds_source import TfdsSource
from lDM_jax.errors import BadExample

HELD_OUT_SCENES = 512
CROP = ("crop", "resize_px", "filter", "min_px")  # what they are if not set: `cropping`
# Task -> the key that its examples need.
NEEDED = {
    "text": "caption",
    "class": "label",
    "layout": "layout",
    "semantic": "segmentation",
}


def source(config: ConfigDict, split: str):
    """The data set of config.data, one split of it, its first `limit` examples.

    UserError for data that cannot be found, ending with config.data.about, which says
    what the config expects; and for data without the condition of the config's task.
    """
    data = config.data
    make = build.lookup(SOURCES, data.source, "config.data.source")
    try:
        chosen = make(config, split)
    except UserError as error:
        about = data.get("about", "")
        raise UserError(f"{error}" + f". {about}" * bool(about)) from None
    if data.source != "latents":
        check_conditions(config, chosen)
    limit = data.get("limit", 0)
    return sources.First(chosen, limit) if limit else chosen


def _emoji(config: ConfigDict, split: str):
    return sources.EmojiSource(split=split, size_px=config.data.size_px)


def _scenes(config: ConfigDict, split: str):
    options = dict(config.data.get("scenes", {}))
    if split != "train":
        options["num_scenes"] = HELD_OUT_SCENES
    return SceneSource(split=split, size_px=config.data.size_px, **options)


def _files(kind: Callable) -> Callable:
    def make(config: ConfigDict, split: str):
        data = config.data
        return kind(data.path, split=split, min_px=data.get("min_px", 1))

    return make


def _tfds(config: ConfigDict, split: str):
    data = config.data
    options = dict(data_dir=data.get("data_dir", ""), min_px=data.get("min_px", 1))
    return TfdsSource(data.path, split=split, **options)


def _latents(config: ConfigDict, split: str):
    return LatentsSource(config.data.path, split=split)


SOURCES: dict[str, Callable] = {
    "emoji": _emoji,
    "scenes": _scenes,
    "folder": _files(FolderSource),
    "array_record": _files(RecordSource),
    "tfds": _tfds,
    "coco": _files(annotated.coco),
    "openimages": _files(annotated.openimages),
    "latents": _latents,
}


def conditions(source) -> list[str]:
    """The keys of a source's examples besides "image"; reads one if it does not say."""
    known = getattr(source, "conditions", None)
    if known is not None:
        return sorted(known)
    for i in range(len(source)):
        try:
            return sorted(source[i].keys() - {"image"})
        except BadExample:
            continue
    return []


def check_conditions(config: ConfigDict, source) -> None:
    """UserError if the data set does not hold the condition of the config's task."""
    task = config.get("task")
    key, there = NEEDED.get(task), conditions(source)
    if key and key not in there:
        where = {
            "caption": ": photo.txt beside photo.jpg, or a caption in metadata.jsonl",
            "label": ": every image in a sub-folder, one a class, or a label in "
            "metadata.jsonl",
            "layout": ": boxes and labels in metadata.jsonl",
            "segmentation": ": label maps in segmentation/ beside images/, or named in "
            "metadata.jsonl",
        }
        hint = where[key] if isinstance(source, FolderSource) else ""
        raise UserError(
            f"task {task!r} needs data with a {key}{hint}; config.data.source = "
            f"{config.data.source!r} has {', '.join(sorted([*there, 'image']))}"
        )
    count = getattr(source, "num_classes", 0)
    if task == "class" and count > config.num_classes:
        raise UserError(
            f"config.num_classes = {config.num_classes}, but {config.data.path} has "
            f"{count} classes"
        )


def cropping(config: ConfigDict, split: str) -> tuple[Callable | None, Callable | None]:
    """How config.data makes squares: transforms before and after the background.

    crop: "center", "random" (see `data.crop`), or "share", a square of 0.5 to 1 times
    the shorter side (`degrade.RandomCrop`). Held-out pictures are cut at their centre.
    """
    data = config.data
    kind = data.get("crop", "center")
    if kind == "share" and split == "train":
        return None, RandomCrop(data.size_px)
    kind = "center" if split != "train" or kind == "share" else kind
    options = dict(resize_px=data.get("resize_px", 0))
    cut = Crop(data.size_px, kind, method=data.get("filter", "bicubic"), **options)
    return cut, None


def transform(
    config: ConfigDict, split: str = "train", *, flip: float | None = None
) -> Callable:
    """The example transform of the config's task.

    Held-out examples are not mirrored; flip, if it is given, is the chance of it.
    """
    data = config.data
    if flip is None:
        flip = data.flip if split == "train" else 0.0
    return tasks.train_transform(
        tasks.get_task(config.get("task", "unconditional")),
        build.tokenizer(config),
        background=data.background,
        flip=flip,
        crop=cropping(config, split),
        low_res={k: v for k, v in config.get("low_res", {}).items() if k != "fold"},
        masks=dict(config.get("masks", {})),
        num_labels=config.get("num_classes", 0),
    )


def ledger(
    config: ConfigDict, source, workdir: str | Path | None, process: int = 0
) -> Ledger:
    """Where the bad examples of the training data are noted."""
    path = None
    if workdir is not None:
        name = f"bad_examples.{process}.jsonl" if process else "bad_examples.jsonl"
        path = Path(workdir) / name
    share = config.data.get("max_bad_share", 0.05)
    return Ledger(len(source), path=path, max_share=share)
