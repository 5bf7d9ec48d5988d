"""Files and modules that the documents and notebooks name exist."""

import importlib.util
import json
import re

import pytest

from tests.programs import ROOT

DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PATH = re.compile(
    r"(?<![\w/])(?:lDM_jax|configs|tests|benchmarks|docs|notebooks)/[\w/{},.<>*-]*"
)
MODULE = re.compile(r"python -m ((?:lDM_jax|benchmarks)[\w.]*)")
IMPORT = re.compile(r"^\s*(?:from|import) ((?:lDM_jax|configs)[\w.]*)", re.MULTILINE)
WRITTEN = {"docs/gallery"}  # by commands
NEW = {"lDM_jax/models/adapters.py", "lDM_jax/models/controlnet.py"}  # of recipes


def alternatives(path: str) -> list[str]:
    """ "a_{b,c}.py" -> ["a_b.py", "a_c.py"], for every brace."""
    brace = re.search(r"\{([^{}]*)\}", path)
    if brace is None:
        return [path]
    before, after = path[: brace.start()], path[brace.end() :]
    return [
        one
        for part in brace[1].split(",")
        for one in alternatives(before + part + after)
    ]


def paths_of(text: str) -> set[str]:
    """The paths in a document; <name> and NAME stand for any, sentences may follow."""
    paths = {found.rstrip(".,-") for found in PATH.findall(text)}
    named = [path for path in paths if "<" not in path and "NAME" not in path]
    return {one for path in named for one in alternatives(path)}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_paths_exist(path):
    missing = {
        name for name in paths_of(path.read_text()) if not (ROOT / name).exists()
    }
    assert missing <= NEW | WRITTEN
    assert not [name for name in NEW if (ROOT / name).exists()], "no longer new"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_modules_exist(path):
    for name in set(MODULE.findall(path.read_text())):
        assert importlib.util.find_spec(name.rstrip(".")), name


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_name_what_exists(path):
    cells = json.loads(path.read_text())["cells"]
    text = "\n\n".join("".join(cell["source"]) for cell in cells)
    text = re.sub(r"\{\w+\}", "<name>", text)  # of f-strings
    assert not {name for name in paths_of(text) if not (ROOT / name).exists()}
    for name in {*MODULE.findall(text), *IMPORT.findall(text)}:
        assert importlib.util.find_spec(name.rstrip(".")), name
    for module, names in re.findall(r"^from (lDM_jax[\w.]*) import (.+)$", text, re.M):
        for name in names.split(", "):
            known = hasattr(importlib.import_module(module), name)
            assert known or importlib.util.find_spec(f"{module}.{name}"), name


def test_reading_of_paths():
    text = "see `configs/a_{b,c}.py`, lDM_jax/tasks/<task>.py and tests/x/y.py."
    assert paths_of(text) == {"configs/a_b.py", "configs/a_c.py", "tests/x/y.py"}
