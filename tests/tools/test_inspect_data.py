"""What inspect_data says of a folder with known content; its image by its pixels."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lDM_jax.data.scenes import SceneSource
from lDM_jax.evaluation import data_report
from lDM_jax.tools import inspect_data

ROOT = Path(__file__).parents[2]
PANEL = data_report.PANEL_PX, data_report.PANEL_PX + data_report.TEXT_PX


def run(capsys, *flags):
    assert inspect_data.main(list(flags)) == 0
    return json.loads(capsys.readouterr().out)


@pytest.fixture
def folder(tmp_path):
    """Five images of two classes, one of them empty; a caption; a file of no use."""
    sizes = {
        "cat/a": (20, 40),
        "cat/b": (64, 64),
        "dog/c": (100, 90),
        "dog/d": (64, 50),
    }
    for name, size in sizes.items():
        path = tmp_path / "data" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (200, 0, 0)).save(path)
    (tmp_path / "data/cat/a.txt").write_text("four words of it")
    (tmp_path / "data/dog/e.png").write_bytes(b"")
    (tmp_path / "data/notes.md").write_text("x")
    return tmp_path / "data"


def test_the_report_counts_what_is_there(folder, tmp_path, capsys):
    out = tmp_path / "look.png"
    result = run(
        capsys,
        *["--config", "configs/emoji_class.py", "--set", "data.source=folder"],
        *["--set", f"data.path={folder}", "--out", str(out), "--columns", "2"],
    )
    assert result["examples"] == {"train": 5, "validation": 5, "test": 5}
    assert result["conditions"] == ["caption", "label"]
    assert result["cannot_be_used"] == 1 and "e.png" in result["reasons"]["4"]
    assert result["such_files"] == ["notes.md"]
    assert result["width_px"] == {"least": 20, "median": 64, "largest": 100}
    assert result["height_px"] == {"least": 40, "median": 57, "largest": 90}
    assert result["share_enlarged"] == 0.5  # 20 x 40 and 64 x 50, below 64 px
    assert result["labels"] == {"cat": 2, "dog": 2}
    assert (
        result["caption_characters"]["largest"] == 16 and result["empty_captions"] == 3
    )
    sheet = np.asarray(Image.open(out))
    assert sheet.shape == (2 * PANEL[1] + 2, 2 * PANEL[0] + 2, 3)
    assert (sheet[PANEL[0] // 2, PANEL[0] // 2] == (200, 0, 0)).all()


@pytest.mark.parametrize(
    "task, panels", [("layout", 1), ("semantic", 2), ("inpaint", 1)]
)
def test_conditions_are_drawn(tmp_path, capsys, task, panels):
    out = tmp_path / "look.png"
    result = run(
        capsys,
        *["--config", f"configs/emoji_{task}.py", "--out", str(out)],
        *["--count", "2", "--columns", "1", "--examine", "3"],
    )
    assert result["examined"] == 3
    sheet = np.asarray(Image.open(out)).astype(int)
    assert sheet.shape == (2 * PANEL[1] + 2, panels * PANEL[0], 3)
    if task == "inpaint":  # masked pixels are a third of the image, plus red
        top = sheet[: PANEL[0]]
        assert ((top[:, :, 0] >= 170) & (top[:, :, 1] <= 85)).mean() > 0.01


def test_labels_of_boxes_are_named():
    scenes = SceneSource(split="test")
    assert data_report.class_name(scenes, 2, "categories") == "Flags"
    assert data_report.class_name(scenes, 2) == "2"  # images have no label


def test_errors_are_one_line(capsys, tmp_path):
    for flags in (
        ["--config", "nowhere.py"],
        ["--config", "configs/ffhq_ldm4.py"],
        ["--config", "configs/emoji.py:tiny"],
        ["--config", "configs/emoji.py", "--set", "data.source=clouds"],
    ):
        assert inspect_data.main(flags) == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_an_empty_path_says_where_the_data_is(capsys):
    inspect_data.main(["--config", "configs/ffhq_ldm4.py"])
    assert "FFHQ (github.com/NVlabs/ffhq-dataset)" in capsys.readouterr().err
    inspect_data.main(["--config", "configs/coco_layout_ldm8.py"])
    assert "cocodataset.org" in capsys.readouterr().err


def test_it_runs_as_a_program():
    command = [sys.executable, "-m", "lDM_jax.tools.inspect_data", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "--check" in done.stdout
