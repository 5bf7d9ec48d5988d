"""Data sets -> latents, encoded once: in memory, or in a cache on disk.

Owns the encoding, on all devices of this host, and the fingerprints by which a cache
knows whether it fits a config. The files are `data.latents`'s; conditions that need no
network (tokens, labels, boxes) are encoded with the pictures.
"""

import dataclasses
import hashlib
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from lDM_jax.core.arrays import Batch
from lDM_jax.core.errors import BadExample, UserError
from lDM_jax.data import latents_cache as files
from lDM_jax.data import pipeline as data_pipeline
from lDM_jax.data.bad_examples import Ledger
from lDM_jax.diffusion.codec import Codec
from lDM_jax.from_config import datasets
from lDM_jax.from_config.task_settings import task_of, task_settings

log = logging.getLogger(__name__)

BATCH_SIZE = 32
LOG_EVERY_SECS = 10.0
LOOKED_AT = 8  # examples that tell whether pictures have several captions


def encoder(
    apply: Callable, params, batch_size: int = BATCH_SIZE, *, ndim: int = 4
) -> Callable:
    """apply(params, rows), compiled, with the rows split over this host's devices.

    Rows are arrays of `ndim` axes, or of one more, "b copies ...": then so is the
    result. UserError if `batch_size` does not split over the devices.
    """
    devices = jax.local_devices()
    if batch_size % len(devices):
        raise UserError(
            f"a batch of {batch_size} does not split over {len(devices)} devices"
        )
    axes = dict(axis_types=(AxisType.Auto,), devices=devices)
    mesh = jax.make_mesh((len(devices),), ("rows",), **axes)
    rows = NamedSharding(mesh, PartitionSpec("rows"))
    params = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))
    run = jax.jit(apply)

    def encode(values: np.ndarray) -> np.ndarray:
        if values.ndim == ndim:
            return jax.device_get(run(params, jax.device_put(values, rows)))
        copies = range(values.shape[1])
        return np.stack([encode(values[:, copy]) for copy in copies], axis=1)

    return encode


def encoded_batches(
    codec: Codec,
    params,
    data,
    row: Callable,
    *,
    batch_size: int = BATCH_SIZE,
    tower: tuple[Callable, Any] | None = None,
    **options,
) -> Iterator[Batch]:
    """Batches of a source, each example once in order, with moments for the image.

    The rows that cannot be used are left out. tower: (apply, parameters) of a text
    tower whose output of the tokens is added. options: of `pipeline.batches_once`.
    """
    encode = encoder(codec.moments, params, batch_size)
    read = encoder(*tower, batch_size, ndim=2) if tower else None
    options["batch_size"] = batch_size
    for batch in data_pipeline.batches_once(data, row, **options):
        real = batch.pop("weight") > 0
        batch["moments"] = encode(batch.pop("image"))
        if read is not None:
            batch["embeddings"] = read(batch["tokens"])
        yield {name: value[real] for name, value in batch.items()}


def encode(
    codec: Codec,
    params,
    data,
    row: Callable,
    *,
    limit: int | None = None,
    ledger: Ledger | None = None,
    name: str = "",
) -> dict[str, np.ndarray]:
    """Moments and conditions of a whole source in memory: dict of "N ..." arrays.

    name: of the lines that tell how far it is; without it nothing is said.
    """
    parts, count = [], 0
    progress = Progress(f"encoding {name}:", len(data)) if name else None
    for batch in encoded_batches(codec, params, data, row, ledger=ledger):
        parts.append(batch)
        count += len(batch["moments"])
        if progress is not None:
            progress.add(BATCH_SIZE)
        if limit is not None and count >= limit:
            break
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def copies(config: ConfigDict, *, draws: int = 1, split: str = "train") -> files.Copies:
    """What is encoded of an example: its draws, mirrored too if the config mirrors."""
    both = [datasets.transform(config, split, flip=flip) for flip in (0.0, 1.0)]
    return files.Copies(both[0], both[1] if config.data.flip else None, draws)


def pick(config: ConfigDict, *, draws: int = 1, mirrored: bool | None = None):
    """The transforms of cached examples: (for training, for held-out data)."""
    flip = config.data.flip
    options = dict(draws=draws, mirrored=bool(flip) if mirrored is None else mirrored)
    return files.Pick(flip=flip, **options), files.Pick(flip=0.0, **options)


def draws_of(config: ConfigDict) -> int:
    """How often what is random is drawn for a cache: data.cache_draws, at least 1."""
    return max(1, config.data.cache_draws)


def frozen_choices(config: ConfigDict, source) -> list[str]:
    """What a cache draws at random and training then always sees the same, in words."""
    data, task, choices = config.data, task_of(config), []
    if data.crop != "center":
        choices.append(f"crop {data.crop!r}")
    if data.background == "random":
        choices.append("background 'random'")
    choices += task.random(task_settings(config))
    if task.example == "caption" and has_choices(source):
        choices.append("one of several captions")
    return choices


def has_choices(source) -> bool:
    """True if one of the first pictures that can be read has several captions."""
    for i in range(min(len(source), LOOKED_AT)):
        try:
            if "captions" in source[i]:
                return True
        except BadExample:
            continue
    return False


def warn_of_frozen(config: ConfigDict, source, draws: int) -> None:
    """A warning that names what a cache of these draws freezes, if it does."""
    choices = ", ".join(frozen_choices(config, source))
    times = "once" if draws == 1 else f"{draws} times"
    if choices:
        log.warning(
            f"the latents keep what is random as it was drawn ({choices}): {times} for "
            "each picture; config.data.cache_draws says how often, cache_latents = "
            "False draws anew in every epoch"
        )


def check_task(config: ConfigDict) -> None:
    """UserError for a task that reads pixels, of which a cache holds none."""
    task = task_of(config)
    if task.uncached:
        raise UserError(
            f"task {task.name!r} {task.uncached}: set config.data.cache_latents = "
            "False and a source of pictures"
        )


def fingerprint(params) -> str:
    """Hash of all weights by name, type, shape and value, in hexadecimal."""
    digest = hashlib.sha256(b"weights")
    for name, leaf in sorted(flatten_dict(params, sep="/").items()):
        values = np.ascontiguousarray(jax.device_get(leaf))
        digest.update(f"{name} {values.dtype.str} {values.shape}".encode())
        digest.update(values.tobytes())
    return digest.hexdigest()


def options(config: ConfigDict) -> dict:
    """What decides how examples become batch rows, for comparison; plain JSON."""
    data, settings = config.data, task_settings(config)
    values = {"task": config.task, "background": data.background}
    values |= {name: data[name] for name in ("size_px", *datasets.CROP)}
    tokenizer = settings.tokenizer
    if tokenizer is not None:
        kind, pad = type(tokenizer).__name__, config.text.get("pad", "")
        values["tokens"] = [kind, tokenizer.max_length, pad]
    return values | task_of(config).cache_options(settings)


def plan(
    config: ConfigDict, frozen: dict, splits: dict, *, embeddings: bool, **changes
) -> files.Plan:
    """The plan of a cache of these sources (by split); changes: of Plan's fields.

    frozen: of `networks.frozen`; embeddings: those of its text tower are cached.
    """
    train = splits.get("train")
    return files.Plan(
        first_stage=fingerprint(frozen["first_stage"]),
        transform=options(config) | tower_print(frozen, embeddings),
        sources={name: listing(source) for name, source in splits.items()},
        lengths={name: len(source) for name, source in splits.items()},
        num_classes=datasets.num_classes(train),
        classes=datasets.label_names(config, train),
        mirrored=bool(config.data.flip),
        **changes,
    )


def listing(source) -> str:
    """A source's cheap fingerprint where it has one, else its fingerprint."""
    return getattr(source, "listing", None) or source.fingerprint


def tower_print(frozen: dict, embeddings: bool) -> dict:
    """{"text_tower": fingerprint} where the tower's output is cached, else nothing."""
    if not embeddings:
        return {}
    if "text" not in frozen:
        raise UserError("only a frozen text tower (config.text.kind 'clip') is cached")
    return {"text_tower": fingerprint(frozen["text"])}


def check_cache(config: ConfigDict, frozen: dict, plan: files.Plan) -> None:
    """UserError, showing both sides, if a cache was made by other weights or options.

    The source is not compared: it need not be there any more.
    """
    check_task(config)
    embeddings = "text_tower" in plan.transform
    now = dataclasses.replace(
        plan,
        first_stage=fingerprint(frozen["first_stage"]),
        transform=options(config) | tower_print(frozen, embeddings),
    )
    different = files.differences(plan, now)
    if different:
        raise UserError(
            f"config.data.path = {config.data.path!r} does not fit this config: "
            + "; ".join(different)
        )


class _Part:
    """Some examples of a source, each with its index there."""

    def __init__(self, source, indices: list[int]):
        self._source, self._indices = source, indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, i: int) -> dict:
        index = self._indices[i]
        return {**self._source[index], "index": np.int64(index)}


@dataclasses.dataclass(frozen=True)
class _WithIndex:
    """`Copies` that hands on the index, and makes an example's draws depend on it."""

    copies: files.Copies

    def __call__(self, example: dict, rng: np.random.Generator) -> dict:
        index = example.pop("index")
        rng = data_pipeline.example_rng(0, int(index), epoch=0)
        return {**self.copies(example, rng), "index": index}


class _Renumbered:
    """A ledger that is told positions in a part and notes the source's indices."""

    def __init__(self, ledger: Ledger, indices: list[int]):
        self._ledger, self._indices = ledger, indices

    @property
    def first(self) -> str:
        return self._ledger.first

    def add(self, skipped, *, examined: int) -> None:
        examples = [(self._indices[position], why) for position, why in skipped]
        self._ledger.add(examples, examined=examined)


def write_split(
    path: Path,
    plan: files.Plan,
    split: str,
    *,
    source,
    codec: Codec,
    params,
    row: files.Copies,
    tower: tuple[Callable, Any] | None = None,
    batch_size: int = BATCH_SIZE,
    num_workers: int = 0,
    ledger: Ledger | None = None,
    process: tuple[int, int] = (0, 1),
) -> int:
    """Encode the shards of a split that are missing; how many examples were encoded.

    process: (index, count) of those that share the work. UserError if the batch does
    not divide the shard.
    """
    if plan.shard_size % batch_size:
        raise UserError(
            f"shards of {plan.shard_size} examples do not divide into batches of "
            f"{batch_size}"
        )
    mine = range(process[0], plan.num_shards(split), process[1])
    todo = [i for i in mine if not files.shard_folder(path, split, i).is_dir()]
    if there := len(mine) - len(todo):
        log.info("%s: %d of %d shards are there", split, there, len(mine))
    indices = [index for shard in todo for index in plan.range(split, shard)]
    if not indices:
        return 0
    batches = encoded_batches(
        codec,
        params,
        _Part(source, indices),
        _WithIndex(row),
        batch_size=batch_size,
        tower=tower,
        num_workers=num_workers,
        ledger=_Renumbered(ledger or Ledger(len(source)), indices),
    )
    kind, parts = files.DTYPES[plan.dtype], []
    progress = Progress(split, len(indices))
    for batch in batches:
        shard = int(batch["index"][0]) // plan.shard_size
        while todo[0] != shard:
            _finish(path, split, todo.pop(0), parts, kind)
            parts = []
        parts.append(batch)
        progress.add(batch_size)
    for shard in todo:
        _finish(path, split, shard, parts, kind)
        parts = []
    return len(indices)


def _finish(path: Path, split: str, shard: int, parts: list[Batch], kind) -> None:
    names = [name for name in (parts[0] if parts else ()) if name != "index"]
    whole = {name: np.concatenate([part[name] for part in parts]) for name in names}
    for name, values in whole.items():
        if values.dtype == np.float32:
            whole[name] = values.astype(kind)
    files.write_shard(files.shard_folder(path, split, shard), whole)


class Progress:
    """A line now and then: how far, how fast, how long still."""

    def __init__(self, name: str, total: int):
        self.name, self.total, self.done = name, total, 0
        self.started = self.logged = time.perf_counter()

    def add(self, count: int) -> None:
        """Note that `count` more are done."""
        self.done = min(self.total, self.done + count)
        now = time.perf_counter()
        if self.done < self.total and now - self.logged < LOG_EVERY_SECS:
            return
        self.logged, rate = now, self.done / max(now - self.started, 1e-9)
        minutes, secs = divmod(round((self.total - self.done) / rate), 60)
        done = f"{self.done}/{self.total} ({100 * self.done / self.total:.0f} %)"
        eta = f"eta {minutes}m{secs:02d}s"
        log.info(f"{self.name} {done} {rate:.1f} img/s {eta}")
