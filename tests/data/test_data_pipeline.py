"""The loader: permutations, numpy's generators, and resuming.

None of the expectations is an earlier output of this code.
"""

import json
from collections import Counter

import numpy as np
import pytest

from lDM_jax.core.errors import UserError
from lDM_jax.data.pipeline import batches_once, loader
from lDM_jax.data.sources import ArraySource, EmojiSource
from lDM_jax.data.tokenizers import BertTokenizer
from lDM_jax.data.transforms import Composite, Keep, RandomFlip, Tokenize, compose


def draw(example, generator):
    """The example with what its generator gives first."""
    return {**example, "draw": generator.integers(2**62)}


def numbers(count):
    return ArraySource({"index": np.arange(count)})


def row(count, *, batch_size, shards, batches, **options):
    """The global row of indices that all shards read together."""
    options = {"seed": 5, **options}
    parts = []
    for shard in range(shards):
        iterator = loader(
            numbers(count),
            draw,
            batch_size=batch_size,
            shard_index=shard,
            shard_count=shards,
            **options,
        )
        parts.append([next(iterator)["index"] for _ in range(batches)])
        iterator.close()
    return np.stack(parts, axis=1).reshape(-1)


@pytest.mark.parametrize("shards", [1, 2, 3])
@pytest.mark.parametrize("count", [12, 13])
def test_every_epoch_of_all_shards_is_a_permutation(count, shards):
    indices = row(count, batch_size=2, shards=shards, batches=2 * count // shards)
    epochs = indices[: indices.size // count * count].reshape(-1, count)
    assert len(epochs) >= 3
    np.testing.assert_array_equal(
        np.sort(epochs, axis=1), np.broadcast_to(np.arange(count), epochs.shape)
    )
    assert len({tuple(epoch) for epoch in epochs}) == len(epochs)


def test_global_batches_do_not_depend_on_the_number_of_shards():
    one = row(13, batch_size=6, shards=1, batches=5)
    np.testing.assert_array_equal(one, row(13, batch_size=3, shards=2, batches=5))
    np.testing.assert_array_equal(one, row(13, batch_size=2, shards=3, batches=5))


def test_order_depends_on_the_seed_and_next_seed_is_no_shifted_copy():
    first = row(50, batch_size=50, shards=1, batches=2, seed=0).reshape(2, 50)
    second = row(50, batch_size=50, shards=1, batches=2, seed=1).reshape(2, 50)
    assert (first[0] != second[0]).any()
    assert (first[1] != second[0]).any()
    ordered = row(50, batch_size=50, shards=1, batches=2, shuffle=False)
    np.testing.assert_array_equal(ordered, np.tile(np.arange(50), 2))


def test_shuffle_is_global():
    """In a random permutation the mean distance of neighbors is about n / 3."""
    order = row(3000, batch_size=3000, shards=1, batches=1)
    assert 900 < np.abs(np.diff(order)).mean() < 1100


@pytest.mark.parametrize("shards", [1, 3])
def test_generator_of_an_example_is_that_of_seed_index_and_epoch(shards):
    iterator = loader(
        numbers(10), draw, batch_size=4, seed=9, shard_index=0, shard_count=shards
    )
    for number in range(6):
        batch = next(iterator)
        positions = shards * 4 * number + np.arange(4)
        for index, value, epoch in zip(
            batch["index"], batch["draw"], positions // 10, strict=True
        ):
            expected = np.random.default_rng((9, int(index), int(epoch)))
            assert value == expected.integers(2**62)
    iterator.close()


def same(batches, others):
    assert len(batches) == len(others)
    for batch, other in zip(batches, others, strict=True):
        assert batch.keys() == other.keys()
        for key in batch:
            np.testing.assert_array_equal(batch[key], other[key])


@pytest.mark.parametrize("stop", [0, 1, 3, 7])
def test_resumed_loader_gives_the_remaining_batches(stop):
    def make():
        return loader(numbers(13), draw, batch_size=4, seed=2)

    whole = make()
    batches = [next(whole) for _ in range(12)]
    broken = make()
    for _ in range(stop):
        next(broken)
    state = json.loads(json.dumps(broken.get_state()))
    again = make()
    again.set_state(state)
    assert again.get_state() == state
    same([next(again) for _ in range(12 - stop)], batches[stop:])
    # The same iterator can also be sent back.
    whole.set_state(state)
    same([next(whole) for _ in range(12 - stop)], batches[stop:])


def test_worker_process_gives_the_same_batches_and_state():
    source = EmojiSource(split="test", size_px=32)
    transform = compose(
        Composite("random"),
        RandomFlip(),
        Tokenize(BertTokenizer(max_length=12)),
        Keep(("image", "tokens", "label")),
    )
    alone = loader(source, transform, batch_size=4, seed=1)
    batches = [next(alone) for _ in range(5)]
    worker = loader(source, transform, batch_size=4, seed=1, num_workers=1)
    worker.set_state({"next_batch": 2})
    same([next(worker) for _ in range(3)], batches[2:])
    assert worker.get_state() == alone.get_state() == {"next_batch": 5}
    worker.close()
    image_batch = batches[0]["image"]
    assert image_batch.shape == (4, 32, 32, 3) and image_batch.dtype == np.float32
    assert batches[0]["tokens"].dtype == batches[0]["label"].dtype == np.int32


@pytest.mark.parametrize("shards", [1, 2])
def test_finite_epochs_end_and_drop_only_the_last_incomplete_batch(shards):
    counts = Counter()
    for shard in range(shards):
        iterator = loader(
            numbers(11),
            draw,
            batch_size=4,
            seed=0,
            num_epochs=2,
            shard_index=shard,
            shard_count=shards,
        )
        for batch in iterator:
            counts.update(batch["index"].tolist())
            assert batch["index"].shape == (4,)
        iterator.set_state(iterator.get_state())
        assert list(iterator) == []
    # 22 positions: 5 batches of 4 on one shard, 2 of 4 on each of two shards.
    assert counts.total() == {1: 20, 2: 16}[shards]
    assert max(counts.values()) <= 2


def test_loader_errors_name_the_value():
    with pytest.raises(UserError, match="batch_size is 0"):
        loader(numbers(4), draw, batch_size=0, seed=0)
    with pytest.raises(UserError, match=r"shard_index is 2; .* \[0, 2\)"):
        loader(numbers(4), draw, batch_size=1, seed=0, shard_index=2, shard_count=2)
    with pytest.raises(UserError, match="no examples"):
        loader(numbers(0), draw, batch_size=1, seed=0)
    with pytest.raises(UserError, match="there are 4 examples in all"):
        loader(numbers(4), draw, batch_size=5, seed=0, num_epochs=1)


@pytest.mark.parametrize("count, batch_size", [(12, 4), (13, 4), (3, 4)])
def test_batches_once_gives_each_example_once_in_order(count, batch_size):
    batches = list(batches_once(numbers(count), draw, batch_size=batch_size))
    assert len(batches) == -(-count // batch_size)
    weight = np.concatenate([batch["weight"] for batch in batches])
    indices = np.concatenate([batch["index"] for batch in batches])
    assert weight.dtype == np.float32 and weight.size == len(batches) * batch_size
    np.testing.assert_array_equal(indices[weight == 1], np.arange(count))
    assert weight.sum() == count and set(weight) <= {0.0, 1.0}
