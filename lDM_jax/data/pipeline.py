"""Source and transform -> batches, with grain: shuffle, shard, batch, resume.

Training reads one endless row of examples: the epochs one after the other, each in an
order of its own. Position p of that row holds example `index` of epoch p // len(source)
and its random generator is default_rng((seed, index, epoch)): nothing an example meets
depends on the batch size, on the shard or on the number of workers. Shard s of S reads
the positions s, s + S, s + 2 S, ..., so batch k of all shards together is the positions
[k B S, (k + 1) B S), whatever S is, for the same B S. Batches run over the end of an
epoch; no example is left out.

The state of a loader is the number of its next batch. Owns grain.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import grain
import numpy as np
from absl import flags

from lDM_jax.data.transforms import Example, Transform
from lDM_jax.errors import UserError

PREFETCH_BATCHES = 2


class Source(Protocol):
    """What the pipeline needs of a source."""

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> Example: ...


def example_rng(seed: int, index: int, *, epoch: int) -> np.random.Generator:
    """The generator of one example in one epoch."""
    return np.random.default_rng((seed, index, epoch))


def stack(examples: list[Example]) -> dict[str, np.ndarray]:
    """Equal keys, equal shapes -> one array a key with a leading batch axis."""
    keys = examples[0].keys()
    return {key: np.stack([example[key] for example in examples]) for key in keys}


@dataclass(frozen=True)
class _Load:
    """(position, index) -> the transformed example; called in the loader's workers."""

    source: Source
    transform: Transform
    seed: int

    def __call__(self, position: int, index: int) -> Example:
        epoch = position // len(self.source)
        rng = example_rng(self.seed, int(index), epoch=epoch)
        return self.transform(self.source[int(index)], rng)


class Batches:
    """Iterator over batches that can be stopped and continued: see `loader`.

    `get_state()` is a dict that JSON can hold. `set_state(state)` continues exactly
    where a loader of the same seed and global batch size was, also with another number
    of shards or workers.
    """

    def __init__(self, dataset: grain.MapDataset, *, num_workers: int):
        self._dataset = dataset
        self._num_workers = num_workers
        self._next_batch = 0
        self._iterator = None

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
        return batch

    def _start(self) -> Iterator[dict[str, np.ndarray]]:
        if self._next_batch >= len(self._dataset):
            return iter(())
        # One thread makes the next batches while the device works on this one.
        options = grain.ReadOptions(
            num_threads=1, prefetch_buffer_size=PREFETCH_BATCHES
        )
        dataset = self._dataset[self._next_batch :].to_iter_dataset(options)
        if self._num_workers:
            if not flags.FLAGS.is_parsed():
                # Grain's workers ask absl for its flags, also where absl does not run
                # the program: in a notebook, in a test.
                flags.FLAGS.mark_as_parsed()
            dataset = dataset.mp_prefetch(
                grain.MultiprocessingOptions(
                    num_workers=self._num_workers,
                    per_worker_buffer_size=PREFETCH_BATCHES,
                )
            )
        return iter(dataset)

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
) -> Batches:
    """Batches for training; every example once per epoch, in the module's order.

    batch_size: examples a batch of this shard. The last ones of `num_epochs` epochs
        that fill no batch are dropped; with None the row does not end.
    seed: of the order and of the examples' generators, in [0, 2^32).
    num_workers: processes that load and transform; 0 is one thread in this process. The
        batches are the same. Call `close()` when done.

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
    dataset = dataset[shard_index::shard_count]
    if len(dataset) < batch_size:
        raise UserError(
            f"batch_size is {batch_size}, but shard {shard_index} of {shard_count} has "
            f"{len(dataset)} examples in all"
        )
    dataset = dataset.batch(batch_size, drop_remainder=True, batch_fn=stack)
    return Batches(dataset, num_workers=num_workers)


def batches_once(
    source: Source, transform: Transform, *, batch_size: int
) -> Iterator[dict[str, np.ndarray]]:
    """Batches for evaluation: each example once, in order, drawn as seed 0, epoch 0.

    Every batch has batch_size rows and the key `weight`, f32 {0, 1} "b": 1 for an
    example, 0 for the copies of the last one that fill the last batch.
    """
    if batch_size < 1:
        raise UserError(f"batch_size is {batch_size}; it must be at least 1")
    for start in range(0, len(source), batch_size):
        indices = range(start, min(start + batch_size, len(source)))
        examples = [
            transform(source[index], example_rng(0, index, epoch=0))
            for index in indices
        ]
        padding = batch_size - len(examples)
        weight = np.array([1.0] * len(examples) + [0.0] * padding, np.float32)
        yield {**stack(examples + examples[-1:] * padding), "weight": weight}
