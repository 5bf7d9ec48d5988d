"""A config's data section -> sources and transforms.

Owns what a config leaves to its data (`resolve`), which everything that reads a config
file calls once. The data sets of `config.data.source`; what each expects of
`config.data.path` is in the module named:

    emoji        embedded, nothing else is needed              data.sources
    scenes       made of the emoji                             data.scenes
    folder       pictures, sub-folders, sidecars, metadata     data.folder
    array_record shards of pictures with their metadata        data.records
    tfds         a prepared TensorFlow data set, by its name   data.tfds_source
    coco, openimages   as they are handed out                  data.annotated
    latents      encoded before                                data.latents

The embedded ones take no path: a path there means a folder.
"""

from collections.abc import Callable
from pathlib import Path

from ml_collections import ConfigDict

from lDM_jax.core.errors import BadExample, UserError
from lDM_jax.data import annotated, sources, transforms
from lDM_jax.data.bad_examples import Ledger
from lDM_jax.data.crop import Crop
from lDM_jax.data.degrade import RandomCrop
from lDM_jax.data.folder import SMALLEST_SPLIT, FolderSource
from lDM_jax.data.latents_cache import LatentsSource
from lDM_jax.data.records import RecordSource
from lDM_jax.data.scenes import SceneSource
from lDM_jax.data.tfds_source import TfdsSource
from lDM_jax.from_config import networks
from lDM_jax.from_config.task_settings import task_of, task_settings
from lDM_jax.models.construct import lookup

EMBEDDED = ("emoji", "scenes")
HELD_OUT_SCENES = 512
LOOKED_AT = 500  # captions whose length is examined before training
CROP = ("crop", "resize_px", "filter", "min_px")


def resolve(config: ConfigDict) -> ConfigDict:
    """Fill in, in place, what a config leaves to its data; returns the config.

    A path in place of an embedded data set is a folder: data.source becomes "folder".
    num_classes = 0 of a class task becomes the number of the data's classes; another
    number stays. What is resolved already stays as it is. UserError for classes that
    cannot be counted, and as `source`.
    """
    data = config.data
    if data.path and data.source in EMBEDDED:
        data.source = "folder"
    labels = task_of(config).labels
    if labels and labels.complete and not config.num_classes:
        count = num_classes(source(config, "train"))
        if not count:
            raise UserError(
                "config.num_classes = 0 means as many as the data has, but "
                f"config.data.source = {data.source!r} does not say how many: give it"
            )
        config.num_classes = count
    return config


def source(config: ConfigDict, split: str):
    """The data set of config.data, one split of it, its first `limit` examples.

    UserError for data that cannot be found, ending with config.data.about, which says
    what the config expects; and for data without the condition of the config's task.
    """
    data = config.data
    make = lookup(SOURCES, data.source, "config.data.source")
    try:
        chosen = make(config, split)
    except UserError as error:
        raise UserError(f"{error}" + f". {data.about}" * bool(data.about)) from None
    if data.source != "latents":
        check_conditions(config, chosen)
    check_classes(config, chosen)
    return sources.First(chosen, data.limit) if data.limit else chosen


def _emoji(config: ConfigDict, split: str):
    return sources.EmojiSource(split=split, size_px=config.data.size_px)


def _scenes(config: ConfigDict, split: str):
    held_out = {} if split == "train" else {"num_scenes": HELD_OUT_SCENES}
    options = {**config.data.scenes, **held_out}
    return SceneSource(split=split, size_px=config.data.size_px, **options)


def _files(kind: Callable) -> Callable:
    def make(config: ConfigDict, split: str):
        return kind(config.data.path, split=split, min_px=config.data.min_px)

    return make


def _tfds(config: ConfigDict, split: str):
    options = dict(data_dir=config.data.data_dir, min_px=config.data.min_px)
    return TfdsSource(config.data.path, split=split, **options)


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
    task = task_of(config)
    key, there = task.example, conditions(source)
    if key and key not in there:
        hint = f": {task.hint}" if isinstance(source, FolderSource) else ""
        raise UserError(
            f"task {task.name!r} needs data with a {key}{hint}; config.data.source = "
            f"{config.data.source!r} has {', '.join(sorted([*there, 'image']))}"
        )


def class_names(source, where: str = "classes") -> list[str]:
    """The names of the labels of pictures ("classes"), or of boxes ("categories"), by
    number; [] without names."""
    return list(getattr(source, where, None) or ())


def label_names(config: ConfigDict, source) -> list[str]:
    """The names of the labels that the config's task reads, or else of pictures."""
    labels = task_of(config).labels
    return class_names(source, labels.names if labels else "classes")


def num_classes(source) -> int:
    """How many classes a source's labels take; 0 where it does not say."""
    return getattr(source, "num_classes", 0) or len(class_names(source))


def check_classes(config: ConfigDict, source) -> None:
    """UserError if the data has classes that the config does not know.

    A class task's has more than config.num_classes, or, where config.data.classes names
    those of pictures or boxes, others: labels would mean something else than in
    training. Boxes may lack the last of them (COCO without its file of stuff).
    """
    labels = task_of(config).labels
    if labels is None:
        return
    where = config.data.path or config.data.source
    count = num_classes(source) if labels.complete else 0
    if count and 0 < config.num_classes < count:
        raise UserError(
            f"config.num_classes = {config.num_classes}, but {where} has {count} "
            "classes (0 takes as many as there are)"
        )
    known, there = config.data.classes, class_names(source, labels.names)
    same = list(known if labels.complete else known[: len(there)]) == there
    if known and there and not same:
        pairs = zip([*known, None], [*there, None], strict=False)
        old, new = next(pair for pair in pairs if pair[0] != pair[1])
        raise UserError(
            f"{where} has other classes than this config was trained with "
            f"({len(known)} then, {len(there)} now): the first that differs was "
            f"{old!r} and is {new!r}"
        )


def note_classes(config: ConfigDict, source) -> None:
    """Store the names of pictures' or boxes' labels as config.data.classes."""
    names = label_names(config, source)
    if task_of(config).labels and names:
        with config.unlocked():
            config.data.classes = tuple(names)


def describe(config: ConfigDict, data, held_out) -> list[str]:
    """Lines that say what training will read, and what of it is not as one may think.

    data, held_out: sources of the two splits; only names and captions are read.
    """
    where = config.data.path or "the embedded set"
    counts = f"{len(data)} training, {len(held_out)} held-out pictures"
    lines = [f"data: {counts}, {where} ({config.data.source})"]
    names = config.data.classes
    if names:
        some = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
        lines.append(f"classes: {len(names)} ({some})")
    files = getattr(data, "files", None)
    if files is not None and files == getattr(held_out, "files", None):
        lines.append(
            "held-out pictures are the training pictures: a folder of fewer than "
            f"{SMALLEST_SPLIT} is not divided"
        )
    if config.train.batch_size > len(data):
        size = config.train.batch_size
        lines.append(f"a batch of {size} holds pictures more than once")
    if foreign_first_stage(config):
        lines.append(
            f"the first stage {config.first_stage.path} knows only embedded pictures "
            "and spoils others: train one on yours (configs/emoji_autoencoder.py), "
            "then --config.first_stage.path=ITS_WORKDIR"
        )
    cut, looked = cut_captions(config, data)
    if cut:
        lines.append(
            f"{cut} of {looked} captions are longer than config.text.max_length = "
            f"{config.text.max_length} tokens and lose their end"
        )
    return lines


def foreign_first_stage(config: ConfigDict) -> bool:
    """True if the first stage was trained on embedded data, and this is other data."""
    if "first_stage" not in config or config.data.source in (*EMBEDDED, "latents"):
        return False
    stored = networks.stored_first_stage(config)
    return stored.get("config", stored).get("data", {}).get("source") in EMBEDDED


def cut_captions(config: ConfigDict, source) -> tuple[int, int]:
    """(captions that do not fit config.text.max_length, captions looked at).

    Looks at the first LOOKED_AT pictures of a text task's source that can tell its
    captions without decoding; else (0, 0).
    """
    read = getattr(source, "captions_of", None)
    if task_of(config).example != "caption" or read is None:
        return 0, 0
    tokenizer, cut, looked = networks.tokenizer(config), 0, 0
    for i in range(min(len(source), LOOKED_AT)):
        try:
            texts = read(i)
        except BadExample:
            continue
        looked += len(texts)
        cut += sum(map(tokenizer.loses, texts))
    return cut, looked


def transform(
    config: ConfigDict, split: str = "train", *, flip: float | None = None
) -> Callable:
    """Source example -> batch row: image f32 plus what the config's task reads.

    data.crop: "center", "random" (see `data.crop`), or "share", a square of 0.5 to 1
    times the shorter side (`degrade.RandomCrop`), cut behind the background. Held-out
    examples are cut at their center and not mirrored; flip, if not None, is the chance
    of mirroring.
    """
    data, task, settings = config.data, task_of(config), task_settings(config)
    if flip is None:
        flip = data.flip if split == "train" else 0.0
    steps = [transforms.Composite(background=data.background)]
    if data.crop == "share" and split == "train":
        steps.append(RandomCrop(data.size_px))
    else:
        kind = data.crop if split == "train" else "center"
        options = dict(resize_px=data.resize_px, method=data.filter)
        steps.insert(0, Crop(data.size_px, kind, **options))
    if flip > 0:
        steps.append(transforms.RandomFlip(probability=flip))
    keys = dict.fromkeys(("image", *task.shapes(settings)))
    keep = transforms.Keep(tuple(keys))
    return transforms.compose(*steps, *task.steps(settings), keep)


def ledger(
    config: ConfigDict, source, workdir: str | Path | None, process: int = 0
) -> Ledger:
    """Where the bad examples of the training data are noted."""
    name = f"bad_examples.{process}.jsonl" if process else "bad_examples.jsonl"
    path = None if workdir is None else Path(workdir) / name
    return Ledger(len(source), path=path, max_share=config.data.max_bad_share)
