"""The tree keeps its shape: nine floors, one door a library, no prints, no debris."""

import ast
from pathlib import Path

import pytest

from lDM_jax.tasks.registry import TASKS

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "lDM_jax"
FILES = sorted(PACKAGE.rglob("*.py"))
SECTIONS = [
    "Install",
    "Two commands",
    "Your own data",
    "Tasks on the embedded scenes",
    "The studio",
    "Several devices, several hosts",
    "Recipes",
    "Watching a run",
    "What was measured",
    "Evaluation",
    "Speed",
    "Configs",
    "First stages",
    "Weights from and to other programs",
    "The package",
    "Tests",
    "Honest limits",
    "Licence and sources",
]

# Imports go strictly downward; rooms of one floor do not import each other.
FLOORS = [
    {"core"},
    {"data"},
    {"models"},
    {"diffusion", "weights"},
    {"tasks"},
    {"from_config"},
    {"sampling", "training", "interop"},
    {"evaluation", "studio"},
    {"tools"},
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
DOORS = {
    "orbax": {"lDM_jax/weights/checkpoint.py"},
    "PIL": {"lDM_jax/core/image.py"},
    "grain": {"lDM_jax/data/pipeline.py"},
    "safetensors": {"lDM_jax/weights/directory.py"},
    "torch": set(),
    "yaml": {"lDM_jax/tools/convert.py"},
    "gradio": {
        f"lDM_jax/studio/page/{part}.py"
        for part in ("builders", "wiring", "events", "layout")
    },
    "tensorboardX": {"lDM_jax/training/recorder.py"},
    "wandb": {"lDM_jax/training/recorder.py"},
    "matplotlib": {
        "lDM_jax/evaluation/commands/sweep.py",
        "lDM_jax/training/report.py",
    },
    "fontTools": {"lDM_jax/tools/make_emoji.py"},
}
BANNED_NAMES = {"utils.py", "helpers.py", "base.py", "misc.py"}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> set[str]:
    """Absolute module names that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                as_path = ROOT / Path(*full.split("."))
                is_module = as_path.with_suffix(".py").is_file() or as_path.is_dir()
                found.add(full if is_module else node.module)
    return found


def room_of(module: str) -> str:
    """The room of a module of the package; "" for the package and its public door."""
    parts = module.split(".")
    return "" if module in ("lDM_jax", "lDM_jax.pipeline") else parts[1]


def test_every_room_has_a_floor_and_its_tests():
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir()}
    assert folders - {"assets", "__pycache__"} == FLOOR.keys()
    for folder in (ROOT / "tests").iterdir():
        if any(folder.glob("test_*.py")):
            assert folder.name in FLOOR, f"{folder} mirrors no room"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_strictly_downward(path):
    name = module_name(path)
    own = room_of(name)
    for target in imports(path):
        if target.split(".")[0] != "lDM_jax" or target == "lDM_jax":
            continue
        room = room_of(target)
        assert room or not own, f"{name} imports the door {target}"
        if own and room != own:
            assert FLOOR[room] < FLOOR[own], f"{name} imports {target}"


def test_no_circles_within_a_room():
    graph = {module_name(path): imports(path) for path in FILES}
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join((*trail, name))
        if name not in done:
            for target in sorted(graph[name] & graph.keys() - {name}):
                visit(target, (*trail, name))
            done.add(name)

    for name in graph:
        visit(name, ())


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_one_door_per_library(path):
    here = str(path.relative_to(ROOT))
    for target in imports(path):
        library = target.split(".")[0]
        if library in DOORS:
            assert here in DOORS[library], f"{here} imports {library}"


def test_data_never_imports_jax():
    for path in (PACKAGE / "data").glob("*.py"):
        roots = {target.split(".")[0] for target in imports(path)}
        assert not roots & {"jax", "flax"}, path


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_print_no_bare_except_no_global_state(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id != "print", f"{path}:{node.lineno} prints"
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"{path}:{node.lineno} bare except"
        assert not isinstance(node, ast.Global), f"{path}:{node.lineno} global"


def test_functions_fit_on_a_screen():
    for path in (*FILES, *(ROOT / "configs").glob("*.py"), *ROOT.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = node.end_lineno - node.lineno + 1
                assert lines <= 60, f"{path}:{node.lineno} {node.name}: {lines} lines"


def task_comparisons(source: str) -> list[int]:
    """Lines in which something called a task is compared with a task's name."""
    return [
        node.lineno
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Compare)
        and "task" in ast.unparse(node)
        and any(
            isinstance(part, ast.Constant) and part.value in TASKS
            for part in ast.walk(node)
        )
    ]


def test_a_task_is_a_value_whose_name_nobody_compares():
    assert task_comparisons('x = config.task in ("text", "class")') == [1]
    for path in (*FILES, ROOT / "train.py", ROOT / "sample.py"):
        if PACKAGE / "tasks" not in path.parents:
            lines = task_comparisons(path.read_text())
            assert not lines, f"{path}:{lines} compares a task's name"


def test_no_junk_drawers_and_files_fit_in_one_sitting():
    folders = (PACKAGE, *(ROOT / name for name in ("tests", "benchmarks", "configs")))
    for path in (path for folder in folders for path in folder.rglob("*.py")):
        assert path.name not in BANNED_NAMES, path
        assert len(path.read_text().splitlines()) <= 450, path


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_public_thing_has_a_docstring(path):
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), f"{path}: no module docstring"
    for node in tree.body:
        kinds = (ast.FunctionDef, ast.ClassDef)
        if isinstance(node, kinds) and not node.name.startswith("_"):
            where = f"{path}:{node.lineno} {node.name}"
            assert ast.get_docstring(node) or node.name in ("main", "parse"), where


def test_the_readme_has_its_sections():
    """They were lost once, in an edit of a section between them."""
    lines = (ROOT / "README.md").read_text().splitlines()
    found = [line.removeprefix("## ") for line in lines if line.startswith("## ")]
    assert found == SECTIONS
