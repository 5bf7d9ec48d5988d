"""One row of examples over several hosts, read by real worker processes.

Hosts are loaders of their own shard, as `experiment` makes them; each has worker
processes. What they should read together is stated by the permutation of the epoch, not
by an earlier output.
"""

import json

import numpy as np
import pytest

from lDM_jax.data.pipeline import loader
from lDM_jax.data.sources import ArraySource

COUNT, GLOBAL_BATCH = 24, 6


def draw(example, rng):
    """The example with a number of its generator."""
    return {**example, "draw": rng.integers(2**62)}


class Hosts:
    """Loaders of all shards, read in step."""

    def __init__(self, count, *, seed=11, num_workers=1, state=None):
        self.loaders = [
            loader(
                ArraySource({"index": np.arange(COUNT)}),
                draw,
                batch_size=GLOBAL_BATCH // count,
                seed=seed,
                shard_index=shard,
                shard_count=count,
                num_workers=num_workers,
            )
            for shard in range(count)
        ]
        for each in self.loaders if state else ():
            each.set_state(json.loads(json.dumps(state)))

    def read(self, batches):
        """(indices, draws) of the global row, in its order."""
        rows = {"index": [], "draw": []}
        for _ in range(batches):
            parts = [next(each) for each in self.loaders]
            for key, row in rows.items():
                row += np.concatenate([part[key] for part in parts]).tolist()
        return rows["index"], rows["draw"]

    def close(self):
        for each in self.loaders:
            each.close()


@pytest.fixture(scope="module")
def one_host():
    """Two epochs and a half, of one host without workers."""
    hosts = Hosts(1, num_workers=0)
    yield hosts.read(10)
    hosts.close()


def cases(*rows):
    """Without worker processes all, with them the first; the others are slow."""
    workers = [(*row, 1) for row in rows]
    slow = [pytest.param(*row, marks=pytest.mark.slow) for row in workers[1:]]
    return [*[(*row, 0) for row in rows], workers[0], *slow]


@pytest.mark.parametrize("count, num_workers", cases((2,), (1,), (3,)))
def test_every_example_once_an_epoch_in_the_order_of_the_seed(
    one_host, count, num_workers
):
    hosts = Hosts(count, num_workers=num_workers)
    indices, draws = hosts.read(8)
    hosts.close()
    for epoch in range(2):
        part = slice(epoch * COUNT, (epoch + 1) * COUNT)
        assert sorted(indices[part]) == list(range(COUNT))
    assert indices[:COUNT] != indices[COUNT:]
    assert indices == one_host[0][: 2 * COUNT]
    assert draws == one_host[1][: 2 * COUNT]


@pytest.mark.parametrize(
    "before, after, num_workers", cases((2, 1), (2, 2), (1, 1), (1, 3))
)
def test_resuming_inside_an_epoch_goes_on_with_the_same_row(
    one_host, before, after, num_workers
):
    hosts = Hosts(before, num_workers=num_workers)
    done, _ = hosts.read(3)
    states = [each.get_state() for each in hosts.loaders]
    hosts.close()
    assert all(state == states[0] for state in states)
    resumed = Hosts(after, state=states[0], num_workers=num_workers)
    rest, draws = resumed.read(7)
    resumed.close()
    assert done + rest == one_host[0]
    assert draws == one_host[1][len(done) :]


def test_another_seed_is_another_order(one_host):
    hosts = Hosts(1, seed=12, num_workers=0)
    assert hosts.read(10)[0] != one_host[0]
    hosts.close()
