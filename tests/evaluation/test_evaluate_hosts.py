"""evaluate on two real processes: the pictures and figures of one, also after kills.

Each process has two fake CPU devices, so that a batch is cut alike everywhere, and the
pictures are equal to the bit.
"""

import json
import socket

import numpy as np
import pytest

from lDM_jax.evaluation.metrics.statistics import Moments
from tests.forks import Fork
from tests.programs import ROOT, outputs
from tests.toys import saved

pytestmark = pytest.mark.slow
COUNT, KNOWN = 37, 21  # five parts and three, the last ones partial


def start(*arguments, **more):
    return Fork(ROOT / "tests" / "toy_evaluate.py", *arguments, devices=2, **more)


def start_two(*arguments, kill: int = -1):
    """Two processes that find each other; the second ends before its part `kill`."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    meeting = dict(JAX_COORDINATOR_ADDRESS=address, JAX_NUM_PROCESSES="2")
    return [
        start(*arguments, **meeting, JAX_PROCESS_ID=str(index), TOY_KILL=limit)
        for index, limit in enumerate(("-1", str(kill)))
    ]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    """A class-conditional toy whose data are 21 pictures."""
    path = tmp_path_factory.mktemp("model")
    name = saved("emoji_class", path)
    config = json.loads((path / "emoji_class" / "config.json").read_text())
    config["data"]["limit"] = KNOWN
    (path / "emoji_class" / "config.json").write_text(json.dumps(config))
    return name


def flags(model: str, out) -> list[str]:
    text = f"generate --model={model} --num={COUNT} --steps=2 --batch=8 --out={out}"
    return [*text.split(), "--extractor=emoji", "--bootstrap=3"]


@pytest.fixture(scope="module")
def alone(model, tmp_path_factory):
    """(line, folder) of one process."""
    out = tmp_path_factory.mktemp("alone") / "out"
    ((code, text, err),) = outputs(start(*flags(model, out)))
    assert code == 0, err
    return json.loads(text), out


def said(process) -> str:
    """What a process printed, without the greetings of XLA's own collectives.

    Two of them may be printed at once: "[Gloo] Rank [Gloo] Rank 0 is connected ..".
    """
    kept = (
        line
        for line in process[1].splitlines()
        if "[Gloo]" not in line and "connected peer ranks" not in line
    )
    return "\n".join(kept)


def same(out, alone):
    """Pictures to the bit, figures to 1e-9: sums of equal numbers in f64."""
    expected, folder = alone
    (line,) = (out / "metrics.jsonl").read_text().splitlines()
    with np.load(out / "samples.npz") as ours, np.load(folder / "samples.npz") as one:
        np.testing.assert_array_equal(ours["arr_0"], one["arr_0"])
        np.testing.assert_array_equal(ours["arr_1"], one["arr_1"])
    result = json.loads(line)
    assert result.keys() == expected.keys() and result["count"] == COUNT
    names = [name for name in result if "_emoji" in name and "prepared" not in name]
    assert len(names) > 10
    for name in names:
        assert result[name] == pytest.approx(expected[name], rel=1e-9, abs=1e-12), name
    return result


def test_two_processes_draw_and_measure_what_one_does(model, alone, tmp_path):
    """And only the first of them speaks; then a reference, written once."""
    first, second = outputs(*start_two(*flags(model, tmp_path / "out")))
    assert (first[0], second[0]) == (0, 0), first[2] + second[2]
    assert json.loads(said(first)) == same(tmp_path / "out", alone)
    assert not said(second) and "warning" in first[2] and "warning" not in second[2]
    out, work = tmp_path / "ref.npz", tmp_path / "work"
    text = f"reference --model={model} --out={out} --work={work} --extractor=emoji"
    both = outputs(*start_two(*text.split()))
    assert [code for code, _, _ in both] == [0, 0], both
    moments = Moments.zeros(112)
    folder = alone[1] / "features" / "reference-emoji-clean"
    for file in sorted(folder.glob("*.pool.npy")):
        moments.add(np.load(file))
    assert moments.count == KNOWN
    with np.load(out) as npz:
        assert len(npz["arr_0"]) == KNOWN
        exact = moments.gaussian()
        np.testing.assert_allclose(npz["mu"], exact.mean, rtol=1e-9)
        # sums of products of size one, in another order
        np.testing.assert_allclose(npz["sigma"], exact.covariance, atol=1e-12)


def test_a_process_killed_while_drawing_and_while_measuring(model, alone, tmp_path):
    """The second process has parts 1 and 3 of the pictures, then of their features."""
    out = tmp_path / "out"
    for kill in (1, 2):
        two = start_two(*flags(model, out), kill=kill)
        two[1].wait(timeout=120)
        assert two[1].returncode < 0
        two[0].kill()  # it waits for the other one
        outputs(*two)
        assert (out / "samples.npz").exists() == (kill == 2)
        assert not (out / "metrics.jsonl").exists()
    both = outputs(*start_two(*flags(model, out)))
    assert [code for code, _, _ in both] == [0, 0], both
    same(out, alone)


def test_what_runs_in_one_process_says_so(model):
    both = outputs(*start_two("recon", "--model=emoji_kl_f8"))
    assert [code for code, _, _ in both] == [2, 2]
    assert "recon runs in one process" in both[0][2]
