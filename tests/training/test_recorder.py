"""What a run says of its speed: input wait, MFU, compile time."""

import json
import math
import struct
from types import SimpleNamespace

import pytest
from tensorboardX.proto.event_pb2 import Event

from lDM_jax.core.sharding import make_mesh
from lDM_jax.training import flops, loop, recorder
from tests import toy_run


def records(workdir, *, image_flops=0.0, **changes):
    experiment = toy_run.experiment(toy_run.config(**changes))
    loop.run(experiment, str(workdir), mesh=make_mesh(), image_flops=image_flops)
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_waiting_for_data_is_told_from_computing(tmp_path):
    """A toy's step takes milliseconds; its data takes fifty, then nearly nothing."""
    slow = records(tmp_path / "slow", num_steps=20, delay_secs=0.05)
    fast = records(tmp_path / "fast", num_steps=20)
    assert all(0.5 < line["input_wait"] <= 1 for line in slow)
    assert all(0 <= line["input_wait"] < 0.5 for line in fast)


def test_the_compile_time_stands_there_once_and_is_not_training_time(tmp_path):
    first, *rest = records(tmp_path / "run", num_steps=30)
    assert first["compile_secs"] > 0.01  # a jitted function takes longer than that
    assert not any("compile_secs" in line for line in rest)
    assert 10 / first["it_per_sec"] < first["compile_secs"] * 10


def test_mfu_is_flops_done_over_flops_possible(tmp_path, monkeypatch):
    assert "mfu" not in records(tmp_path / "a", num_steps=10, image_flops=2e6)[0]
    monkeypatch.setattr(flops, "peak_of", lambda devices: 4e9)
    (line,) = records(tmp_path / "b", num_steps=10, image_flops=2e6)
    assert line["mfu"] == pytest.approx(line["images_per_sec"] * 2e6 / 4e9)


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("TPU v5", 459e12),
        ("TPU v5 lite", 197e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("cpu", 0.0),
    ],
)
def test_peaks_by_the_longest_name(kind, peak):
    assert flops.peak_of([SimpleNamespace(device_kind=kind)] * 4) == 4 * peak


def test_the_board_has_no_point_where_a_mean_is_of_nothing(tmp_path, caplog):
    """The events, read by TensorBoard's own format: length, its CRC, event, CRC."""
    board = recorder.Board(tmp_path, 0)
    board.add({"loss": 0.5, "error/t0.00": math.nan, "gnorm": math.inf}, 1)
    board.close()
    (file,) = tmp_path.glob("events*")
    data, tags = file.read_bytes(), {}
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        event = Event.FromString(data[12 : 12 + length])
        tags |= {value.tag: value.simple_value for value in event.summary.value}
        data = data[16 + length :]
    assert tags == {"loss": 0.5}
    assert not caplog.records  # tensorboardX warns of each NaN that it is given
