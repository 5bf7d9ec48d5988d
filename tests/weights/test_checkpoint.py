"""Checkpoints: what is saved, what a damaged or full disk may do, where arrays live."""

import errno
import json
import logging
import math
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from lDM_jax.core.errors import UserError
from lDM_jax.core.sharding import check_batch_size, make_mesh, state_sharding
from lDM_jax.training import loop
from lDM_jax.training.optim import make_optimizer
from lDM_jax.training.state import TrainState, ema_update
from lDM_jax.weights.checkpoint import (
    Checkpoints,
    Keep,
    checksums,
    in_one_line,
    load_ema,
    load_state,
)
from tests import toy_run

CONFIG = {"seed": 0, "train": {"num_steps": 20}}


def state_of(seed, rows=64):
    """A state whose numbers do not compress, so that every stored byte matters."""
    optimizer, _ = make_optimizer(learning_rate=0.1, clip_norm=1.0)
    w = jax.random.normal(jax.random.key(seed), (rows, 1024))
    params = {"w": w, "b": jnp.ones((7,), jnp.bfloat16), "flag": jnp.int32(seed)}
    return TrainState.create(params, optimizer)


def abstract_of(state, mesh):
    rules = state_sharding(mesh, state)
    return jax.tree.map(
        lambda x, rule: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=rule),
        state,
        rules,
    )


def as_bytes(tree):
    """Every leaf's bytes by name; copies, so that donation cannot change them."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(p): np.array(x).tobytes() for p, x in leaves}


@pytest.fixture
def mesh():
    return make_mesh()


@pytest.fixture
def saved(tmp_path):
    """Checkpoints 10 and 20 of different numbers, closed."""
    checkpoints = Checkpoints(tmp_path)
    for step in (10, 20):
        checkpoints.save(step, state_of(step), {"next": step}, CONFIG)
    checkpoints.close()
    return tmp_path


def numbers_file(workdir, step):
    """The file with the numbers of a checkpoint's largest leaves."""
    files = (workdir / "checkpoints" / str(step) / "state").rglob("d/*")
    return max(files, key=lambda path: path.stat().st_size)


def flip(path):
    """One bit in every sixteenth of the file, so that each large leaf has some."""
    content = bytearray(path.read_bytes())
    for part in range(1, 16):
        content[len(content) * part // 16] ^= 0x10
    path.write_bytes(content)


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def restore(workdir, mesh):
    checkpoints = Checkpoints(workdir)
    try:
        return checkpoints.restore_latest(abstract_of(state_of(0), mesh))
    finally:
        checkpoints.close()


def test_newest_comes_back_bit_for_bit_with_its_data_position(saved, mesh):
    state, iterator, guard, step = restore(saved, mesh)
    assert as_bytes(state) == as_bytes(state_of(20))
    assert (iterator, guard, step) == ({"next": 20}, None, 20)
    assert list((saved / "checkpoints" / "20" / "config").iterdir())


@pytest.mark.parametrize(
    ("keep", "left"),
    [
        (Keep(2), [5, 6]),
        (Keep(1, every_steps=3), [3, 6]),
        # held out: 5, 1, -, nan, 2, 9
        (Keep(1, best=2, metric="psnr"), [2, 5, 6]),
        (Keep(1, best=1, metric="psnr", mode="max"), [6]),
        (Keep(1, every_steps=4, best=1, metric="psnr"), [2, 4, 6]),
    ],
)
def test_what_stays(keep, left, tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=keep)
    values = {1: 5.0, 2: 1.0, 4: math.nan, 5: 2.0, 6: 9.0}
    for step in range(1, 7):
        metrics = {"psnr": values[step]} if step in values else None
        state = {"w": jnp.full((4,), float(step))}
        checkpoints.save(step, state, {}, CONFIG, metrics=metrics)
        if step == 4:  # the metrics of the first ones come back from the disk
            checkpoints.close()
            checkpoints = Checkpoints(tmp_path, keep=keep)
    checkpoints.close()
    assert checkpoints.steps() == left


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (dict(latest=0), "keep_checkpoints = 0"),
        (dict(best=-1), "keep_best = -1"),
        (dict(mode="least"), "'min', 'max'"),
    ],
)
def test_impossible_rules_are_refused(wrong, message):
    with pytest.raises(UserError, match=message):
        Keep(**wrong)


def test_a_state_may_be_donated_while_it_is_written(tmp_path, mesh):
    """On a CPU the host's copy of an array may be the array itself."""
    advance = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
    state = state_of(1, rows=4096)
    expected = as_bytes(state)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state, {}, CONFIG)
    for _ in range(20):
        state = advance(state)
    checkpoints.wait()
    abstract = abstract_of(state_of(1, rows=4096), mesh)
    assert as_bytes(checkpoints.restore_latest(abstract)[0]) == expected
    checkpoints.close()


@pytest.mark.parametrize("damage", [cut, flip, Path.unlink])
def test_a_damaged_newest_checkpoint_falls_back(damage, saved, mesh, caplog):
    damage(numbers_file(saved, 20))
    ema = load_ema(saved)
    assert (saved / "checkpoints" / "20").is_dir()  # reading moves nothing
    state, iterator, _, step = restore(saved, mesh)
    assert as_bytes(state) == as_bytes(state_of(10))
    assert as_bytes(ema) == as_bytes(state_of(10).ema)
    assert (iterator, step) == ({"next": 10}, 10)
    assert "checkpoint 20 is damaged" in caplog.text
    assert os.listdir(saved / "damaged_checkpoints") == ["20"]


def test_no_whole_checkpoint_is_no_reason_to_start_again(saved, mesh):
    for step in (10, 20):
        cut(numbers_file(saved, step))
    with pytest.raises(UserError, match=r"none of the checkpoints \[10, 20\]") as error:
        restore(saved, mesh)
    assert "\n" not in str(error.value) and len(str(error.value)) < 600
    assert sorted(os.listdir(saved / "checkpoints")) == ["10", "20"]
    assert not (saved / "damaged_checkpoints").exists()


def test_a_checkpoint_from_before_checksums_is_accepted(saved, mesh):
    for item in ("checksums", "config"):
        shutil.rmtree(saved / "checkpoints" / "20" / item)
    assert restore(saved, mesh).step == 20
    assert as_bytes(load_state(saved)["params"]) == as_bytes(state_of(20).params)


def test_what_a_killed_save_left_behind_is_removed(saved, mesh):
    rest = saved / "checkpoints" / "30.orbax-checkpoint-tmp" / "state"
    rest.mkdir(parents=True)
    assert restore(saved, mesh).step == 20
    assert sorted(os.listdir(saved / "checkpoints")) == ["10", "20"]


def test_a_checksum_sums_words_and_changes_with_any_bit():
    w = np.array([1.0, 2.0, -3.0], np.float32)
    words = [0x3F800000, 0x40000000, 0xC0400000]  # IEEE 754
    assert checksums({"w": jnp.asarray(w)}) == {"w": sum(words) % 2**32}
    assert checksums({"w": jnp.asarray(-w)}) != checksums({"w": jnp.asarray(w)})


def test_large_arrays_are_split_and_restore_on_another_mesh(saved, mesh):
    split = make_mesh(data=2, fsdp=4)
    state = restore(saved, split).state
    assert state.params["w"].sharding.spec == P(None, "fsdp")
    assert state.params["b"].sharding.spec == P()
    assert state.params["w"].addressable_shards[0].data.shape == (64, 256)
    assert as_bytes(state) == as_bytes(state_of(20))
    assert checksums(state) == checksums(state_of(20))


def test_orbax_is_silent_and_others_are_not(tmp_path, mesh, caplog):
    with caplog.at_level(logging.DEBUG):
        checkpoints = Checkpoints(tmp_path)
        checkpoints.save(1, state_of(1), {}, CONFIG)
        checkpoints.restore_latest(abstract_of(state_of(1), mesh))
        checkpoints.close()
        logging.getLogger("absl").warning("someone else's")
    texts = [r.getMessage() for r in caplog.records if r.name in ("absl", "root")]
    assert texts == ["someone else's"]


LIMITED = """
import logging, resource, sys
from tests import toy_run
from lDM_jax.core import sharding
from lDM_jax.training import loop
from lDM_jax.weights.checkpoint import quiet_orbax
logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
quiet_orbax()
experiment = toy_run.experiment(toy_run.config(log_every_steps=1, num_steps=60))
rows = experiment.iterator
fetch = type(rows).__next__
def limited(self):
    if self.next == 25:
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), hard))
    return fetch(self)
type(rows).__next__ = limited
try:
    loop.run(experiment, sys.argv[1], mesh=sharding.make_mesh())
except toy_run.UserError as error:
    sys.exit(f"USER {error}")
"""


def run_limited(workdir, limit):
    """A run whose files may not grow beyond `limit` bytes from step 25 on."""
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.run(
        [sys.executable, "-c", LIMITED, str(workdir), str(limit)],
        env=env,
        capture_output=True,
        text=True,
        timeout=60,  # tensorboardX's own writer hangs here
    )


def test_a_disk_that_fills_up_ends_the_run_in_one_line(tmp_path):
    result = run_limited(tmp_path / "run", 3000)
    assert result.returncode == 1
    assert result.stderr.startswith("USER ") and result.stderr.count("\n") == 1
    assert "File too large" in result.stderr
    assert "the last whole checkpoint is intact" in result.stderr
    assert {"10", "20"} <= set(os.listdir(tmp_path / "run" / "checkpoints"))


@pytest.mark.parametrize("surfaces_in", ["save", "wait"])
def test_a_failed_background_write_surfaces_in_one_line(surfaces_in, tmp_path, mesh):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state_of(1), {}, CONFIG)
    checkpoints.wait()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(UserError, match="File too large") as error:
            checkpoints.save(2, state_of(2), {}, CONFIG)
            if surfaces_in == "save":
                checkpoints.save(3, state_of(3), {}, CONFIG)
            checkpoints.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    text = str(error.value)
    assert "\n" not in text and "whole checkpoint is intact" in text
    checkpoints.close()
    state, _, _, step = restore(tmp_path, mesh)
    assert step == 1 and as_bytes(state) == as_bytes(state_of(1))


def test_a_long_error_leads_with_the_systems_reason():
    text = f"{'w' * 300} [os_error_code='{errno.ENOSPC}'] {'settings ' * 300}"
    line = in_one_line(ValueError(text))
    assert line.startswith("No space left on device: ") and len(line) < 300
    assert in_one_line(KeyError()) == "KeyError"


def run_here(workdir, **changes):
    experiment = toy_run.experiment(toy_run.config(**changes))
    return loop.run(experiment, str(workdir), mesh=make_mesh())


def test_a_signal_at_a_bad_loss_saves_the_state_before(tmp_path, monkeypatch):
    fetch = toy_run.Rows.__next__

    def fetch_and_stop(self):
        if self.next == 13:
            os.kill(os.getpid(), signal.SIGTERM)
        return fetch(self)

    monkeypatch.setattr(toy_run.Rows, "__next__", fetch_and_stop)
    run_here(tmp_path, nan_at_step=14, log_every_steps=50)
    state = load_state(tmp_path)
    assert (
        int(state["step"]) == 14
        and sorted(os.listdir(tmp_path / "checkpoints"))[-1] == "14"
    )
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))
    assert int(state["opt_state"][0]["count"]) == 13  # updates that happened
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_the_last_step_is_saved_whatever_the_interval(tmp_path):
    run_here(tmp_path / "never", checkpoint_every_steps=0, num_steps=7)
    assert os.listdir(tmp_path / "never" / "checkpoints") == ["7"]


def test_speed_is_measured_also_at_steps_that_look(tmp_path, caplog):
    with caplog.at_level("INFO"):
        run_here(tmp_path, num_steps=20, eval_every_steps=10, checkpoint_every_steps=15)
    lines = [r.message for r in caplog.records if r.message.startswith("step")]
    assert len(lines) == 2 and not [line for line in lines if " 0.00 it/s" in line]


def test_the_best_checkpoint_by_an_evaluation_stays(tmp_path):
    """Past the minimum of a rate that is too large nothing gets better than the start,
    so that the best of the run is not among its newest."""
    run_here(
        tmp_path,
        num_steps=50,
        eval_every_steps=10,
        keep_checkpoints=1,
        keep_best=1,
    )
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    values = {r["step"]: r["eval_distance"] for r in records if "eval_distance" in r}
    best = min(values, key=values.get)
    assert sorted(values) == [10, 20, 30, 40, 50]
    kept = sorted(int(name) for name in os.listdir(tmp_path / "checkpoints"))
    assert kept == sorted({best, 50})


def test_best_needs_a_measured_metric(tmp_path):
    with pytest.raises(UserError, match="'fid' is not measured; valid: distance"):
        run_here(
            tmp_path, num_steps=10, eval_every_steps=5, keep_best=1, best_metric="fid"
        )
    with pytest.raises(UserError, match="needs eval_every_steps above 0"):
        run_here(tmp_path / "b", num_steps=10, keep_best=1)


def test_a_batch_that_does_not_split_is_refused_before_anything_is_made(tmp_path, mesh):
    check_batch_size(mesh, 3 * mesh.size)
    with pytest.raises(UserError, match=f"multiples of {mesh.size}"):
        run_here(tmp_path / "run", batch_size=mesh.size + 1)
    assert not (tmp_path / "run").exists()


def test_ema_warms_up_as_the_original_and_forgets_geometrically():
    """From e_0 to a constant p, the distance is the product of the decays."""
    ema, decays = {"w": jnp.zeros(2)}, []
    for n in range(1, 200):
        ema = ema_update(ema, {"w": jnp.ones(2)}, 0.9, n)
        decays.append(min(0.9, (1 + n) / (10 + n)))  # LitEma.forward, num_updates = n
        np.testing.assert_allclose(1 - ema["w"], math.prod(decays), atol=3e-6)


def test_decay_mask_spares_vectors():
    """With zero gradients AdamW only decays: p <- p - rate * weight_decay * p."""
    params = {"w": jnp.ones((2, 3)), "b": jnp.ones(3)}
    zeros = jax.tree.map(jnp.zeros_like, params)
    for mask, b in (("matrices", 1.0), ("all", 0.98)):
        optimizer, _ = make_optimizer(
            learning_rate=0.1, weight_decay=0.2, decay_mask=mask
        )
        updates, _ = optimizer.update(zeros, optimizer.init(params), params)
        after = jax.tree.map(jnp.add, params, updates)
        np.testing.assert_allclose(after["w"], 0.98, rtol=1e-6)
        np.testing.assert_allclose(after["b"], b, rtol=1e-6)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"learning_rate": 0.0}, "learning_rate = 0.0; it must be above 0"),
        ({"b2": 1.0}, "b2"),
        ({"clip_norm": -1.0}, "clip_norm"),
        ({"decay_mask": "biases"}, "all, matrices"),
        ({"name": "adam", "weight_decay": 0.1}, "adamw"),
    ],
)
def test_impossible_optimizers_are_refused(wrong, message):
    with pytest.raises(UserError, match=message):
        make_optimizer(**{"learning_rate": 0.1, **wrong})
