"""Several real processes: one result, one stop, one lock; and how they find each other.

Each process has two fake CPU devices; collectives go through JAX's gloo.
"""

import json
import re
import signal
import socket
import time

import jax
import numpy as np
import pytest

from lDM_jax.core import distributed
from lDM_jax.core.errors import UserError
from lDM_jax.weights.checkpoint import load_state
from tests.forks import Fork
from tests.programs import outputs
from tests.training.running import PROGRAM


def start(workdir, *settings, devices, **more):
    return Fork(PROGRAM, workdir, *settings, devices=devices, **more)


def start_two(workdir, *settings):
    """Two processes with two devices each."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    return [
        start(
            workdir,
            *settings,
            devices=2,
            JAX_COORDINATOR_ADDRESS=f"localhost:{port}",
            JAX_NUM_PROCESSES="2",
            JAX_PROCESS_ID=str(index),
        )
        for index in range(2)
    ]


def leaves(workdir):
    named = jax.tree_util.tree_leaves_with_path(load_state(workdir))
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in named}


def equal(a, b):
    assert a.keys() == b.keys() and len(a) > 8
    for name in a:
        # f32 sums over four devices in another order, through sixty steps
        np.testing.assert_allclose(a[name], b[name], rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    """Four devices in one process, sixty steps."""
    workdir = tmp_path_factory.mktemp("four") / "run"
    ((code, out, err),) = outputs(start(workdir, devices=4))
    assert code == 0, err
    return leaves(workdir)


@pytest.mark.parametrize("fsdp", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_two_processes_give_what_one_gives(fsdp, four, tmp_path):
    """With fsdp = 4 the ballast is split over the processes, and restored by one."""
    workdir = tmp_path / "run"
    settings = [f"fsdp={fsdp}", "preview_every_steps=30", "eval_every_steps=30"]
    if fsdp > 1:
        settings.append("ballast=65536")
    (code, out, err), (other_code, other_out, other_err) = outputs(
        *start_two(workdir, *settings)
    )
    assert (code, other_code) == (0, 0), err + other_err
    found = leaves(workdir)
    ballast = {name for name in found if "ballast" in name}
    assert bool(ballast) == (fsdp > 1)
    equal({name: leaf for name, leaf in found.items() if name not in ballast}, four)
    # Only process 0 speaks and writes.
    assert out.count("\nstep") + out.startswith("step") == 6 and "step" not in other_out
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in lines]
    assert steps == [10, 20, 30, 30, 40, 50, 60, 60]
    assert len(list((workdir / "tensorboard").iterdir())) == 1
    assert len(list((workdir / "previews").iterdir())) == 2


def test_sigterm_to_one_process_stops_both_at_one_step(four, tmp_path):
    """And one process with four devices ends what two with two began."""
    workdir = tmp_path / "run"
    two = start_two(workdir, "delay_secs=0.1")
    end = time.monotonic() + 60
    while not (workdir / "checkpoints" / "10").exists():
        assert time.monotonic() < end
        time.sleep(0.05)
    two[1].send_signal(signal.SIGTERM)
    (code, out, err), (other_code, _, other_err) = outputs(*two)
    assert (code, other_code) == (0, 0), err + other_err
    stopped = int(re.search(r"stopped by a signal at step (\d+)", out)[1])
    assert 10 <= stopped < 60
    assert (workdir / "checkpoints" / str(stopped)).is_dir()
    ((code, out, err),) = outputs(start(workdir, "delay_secs=0.1", devices=4))
    assert code == 0, err
    assert f"continuing from step {stopped}" in out
    equal(leaves(workdir), four)


def test_a_taken_directory_is_refused_by_both(tmp_path):
    workdir = tmp_path / "run"
    holder = start(workdir, "delay_secs=0.2", "num_steps=1000", devices=1)
    end = time.monotonic() + 60
    while not (workdir / "config.json").exists():
        assert time.monotonic() < end
        time.sleep(0.05)
    try:
        two = outputs(*start_two(workdir, "delay_secs=0.2", "num_steps=1000"))
    finally:
        holder.kill()
        holder.communicate()
    assert [code for code, _, _ in two] == [2, 2]
    assert f"process {holder.pid} on" in two[0][2]
    assert "opening the work directory failed in another process" in two[1][2]


def test_flags_and_environment_describe_the_run():
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    wanted = dict(coordinator_address="a:1", num_processes=4, process_id=2)
    by_name = dict(zip(names, ("a:1", "4", "2"), strict=True))
    assert distributed.explicit("a:1", 4, 2, {}) == wanted
    assert distributed.explicit(None, None, None, by_name) == wanted
    assert distributed.explicit(None, None, 3, by_name)["process_id"] == 3
    assert distributed.explicit(None, None, None, {}) is None
    for wrong, message in (
        (("a:1", 4, None), "--process_id"),
        (("a:1", 4, 4), r"in \[0, 4\)"),
        (("a:1", "x", 0), "integers"),
    ):
        with pytest.raises(UserError, match=message):
            distributed.explicit(*wrong, {})


@pytest.mark.parametrize(
    ("environment", "several"),
    [
        ({}, False),
        ({"SLURM_JOB_ID": "1", "SLURM_NTASKS": "4"}, False),  # a shell in a job
        (
            {
                "SLURM_NTASKS": "4",
                "SLURM_PROCID": "0",
                "SLURM_STEP_NODELIST": "n[1-2]",
            },
            True,
        ),
        (
            {"SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_STEP_NODELIST": "n1"},
            False,
        ),
        ({"TPU_WORKER_HOSTNAMES": "10.0.0.1"}, False),
        ({"TPU_WORKER_HOSTNAMES": "10.0.0.1,10.0.0.2"}, True),
    ],
)
def test_who_trains_together_is_found(environment, several):
    assert distributed.in_cluster(environment) == several


def test_one_process_trains_alone():
    assert distributed.start(environment={}) is False
    assert distributed.start("off", environment={"JAX_PROCESS_ID": "1"}) is False
    with pytest.raises(UserError, match="auto, on, off"):
        distributed.start("perhaps")
    assert distributed.from_first(0.5) == 0.5 and distributed.all_agree(True)
    with pytest.raises(UserError, match="mine"), distributed.together("this"):
        raise UserError("mine")
