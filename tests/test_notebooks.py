"""The notebooks run from the first cell to the last, at a small size."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.programs import ROOT, environment

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
pytest.importorskip("matplotlib", reason="needs requirements-dev.txt")


def code(path: Path) -> str:
    """All code cells of a notebook, one after the other."""
    cells = json.loads(path.read_text())["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    return "\n\n".join(sources)


def execute(name: str, tmp_path: Path, **more: str) -> str:
    """Run a notebook's cells as one program in the repository; what it prints."""
    script = tmp_path / f"{name}.py"
    script.write_text(code(ROOT / "notebooks" / f"{name}.ipynb"))
    settings = dict(LDM_SHORT="1", MPLBACKEND="Agg", LDM_RUNS=str(tmp_path / "runs"))
    done = subprocess.run(
        [sys.executable, script],
        cwd=ROOT,
        env=environment(**settings, **more),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_clean(path):
    """No outputs are stored, and the cells are Python."""
    document = json.loads(path.read_text())
    for cell in document["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None
    compile(code(path), path.name, "exec")
    assert document["nbformat"] == 4


@pytest.mark.slow
def test_toy(tmp_path):
    execute("toy", tmp_path)


@pytest.mark.slow
def test_sample(tmp_path):
    execute("sample", tmp_path)


@pytest.mark.slow
def test_own_folder(tmp_path):
    printed = execute("own_folder", tmp_path)
    assert "step 20/20" in printed and "checkpoints" in printed


@pytest.mark.slow
@pytest.mark.live
def test_stable_diffusion(tmp_path):
    """On a tiny random pipeline that diffusers has saved."""
    pytest.importorskip("torch", reason="needs requirements-dev.txt")
    pytest.importorskip("diffusers", reason="needs requirements-dev.txt")
    from tests.reference import pipelines

    pipelines.build("stable_1", tmp_path / "words").save_pretrained(tmp_path / "theirs")
    places = dict(LDM_PIPELINE=tmp_path / "theirs", LDM_CONVERTED=tmp_path / "ours")
    printed = execute(
        "stable_diffusion", tmp_path, **{k: str(v) for k, v in places.items()}
    )
    assert "UNet" in printed or "parameters" in printed
