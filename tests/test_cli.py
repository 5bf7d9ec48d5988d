"""train.py and sample.py as a user types them: exit codes and one-line errors."""

import json
import time

import jax
import numpy as np
import pytest

from lDM_jax.weights.checkpoint import load_state
from tests import programs
from tests.forks import Fork, call


def refused(result, *words):
    """Exit code 2, one line on stderr that holds the words, no traceback."""
    assert result.returncode == 2, result.stderr
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, result.stderr
    for word in words:
        assert word in lines[0], result.stderr


@pytest.mark.parametrize("flag", ["--help", "-h"])
@pytest.mark.parametrize(
    "program, words",
    [
        ("train.py", ("Train either stage", "--workdir: Directory", "--[no]dry_run")),
        ("sample.py", ("Draw pictures", "--prompt: What to draw", "--npz")),
    ],
)
def test_help_tells_of_the_program_and_its_flags(program, words, flag):
    real, forked = programs.call, call  # once as a user starts it
    result = forked(program, "--seed", flag) if flag == "-h" else real(program, flag)
    assert result.returncode == 0 and not result.stderr
    assert all(word in result.stdout for word in words)


@pytest.fixture(scope="module")
def run_directory(tmp_path_factory):
    """`train.py` on the smoke config: the work directory and what it printed."""
    workdir = tmp_path_factory.mktemp("runs") / "smoke"
    command = "train.py", "--config=configs/emoji.py:smoke", f"--workdir={workdir}"
    result = programs.call(*command)
    assert result.returncode == 0, result.stderr
    return workdir, result.stdout


def test_smoke_run_leaves_checkpoint_metrics_and_previews(run_directory):
    workdir, printed = run_directory
    assert "step" in printed and "loss" in printed and "img/s" in printed
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["step"] == 20
    assert list((workdir / "previews").glob("*.png"))
    assert list((workdir / "tensorboard").iterdir())
    stored = json.loads((workdir / "config.json").read_text())
    assert "jax" in json.dumps(stored)


def test_a_killed_run_of_the_real_stage_ends_bit_equal(run_directory, tmp_path):
    """UNet, text transformer, latents cache, data iterator: all of it resumes."""
    workdir = tmp_path / "run"
    command = ["train.py", "--config=configs/emoji.py:smoke", f"--workdir={workdir}"]
    process = Fork(*command)
    while not (workdir / "checkpoints" / "10").exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.wait()
    result = call(*command)
    assert result.returncode == 0, result.stderr
    ours = jax.tree.leaves_with_path(load_state(workdir))
    whole = jax.tree.leaves_with_path(load_state(run_directory[0]))
    assert len(ours) == len(whole) > 100
    for (path, a), (_, b) in zip(ours, whole, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=jax.tree_util.keystr(path))


def test_sample_from_the_run_and_again_from_its_own_png(run_directory, tmp_path):
    workdir, _ = run_directory
    first = call(
        "sample.py",
        f"--model={workdir}",
        "--prompt=red heart",
        "--seeds=0,3",
        f"--out={tmp_path / 'a'}",
    )
    assert first.returncode == 0, first.stderr
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == ["000000.png", "000003.png", "grid.png"]
    picture = tmp_path / "a" / "000003.png"
    again = call("sample.py", f"--request={picture}", f"--out={tmp_path / 'b'}")
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "b" / "000003.png").read_bytes() == picture.read_bytes()


def test_another_config_on_the_same_directory_is_refused(run_directory):
    workdir, _ = run_directory
    result = call(
        "train.py",
        "--config=configs/emoji.py:smoke",
        f"--workdir={workdir}",
        "--config.optimizer.learning_rate=0.5",
    )
    refused(result, "optimizer.learning_rate")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--config.unet.widht=3"], ["widht"]),
        (["--config.train.batch_size=many"], ["many"]),
        (["--config.loss.loss=l3"], ["l3", "l1, l2"]),
        (["--config.task=dance"], ["dance", "text"]),
        (["--config.data.size_px=33"], ["33", "multiple"]),
        (["--config.first_stage.path=/nowhere"], ["/nowhere"]),
    ],
)
def test_bad_config_values_are_refused(flags, words, tmp_path):
    result = call(
        "train.py",
        "--config=configs/emoji.py:smoke",
        f"--workdir={tmp_path / 'run'}",
        *flags,
    )
    refused(result, *words)
    assert not (tmp_path / "run").exists()


def test_size_that_the_unet_cannot_halve_is_refused(tmp_path):
    result = call(
        "train.py",
        "--config=configs/emoji.py:smoke",
        f"--workdir={tmp_path / 'run'}",
        "--config.data.size_px=36",
    )
    refused(result, "9 x 9", "multiples of 2")


def test_unwritable_work_directory_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    result = call(
        "train.py",
        "--config=configs/emoji.py:smoke",
        f"--workdir={tmp_path / 'file' / 'run'}",
    )
    refused(result, str(tmp_path / "file"))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--prompt=x"], ["--model"]),
        (["--model=nothing", "--prompt=x"], ["nothing", "shipped"]),
        (["--model=emoji", "--seeds=a-b", "--prompt=x"], ["a-b", "0-15"]),
        (["--model=emoji", "--nonsense=1"], ["nonsense"]),
        (["--request=README.md"], ["README.md"]),
    ],
)
def test_bad_sample_flags_are_refused(flags, words, tmp_path):
    refused(call("sample.py", *flags, f"--out={tmp_path / 'out'}"), *words)


def test_sample_refuses_an_output_path_that_is_a_file(tmp_path):
    (tmp_path / "out").write_text("")
    result = call("sample.py", "--model=emoji", "--prompt=x", f"--out={tmp_path}/out")
    refused(result, "out")


@pytest.mark.parametrize("name", ["celebahq_ldm4", "emoji", "emoji_autoencoder"])
def test_dry_run_prints_parameters_shapes_and_memory(name):
    result = call("train.py", f"--config=configs/{name}.py", "--dry_run")
    assert result.returncode == 0, result.stderr
    assert "GiB" in result.stdout and "total" in result.stdout
    if name == "celebahq_ldm4":
        assert "274.056M" in result.stdout  # Rombach et al. 2022, table 12
