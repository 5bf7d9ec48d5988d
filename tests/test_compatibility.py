"""What an older version of the package wrote loads, continues and draws the same.

tests/reference/before_the_house says which version, and how its files were made.
"""

import json
import subprocess
import sys
import tarfile

import numpy as np
import pytest

from lDM_jax.core import image
from lDM_jax.pipeline import Pipeline
from tests.programs import ROOT, environment

FOLDER = ROOT / "tests" / "reference" / "before_the_house"
PICTURE = FOLDER / "picture.png"
# The flags that the run was started with.
CHANGES = (
    "first_stage.path=emoji_kl_f8",
    "data.size_px=64",
    "unet.width=4",
    "unet.num_groups=2",
    "unet.width_mults=(1,)",
    "unet.attn_factors=()",
    "optimizer.learning_rate=0.02",
    "train.ema_decay=0.5",
)
# Figures that depend on the machine's speed.
SPEED = {"it_per_sec", "images_per_sec", "input_wait", "compile_secs"}
# f32 sums in another order (another processor, quick compilation) differ by 1e-6 of
# their size; ten Adam steps, which divide small gradients by their own size, amplify
# that. A change of one noise draw or one batch moves the losses by 1e-2 and more.
RTOL = 1e-4


@pytest.fixture
def workdir(tmp_path):
    """A copy of the old work directory; its parent is where it is called `run`."""
    with tarfile.open(FOLDER / "run.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / "run"


def call(program, *flags, cwd):
    done = subprocess.run(
        [sys.executable, ROOT / program, *flags],
        cwd=cwd,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def figures(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def difference(pixels) -> int:
    """Gray levels between pixels and the old picture, at the pixel farthest off."""
    expected = image.decode(PICTURE.read_bytes(), alpha=False)
    assert pixels.shape == expected.shape
    return np.abs(pixels.astype(int) - expected.astype(int)).max()


def test_an_old_work_directory_continues_as_it_would_have(workdir):
    before = figures(workdir / "metrics.jsonl")
    flags = [f"--config.{change}" for change in CHANGES]
    config = f"--config={ROOT / 'configs' / 'emoji_class.py'}:smoke"
    call("train.py", config, f"--workdir={workdir}", *flags, cwd=workdir.parent)
    lines = figures(workdir / "metrics.jsonl")
    assert lines[: len(before)] == before  # it continued: no step was trained again
    expected = figures(FOLDER / "expected_metrics.jsonl")
    assert [line["step"] for line in lines[len(before) :]] == [15, 20, 20]
    for line, old in zip(lines[len(before) :], expected, strict=True):
        for name in ("loss", "error", "eval_loss", "eval_error", "norm/parameters"):
            if name in old:
                assert line[name] == pytest.approx(old[name], rel=RTOL), name
        assert old.keys() - SPEED <= line.keys()


# Samples of the same machine and program are the same; other sums round a channel the
# other way at most, while another label of this model moves pixels by 8 gray levels.
def test_an_old_png_is_drawn_again_from_its_old_work_directory(workdir):
    flags = [f"--request={PICTURE}", "--out=again"]
    call("sample.py", *flags, cwd=workdir.parent)
    again = workdir.parent / "again" / "000005.png"
    assert difference(image.decode(again.read_bytes(), alpha=False)) <= 1
    assert image.read_request(again) == image.read_request(PICTURE)


def test_an_old_weights_directory_draws_the_same():
    request = image.read_request(PICTURE)
    assert request.pop("model") == "run"
    (pixels,) = Pipeline.load(str(FOLDER / "weights")).sample(**request)
    assert difference(pixels) <= 1
