"""A sweep: which runs, under which names, what their table says."""

import itertools
import json
import signal
import subprocess
import sys
import time

import pytest

from lDM_jax.core.errors import UserError
from lDM_jax.tools import sweep_train
from tests.programs import ROOT, environment

CONFIG = str(ROOT / "configs" / "emoji_autoencoder.py") + ":smoke"
# Stands for train.py: the held-out loss is the learning rate; seed 3 fails.
STUB = """
import json, pathlib, sys, time
flags = dict(flag.lstrip("-").split("=", 1) for flag in sys.argv[1:])
work = pathlib.Path(flags["workdir"])
work.mkdir(parents=True, exist_ok=True)
with open(work / "started", "a") as file:
    file.write("x")
if flags["config.seed"] == "3":
    sys.exit(2)
time.sleep(float(flags.get("config.train.ema_decay", 0)))
rate = float(flags["config.optimizer.learning_rate"])
rows = [{"step": 1, "loss": 9}, {"step": 2, "eval_loss": rate, "eval_x/y": 1}]
(work / "metrics.jsonl").write_text("".join(json.dumps(r) + "\\n" for r in rows))
"""
OVER = ["--over", "optimizer.learning_rate=0.1,0.2", "--over", "seed=2,3"]


@pytest.fixture
def stub(tmp_path, monkeypatch):
    file = tmp_path / "train.py"
    file.write_text(STUB)
    monkeypatch.setattr(sweep_train, "TRAIN", file)
    return file


def arguments(folder, *more):
    return [f"--config={CONFIG}", f"--workdir={folder}", *OVER, *more]


def test_all_combinations_in_order():
    result = sweep_train.combinations(["a.b=1,2", "c=(1,2),(3,[4,5])", "d=x"])
    values = itertools.product("12", ["(1,2)", "(3,[4,5])"], "x")
    assert result == [{"a.b": a, "c": c, "d": d} for a, c, d in values]


def test_names_are_short_and_tell_runs_apart():
    assert sweep_train.run_name({"a.rate": "0.1", "seed": "2"}) == "rate=0.1,seed=2"
    assert sweep_train.run_name({"a.x": "1", "b.x": "2"}) == "a.x=1,b.x=2"
    assert "/" not in sweep_train.run_name({"data.path": "/a/b"})


@pytest.mark.parametrize(
    ("over", "said"),
    [(["seed"], "KEY=VALUE"), (["seed=1,"], "KEY=VALUE"), (["a=1", "a=2"], "twice")],
)
def test_what_is_no_sweep_is_refused(over, said):
    with pytest.raises(UserError, match=said):
        sweep_train.combinations(over)


def test_runs_tables_and_failures(stub, tmp_path, capfd):
    folder = tmp_path / "runs"
    assert sweep_train.main(arguments(folder)) == 1
    output = capfd.readouterr()
    rows = [
        "| optimizer.learning_rate | seed | step | eval_loss |",
        "|---|---|---|---|",
        "| 0.1 | 2 | 2 | 0.1 |",
        "| 0.1 | 3 | - | - |",
        "| 0.2 | 2 | 2 | 0.2 |",
        "| 0.2 | 3 | - | - |",
    ]
    assert output.out.splitlines() == rows
    assert (folder / "sweep.md").read_text().splitlines() == rows
    failed = [line.split()[1] for line in output.err.splitlines()]
    assert failed == ["learning_rate=0.1,seed=3", "learning_rate=0.2,seed=3"]
    assert sweep_train.main(arguments(folder, "--table")) == 0
    assert capfd.readouterr().out.splitlines() == rows
    started = [(path / "started").read_text() for path in folder.glob("*,*")]
    assert started == ["x"] * 4  # the table trains nothing


def test_shares_divide_the_runs(stub, tmp_path):
    seen = []
    for index in range(3):
        folder = tmp_path / f"host{index}"
        sweep_train.main(arguments(folder, "--share", f"{index}/3"))
        seen.append({path.name for path in folder.glob("*,*")})
    runs = sweep_train.combinations([OVER[1], OVER[3]])
    assert set.union(*seen) == {sweep_train.run_name(run) for run in runs}
    assert sum(map(len, seen)) == 4


def test_a_wrong_key_is_found_before_the_first_run(stub, tmp_path, capfd):
    wrong = ["--over", "train.batchsize=1"]
    assert sweep_train.main(arguments(tmp_path / "runs", *wrong)) == 2
    assert "batchsize" in capfd.readouterr().err
    assert not (tmp_path / "runs").exists()
    assert sweep_train.main(arguments(tmp_path / "runs", "--share", "4/4")) == 2


def test_a_signal_reaches_the_run_and_ends_the_sweep(stub, tmp_path):
    """The stub dies of it; what matters is that no other run begins."""
    folder = tmp_path / "runs"
    code = (
        "import sys; from pathlib import Path; from lDM_jax.tools import sweep_train;"
        f"sweep_train.TRAIN = Path({str(stub)!r});"
        "sys.exit(sweep_train.main(sys.argv[1:]))"
    )
    slow = ["--set", "train.ema_decay=60.0"]
    command = [sys.executable, "-c", code, *arguments(folder, *slow)]
    sweep = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE)
    end = time.monotonic() + 60
    while not list(folder.glob("*/started")):
        assert time.monotonic() < end, "nothing started"
        time.sleep(0.05)
    sweep.send_signal(signal.SIGTERM)
    sweep.communicate(timeout=30)
    assert sweep.returncode != 0
    assert len(list(folder.glob("*/started"))) == 1


@pytest.mark.slow
def test_a_real_sweep_trains_and_compares(tmp_path):
    command = [sys.executable, "-m", "lDM_jax.tools.sweep_train", f"--config={CONFIG}"]
    command += [f"--workdir={tmp_path}", "--over", "optimizer.learning_rate=1e-4,1e-3"]
    command += ["--set", "train.num_steps=2", "--set", "discriminator.factor=0.0"]
    done = subprocess.run(
        command, cwd=ROOT, env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    head, _, *rows = done.stdout.splitlines()[-4:]
    assert "eval_psnr" in head and len(rows) == 2
    stored = json.loads((tmp_path / "learning_rate=1e-3" / "config.json").read_text())
    assert stored["optimizer"]["learning_rate"] == 1e-3 and stored["versions"]["jax"]
