"""Source and transform -> batches, with grain: shuffle, shard, batch, resume.

Training reads one endless sequence of examples: the epochs one after the other, each
in its own order. Position p of that sequence holds example `index` of epoch p //
len(source) and its random generator is default_rng((seed, index, epoch)): nothing an
example meets depends on the batch size, on the shard or on the number of workers. Batch
k of shard s of S is the positions [(k S + s) B, (k S + s + 1) B), so that the shards'
batches one after the other are those of one process with batches of B S, row by row.
Batches run over the end of an epoch; no example is left out.

The state of a loader is the number of its next batch. Owns grain.

An example that raises BadExample is replaced by the next good one of the source, so
that a resumed run sees what the uninterrupted one would have seen; evaluation leaves it
out. `bad_examples.Ledger` counts and lists them.
"""

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import grain
import numpy as np
from absl import flags

from lDM_jax.core.errors import BadExample, UserError
from lDM_jax.data.bad_examples import Ledger
from lDM_jax.data.transforms import Example, Transform

PREFETCH_BATCHES = 2
READ_THREADS = min(4, os.cpu_count() or 1)
SKIPPED, ERROR = "_skipped", "_error"  # keys of what workers report
MOST_SKIPPED = 1000


class Source(Protocol):
    """What the pipeline needs from a source."""

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> Example: ...


def example_rng(seed: int, index: int, *, epoch: int) -> np.random.Generator:
    """The generator of one example in one epoch."""
    return np.random.default_rng((seed, index, epoch))


def stack(examples: list[Example]) -> dict[str, np.ndarray]:
    """Equal keys, equal shapes -> one array a key with a leading batch axis.

    What `_Load` reports, skipped examples and errors, becomes JSON in arrays of bytes;
    with an error there is nothing else.
    """
    errors = [example[ERROR] for example in examples if ERROR in example]
    skipped = [item for example in examples for item in example.pop(SKIPPED, ())]
    if errors:
        return {ERROR: _pack_list(errors), SKIPPED: _pack_list(skipped)}
    keys = examples[0].keys()
    batch = {key: np.stack([example[key] for example in examples]) for key in keys}
    if skipped:
        batch[SKIPPED] = _pack_list(skipped)
    return batch


def _pack_list(items: Iterable) -> np.ndarray:
    """A list as an array of bytes, since worker processes hand over arrays only."""
    return np.frombuffer(json.dumps(list(items)).encode(), np.uint8)


def _pop_list(batch: dict[str, np.ndarray], key: str) -> list:
    """Remove a key that `_pack_list` made from the batch; returns its list."""
    packed = batch.pop(key, None)
    return [] if packed is None else json.loads(packed.tobytes())


@dataclass(frozen=True)
class _Load:
    """(position, index) -> the transformed example; called in the loader's workers."""

    source: Source
    transform: Transform
    seed: int

    def __call__(self, position: int, index: int) -> Example:
        epoch, skipped = position // len(self.source), []
        for step in range(len(self.source)):
            candidate = (int(index) + step) % len(self.source)
            rng = example_rng(self.seed, int(index), epoch=epoch)
            try:
                example = self.transform(self.source[candidate], rng)
            except BadExample as error:
                skipped.append((candidate, str(error)))
                if len(skipped) > MOST_SKIPPED:
                    break
                continue
            except UserError as error:  # a worker process would re-raise another type
                return {ERROR: str(error)}
            return {**example, SKIPPED: skipped} if skipped else example
        reason = f"{len(skipped)} examples one after the other cannot be used: "
        reason += f"{skipped[0][1]}; {skipped[-1][1]}"
        return {ERROR: reason, SKIPPED: skipped}


class Batches:
    """Iterator over batches that can be stopped and continued: see `loader`.

    `get_state()` is a dict that JSON can hold. `set_state(state)` continues exactly
    where a loader of the same seed and global batch size was, also with another number
    of shards or workers.
    """

    def __init__(self, dataset: grain.MapDataset, *, num_workers: int, ledger: Ledger):
        self._dataset, self._ledger = dataset, ledger
        self._num_workers = num_workers
        self._next_batch, self._iterator = 0, None

    def __iter__(self) -> "Batches":
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        if self._iterator is None:
            self._iterator = self._start()
        batch = next(self._iterator)
        self._next_batch += 1
        if self._num_workers:
            # Workers hand over shared memory, which grain takes back when it likes.
            batch = {key: np.array(value) for key, value in batch.items()}
        skipped, errors = _pop_list(batch, SKIPPED), _pop_list(batch, ERROR)
        rows = 0 if errors else len(next(iter(batch.values())))
        self._ledger.add(skipped, examined=rows)
        if errors:
            raise UserError(errors[0])
        return batch

    def _start(self) -> Iterator[dict[str, np.ndarray]]:
        if self._next_batch >= len(self._dataset):
            return iter(())
        return _iterate(self._dataset[self._next_batch :], self._num_workers)

    def get_state(self) -> dict[str, int]:
        """The number of the batch that `next` will give."""
        return {"next_batch": self._next_batch}

    def set_state(self, state: dict[str, int]) -> None:
        """Continue with the batch that `get_state` named."""
        self.close()
        self._next_batch = int(state["next_batch"])

    def close(self) -> None:
        """Stop threads and workers. Iteration may go on; it starts them again."""
        if hasattr(self._iterator, "close"):
            self._iterator.close()
        self._iterator = None


def _iterate(dataset: grain.MapDataset, num_workers: int) -> Iterator:
    """A dataset's elements in order, prefetched by threads or by processes.

    Threads hand over without a copy, and PIL decodes and resizes outside the
    interpreter's lock; processes pay off where there are many cores.
    """
    threads = 1 if num_workers else READ_THREADS
    buffer = max(threads, PREFETCH_BATCHES)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=buffer)
    dataset = dataset.to_iter_dataset(options)
    if num_workers:
        if not flags.FLAGS.is_parsed():
            # Grain's workers need absl's flags, also in notebooks and tests.
            flags.FLAGS.mark_as_parsed()
        workers = grain.MultiprocessingOptions(
            num_workers=num_workers, per_worker_buffer_size=PREFETCH_BATCHES
        )
        dataset = dataset.mp_prefetch(workers)
    return iter(dataset)


def loader(
    source: Source,
    transform: Transform,
    *,
    batch_size: int,
    seed: int,
    shuffle: bool = True,
    num_epochs: int | None = None,
    shard_index: int = 0,
    shard_count: int = 1,
    num_workers: int = 0,
    ledger: Ledger | None = None,
) -> Batches:
    """Batches for training; every example once per epoch, in the module's order.

    batch_size: examples a batch of this shard. The last ones of `num_epochs` epochs
        that fill no batch are dropped; with None the row does not end.
    seed: of the order and of the examples' generators, in [0, 2^32).
    num_workers: processes that load and transform; 0 is a few threads in this process.
        The batches are the same. Call `close()` when done.
    ledger: records the examples that cannot be used; without one they are counted.

    Raises UserError for an empty source, a shard that does not exist, or a batch that
    all epochs together cannot fill.
    """
    if batch_size < 1:
        raise UserError(f"batch_size is {batch_size}; it must be at least 1")
    if not 0 <= shard_index < shard_count:
        raise UserError(
            f"shard_index is {shard_index}; with shard_count {shard_count} it must lie "
            f"in [0, {shard_count})"
        )
    if not len(source):
        raise UserError("the source has no examples")
    dataset = grain.MapDataset.range(len(source))
    if shuffle:
        # Grain's epoch e is shuffled with seed + e. Spread the seeds, so that a run's
        # second epoch is not the first of the run with the next seed.
        spread = np.random.SeedSequence(seed).generate_state(1)[0]
        dataset = dataset.shuffle(seed=int(spread))
    dataset = dataset.repeat(num_epochs)
    dataset = dataset.map_with_index(_Load(source, transform, seed))
    if len(dataset) < batch_size * shard_count:
        raise UserError(
            f"batch_size is {batch_size} on each of {shard_count} shards, but there "
            f"are {len(dataset)} examples in all"
        )
    dataset = dataset.batch(batch_size, drop_remainder=True, batch_fn=stack)
    # as many batches for every shard
    dataset = dataset[: len(dataset) // shard_count * shard_count]
    dataset, ledger = dataset[shard_index::shard_count], ledger or Ledger(len(source))
    return Batches(dataset, num_workers=num_workers, ledger=ledger)


def batches_once(
    source: Source,
    transform: Transform,
    *,
    batch_size: int,
    num_workers: int = 0,
    ledger: Ledger | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """Batches for evaluation: each example once, in order, drawn as seed 0, epoch 0.

    Every batch has batch_size rows and the key `weight`, f32 {0, 1} "b": 1 for an
    example, 0 for the copies of the last one that fill the batch. Batch k is made of
    the examples [k B, (k + 1) B); those that cannot be used are left out, and so is a
    batch without any. UserError if there is none at all.
    """
    if batch_size < 1:
        raise UserError(f"batch_size is {batch_size}; it must be at least 1")
    ledger, total = ledger or Ledger(len(source)), 0
    for batch in _padded_batches(_Try(source, transform), batch_size, num_workers):
        batch = {key: np.array(value) for key, value in batch.items()}
        skipped, errors = _pop_list(batch, SKIPPED), _pop_list(batch, ERROR)
        if errors:
            raise UserError(errors[0])
        count = int(batch["weight"].sum()) if batch else 0
        ledger.add(skipped, examined=count + len(skipped))
        if count:
            total += count
            yield batch
    if len(source) and not total:
        raise UserError(f"none of {len(source)} examples can be used: {ledger.first}")


@dataclass(frozen=True)
class _Try:
    """index -> the transformed example, or what is wrong with it."""

    source: Source
    transform: Transform

    def __call__(self, index: int) -> Example:
        try:
            rng = example_rng(0, int(index), epoch=0)
            return self.transform(self.source[int(index)], rng)
        except BadExample as error:
            return {SKIPPED: [(int(index), str(error))]}
        except UserError as error:
            return {ERROR: str(error)}


@dataclass(frozen=True)
class _Pad:
    """The usable examples of a part, filled up to batch_size, with their weights."""

    batch_size: int

    def __call__(self, examples: list[Example]) -> dict[str, np.ndarray]:
        errors = [example[ERROR] for example in examples if ERROR in example]
        if errors:
            return {ERROR: _pack_list(errors)}
        good = [example for example in examples if SKIPPED not in example]
        skipped = [item for example in examples for item in example.get(SKIPPED, ())]
        padding, batch = self.batch_size - len(good), {}
        if good:
            batch = stack(good + good[-1:] * padding)
            batch["weight"] = np.array([1.0] * len(good) + [0.0] * padding, np.float32)
        if skipped:
            batch[SKIPPED] = _pack_list(skipped)
        return batch


def _padded_batches(load: _Try, batch_size: int, num_workers: int) -> Iterator[dict]:
    pad, count = _Pad(batch_size), len(load.source)
    if not num_workers:
        for start in range(0, count, batch_size):
            yield pad([load(i) for i in range(start, min(start + batch_size, count))])
        return
    dataset = grain.MapDataset.range(count).map(load).batch(batch_size, batch_fn=pad)
    iterator = _iterate(dataset, num_workers)
    try:
        yield from iterator
    finally:
        if hasattr(iterator, "close"):
            iterator.close()
