"""Every fault ends with one clear line and an intact last checkpoint."""

import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from lDM_jax.core.errors import UserError
from lDM_jax.training.workdir import WorkDirectory, compare
from lDM_jax.weights.checkpoint import load_state
from tests import toy_run
from tests.programs import ROOT, environment, wait_for
from tests.training.running import final_state, finish, run_here, start

LOCK = """
import os, subprocess, sys, time
from pathlib import Path
from ml_collections import ConfigDict
from lDM_jax.training.workdir import WorkDirectory
with WorkDirectory(Path(sys.argv[1]), ConfigDict({"seed": 0})):
    child = os.fork()  # as a loader's workers may be
    if child:
        print(child, flush=True)
    time.sleep(600)
"""


def records(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def at_batch(number, action, monkeypatch):
    """Do something when the toy's data is asked for batch `number`."""
    fetch = toy_run.Rows.__next__

    def fetch_and_act(self):
        if self.next == number:
            action()
        return fetch(self)

    monkeypatch.setattr(toy_run.Rows, "__next__", fetch_and_act)


def test_one_bad_loss_is_skipped_counted_and_forgotten(tmp_path, caplog):
    with caplog.at_level("INFO"):
        run_here(tmp_path / "run", nan_at_step=17, num_steps=30)
    assert "skipped 1 update up to step 20" in caplog.text
    assert [r["skipped"] for r in records(tmp_path / "run")] == [0, 1, 1]
    shown = [r.message for r in caplog.records if r.message.startswith("step")]
    assert ["skipped" in line for line in shown] == [False, True, True]
    state = load_state(tmp_path / "run")
    assert int(state["step"]) == 30 and int(state["opt_state"][0]["count"]) == 29


def test_the_count_survives_a_restart(tmp_path, caplog):
    run_here(tmp_path / "run", nan_at_step=7, num_steps=20)
    caplog.clear()
    with caplog.at_level("WARNING"):
        run_here(tmp_path / "run", nan_at_step=7, num_steps=30)
    assert records(tmp_path / "run")[-1]["skipped"] == 1
    assert "skipped" not in caplog.text  # it was said before


def test_a_loss_that_stays_bad_ends_the_run_after_writing_everything(tmp_path):
    workdir = tmp_path / "run"
    with pytest.raises(UserError, match="5 updates in a row|in a row were sk") as error:
        run_here(workdir, nan_at_step=13, nan_steps=1000)
    text = str(error.value)
    assert "\n" not in text and "the last checkpoint is of step 10" in text
    assert sorted(os.listdir(workdir / "checkpoints")) == ["10"]
    last = records(workdir)[-1]
    assert last["step"] == 20 and last["loss"] is None and last["skipped"] == 8
    (step,) = os.listdir(workdir / "post_mortem")
    shutil.copytree(workdir / "post_mortem", tmp_path / "look" / "checkpoints")
    state = load_state(tmp_path / "look")
    assert int(state["step"]) == int(step) >= 20
    # ... it is the state of step 12: twelve updates happened
    assert int(state["opt_state"][0]["count"]) == 12
    run_here(tmp_path / "whole", num_steps=12)
    expected = load_state(tmp_path / "whole")
    np.testing.assert_array_equal(state["params"]["w"], expected["params"]["w"])


def test_a_vanished_work_directory_ends_the_run(tmp_path, monkeypatch):
    workdir, moved = tmp_path / "run", tmp_path / "moved"

    def move():
        wait_for((workdir / "checkpoints" / "10").exists)
        workdir.rename(moved)

    at_batch(14, move, monkeypatch)
    with pytest.raises(UserError, match="vanished or was replaced") as error:
        run_here(workdir)
    assert "\n" not in str(error.value)
    assert final_state(moved)[1] == 10


def test_a_replaced_work_directory_is_not_written(tmp_path, monkeypatch):
    workdir = tmp_path / "run"

    def replace():
        wait_for((workdir / "checkpoints" / "10").exists)
        workdir.rename(tmp_path / "moved")
        workdir.mkdir()
        (workdir / ".lock").write_text("")

    at_batch(14, replace, monkeypatch)
    with pytest.raises(UserError, match="vanished or was replaced"):
        run_here(workdir)
    assert final_state(tmp_path / "moved")[1] == 10
    assert not (workdir / "metrics.jsonl").exists()


@pytest.mark.parametrize("fault", ["directory", "full"])
def test_an_unwritable_log_ends_the_run(fault, tmp_path, monkeypatch):
    workdir = tmp_path / "run"

    def spoil():
        (workdir / "metrics.jsonl").unlink()
        if fault == "directory":
            (workdir / "metrics.jsonl").mkdir()
        else:
            (workdir / "metrics.jsonl").symlink_to("/dev/full")

    at_batch(14, spoil, monkeypatch)
    with pytest.raises(UserError, match="the last whole checkpoint is intact") as error:
        run_here(workdir)
    assert "\n" not in str(error.value)
    assert ("No space left" in str(error.value)) == (fault == "full")
    assert final_state(workdir)[1] == 10


def test_a_full_disk_under_the_post_mortem_is_said(tmp_path, monkeypatch):
    workdir = tmp_path / "run"
    at_batch(14, lambda: (workdir / "post_mortem").write_text(""), monkeypatch)
    with pytest.raises(UserError):
        run_here(workdir, nan_at_step=13, nan_steps=1000)
    assert final_state(workdir)[1] == 10


@pytest.mark.slow
def test_an_unwritable_standard_output_ends_train_py(tmp_path):
    """logging itself would print a traceback for every line and train on."""
    workdir = tmp_path / "run"
    command = ["train.py", "--config=configs/emoji.py:smoke", f"--workdir={workdir}"]
    with open("/dev/full", "w") as full:
        result = subprocess.run(
            [sys.executable, *command],
            cwd=ROOT,
            env=environment(),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert result.returncode == 2, result.stderr
    (line,) = result.stderr.splitlines()
    assert "the log cannot be written to standard output" in line


def test_kill_minus_nine_frees_the_lock_though_a_child_lives(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", LOCK, str(tmp_path / "run")],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    child = int(process.stdout.readline())
    settings = toy_run.ConfigDict({"seed": 0})
    try:
        with pytest.raises(UserError, match=rf"\(process {process.pid} on "):
            WorkDirectory(tmp_path / "run", settings).__enter__()
        process.kill()
        process.wait()
        os.kill(child, 0)  # it lives
        with WorkDirectory(tmp_path / "run", settings):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        process.stdout.close()


def test_an_option_that_is_not_set_does_not_part_a_run_from_its_program():
    old = {"train": {"ema_decay": 0.9}, "a": 1}
    assert compare(old, {**old, "train": {"ema_decay": 0.9, "ema_std": 0.0}}) == []
    assert compare(old, {**old, "b": "", "c": False}) == []
    assert compare(old, {**old, "b": 2}) == ["b: not set -> 2"]
    assert compare(old, {"a": 1}) == ["train.ema_decay: 0.9 -> not set"]


def kill_during_a_write(workdir, rng, settings):
    """Start, wait for a checkpoint that is not finished, kill at a random moment."""
    folder = workdir / "checkpoints"
    before = set(os.listdir(folder)) if folder.is_dir() else set()
    process = start(workdir, *settings)

    def writes():
        assert process.poll() is None, process.communicate()
        names = set(os.listdir(folder)) if folder.is_dir() else set()
        return [n for n in names - before if not n.isdigit()]

    wait_for(writes)
    time.sleep(rng.uniform(0, 0.03))
    process.kill()
    process.communicate()
    return any(not name.isdigit() for name in os.listdir(folder))


@pytest.mark.parametrize("times", [1, pytest.param(5, marks=pytest.mark.slow)])
def test_kill_minus_nine_during_checkpoint_writes_ends_bit_equal(times, tmp_path):
    rng = np.random.default_rng(seed := secrets.randbits(32))
    settings = ["ballast=1000000", "checkpoint_every_steps=5"]
    settings.append(f"num_steps={20 + 10 * times}")  # a kill costs one or two intervals
    hit = [
        kill_during_a_write(tmp_path / "run", rng, [*settings, "delay_secs=0.02"])
        for _ in range(times)
    ]
    # the write was really cut short
    assert any(hit) or times < 3, f"killed by seed {seed}"
    for name, delay in (("run", "delay_secs=0.02"), ("whole", "delay_secs=0.02")):
        code, _, err = finish(tmp_path / name, *settings, delay)
        assert code == 0, (f"killed by seed {seed}", err)
    whole = final_state(tmp_path / "whole")
    assert final_state(tmp_path / "run") == whole, f"killed by seed {seed}"


@pytest.mark.slow
def test_ten_kills_at_random_moments_lose_no_more_than_one_interval(tmp_path):
    """Also before the first checkpoint, while compiling and while restoring."""
    rng = np.random.default_rng(seed := secrets.randbits(32))
    workdir, best, told = tmp_path / "run", 0, f"killed by seed {seed}"
    settings = ["num_steps=120", "checkpoint_every_steps=5", "delay_secs=0.05"]
    for _ in range(10):
        process = start(workdir, *settings)
        time.sleep(rng.uniform(0.2, 4.0))
        process.kill()
        out, _ = process.communicate()
        found = re.search(r"continuing from step (\d+)", out)
        resumed = int(found[1]) if found else 0
        if found or best == 0:
            # the checkpoint before may be half-written
            assert resumed >= best - 5, told
        folder = workdir / "checkpoints"
        names = os.listdir(folder) if folder.is_dir() else []
        best = max([best, *(int(name) for name in names if name.isdigit())])
    code, _, err = finish(workdir, *settings)
    assert code == 0, (told, err)
    code, _, err = finish(tmp_path / "whole", *settings)
    assert code == 0, err
    state, step = final_state(workdir)
    assert step == 120 and state == final_state(tmp_path / "whole")[0], told
