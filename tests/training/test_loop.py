"""The loop's promises, on a toy: exact resume, signals, faults, one log line."""

import gc
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from lDM_jax.core.errors import UserError
from lDM_jax.training import recorder
from lDM_jax.weights.checkpoint import load_ema
from tests.programs import environment, wait_for
from tests.training.running import (
    PROGRAM,
    final_state,
    finish,
    run_here,
    start,
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run of 60 steps."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    code, out, err = finish(workdir)
    assert code == 0, err
    return workdir, out


def test_kill_minus_nine_and_the_same_command_ends_bit_equal(whole, tmp_path):
    workdir = tmp_path / "run"
    moments = np.random.default_rng(seed := secrets.randbits(32)).uniform(0.0, 0.4, 2)
    for number, moment in enumerate(moments):
        process = start(workdir, "delay_secs=0.03")
        # somewhere after the first (then second) checkpoint, at any point of a step
        wanted = workdir / "checkpoints" / str(10 * (number + 1))
        wait_for(wanted.exists)
        time.sleep(moment)
        process.kill()
        process.communicate()
    code, out, err = finish(workdir, "delay_secs=0.03")
    assert code == 0, (f"killed by seed {seed}", err)
    assert "continuing from step" in out, f"killed by seed {seed}"
    state, step = final_state(workdir)
    expected, expected_step = final_state(whole[0])
    assert step == expected_step == 60 and len(state) > 8
    # bit for bit: parameters, EMA, optimiser
    assert state == expected, f"killed by seed {seed}"
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in lines]
    assert steps == [10, 20, 30, 40, 50, 60], f"killed by seed {seed}"


def test_sigterm_saves_exits_zero_and_continues_bit_equal(whole, tmp_path):
    workdir = tmp_path / "run"
    process = start(workdir, "delay_secs=0.03")
    wait_for(lambda: (workdir / "checkpoints" / "10").exists())
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    saved = int(re.search(r"stopped by a signal at step (\d+)", out)[1])
    assert (workdir / "checkpoints" / str(saved)).is_dir() and 10 <= saved < 60
    assert finish(workdir, "delay_secs=0.03")[0] == 0
    assert final_state(workdir)[0] == final_state(whole[0])[0]


def test_log_lines_are_aligned_and_complete(whole):
    lines = [line for line in whole[1].splitlines() if line.startswith("step")]
    assert len(lines) == 6
    pattern = (
        r"step +\d+/60 loss \S+ +gnorm \S+ +\d+\.\d\d it/s \d+ img/s wait \d+% "
        r"eta (\d+[dhms])+"
    )
    for line in lines:
        assert re.fullmatch(pattern, line), line
    assert len({line.index("gnorm") for line in lines}) == 1


def test_a_longer_run_continues_a_finished_one(tmp_path):
    run_here(tmp_path / "run", num_steps=20)
    run_here(tmp_path / "run", num_steps=30)
    assert sorted(os.listdir(tmp_path / "run" / "checkpoints")) == ["10", "20", "30"]


# A failed read leaves orbax's own coroutines behind; collecting them complains.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("damage", ["truncate", "remove", "garbage"])
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(
    damage, tmp_path, caplog
):
    workdir = tmp_path / "run"
    run_here(workdir, num_steps=20)
    files = [p for p in (workdir / "checkpoints" / "20").rglob("*") if p.is_file()]
    data = [p for p in files if p.parent.name == "d" and "state" in p.parts]
    assert data
    for path in data:
        if damage == "remove":
            path.unlink()
        else:
            content = path.read_bytes()[: path.stat().st_size // 2]
            path.write_bytes(content if damage == "truncate" else b"\xff" * 999)
    with caplog.at_level("INFO"):
        run_here(workdir, num_steps=30)
    assert "checkpoint 20 is damaged" in caplog.text
    assert "continuing from step 10" in caplog.text
    assert (workdir / "damaged_checkpoints" / "20").is_dir()
    run_here(tmp_path / "other", num_steps=30)
    ours, theirs = load_ema(workdir), load_ema(tmp_path / "other")
    np.testing.assert_array_equal(ours["w"], theirs["w"])
    gc.collect()


def test_a_different_config_is_refused_and_named(tmp_path):
    run_here(tmp_path / "run", num_steps=10)
    with pytest.raises(UserError, match=r"rate: 0.03 -> 0.5"):
        run_here(tmp_path / "run", num_steps=10, rate=0.5)


def test_a_second_process_is_refused(tmp_path):
    process = start(tmp_path / "run", "delay_secs=0.05", "num_steps=1000")
    wait_for(lambda: (tmp_path / "run" / "config.json").exists())
    with pytest.raises(UserError, match="another process"):
        run_here(tmp_path / "run", delay_secs=0.05, num_steps=1000)
    process.kill()
    process.communicate()


def test_a_full_disk_ends_with_one_line_and_an_intact_checkpoint(tmp_path):
    """A file-size limit stands in for a full disk: writes fail with an OSError."""
    workdir = tmp_path / "run"
    assert finish(workdir, "num_steps=10")[0] == 0

    # files over one block of 1024 bytes fail, in this process only
    command = f"{sys.executable} {PROGRAM} {workdir} num_steps=40"
    limited = f"trap '' XFSZ; ulimit -f 1; exec {command}"
    process = subprocess.Popen(
        ["bash", "-c", limited],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2, err
    assert "last whole checkpoint is intact" in err.splitlines()[-1]
    assert final_state(workdir)[1] == 10
    assert finish(workdir, "num_steps=40")[0] == 0


def test_load_ema_needs_a_whole_checkpoint(tmp_path):
    with pytest.raises(UserError, match="no checkpoints"):
        load_ema(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match="no whole checkpoint yet"):
        load_ema(tmp_path)


def test_previews_and_evaluation_are_written(tmp_path):
    run_here(tmp_path / "run", num_steps=10, preview_every_steps=5, eval_every_steps=10)
    names = sorted(os.listdir(tmp_path / "run" / "previews"))
    assert names == ["0000005_toy.png", "0000010_toy.png"]
    assert "eval_distance" in (tmp_path / "run" / "metrics.jsonl").read_text()


@pytest.mark.parametrize(
    ("secs", "text"), [(0, "0s"), (5, "5s"), (754, "12m34s"), (90061, "1d1h")]
)
def test_duration(secs, text):
    assert recorder.duration(secs) == text
