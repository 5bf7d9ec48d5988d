"""The comparisons with other programs run as the README types them."""

import json
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_both_programs_run_side_by_side_on_the_same_weights():
    pytest.importorskip("diffusers", reason="needs requirements-dev.txt")
    command = "benchmarks.peers", "emoji", "--repeats", "1", "--steps", "2"
    output = subprocess.check_output([sys.executable, "-m", *command], text=True)
    agreement, *lines = map(json.loads, output.splitlines())
    assert agreement["prediction_difference"] < 1e-4
    assert [line["measure"] for line in lines] == [
        "train",
        "sample",
        "encode",
        "decode",
    ]
    assert all(line["ratio"] > 0 for line in lines)
