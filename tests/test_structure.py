"""The tree keeps its shape: import levels, one door a library, no prints, no debris."""

import ast
import re
from pathlib import Path

import pytest

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

# A module may import only from strictly lower levels (or its own folder's level mates
# listed in SIDEWAYS). First match wins.
LEVELS = [
    (r"lDM_jax\.(errors|image|startup)$", 0),
    (r"lDM_jax\.arrays$", 0.3),
    (r"lDM_jax\.(rng|box_tokens)$", 0.6),
    (r"lDM_jax\.models\.kernels$", 0.6),
    (r"lDM_jax\.flops$", 0.8),
    (r"lDM_jax\.schedules$", 1),
    (r"lDM_jax\.(interop\.convert|downloads)$", 1),
    (r"lDM_jax\.models\.(boxes|layers)$", 1),
    (r"lDM_jax\.models\.(clip|lpips)$", 1.5),
    (r"lDM_jax\.models(\..*)?$", 2),
    (r"lDM_jax\.interop\.torch_pickle$", 0),
    (r"lDM_jax\.interop\.checked$", 0.5),
    (r"lDM_jax\.interop\.(torch_file|architectures)$", 1),
    (r"lDM_jax\.interop\.architectures_conditions$", 1.5),
    (r"lDM_jax\.interop\.architectures_(original|diffusers)$", 1.7),
    (r"lDM_jax\.(diffusion|tokenizers)$", 2),
    (r"lDM_jax\.data\.transforms$", 2),
    (r"lDM_jax\.data\.bad_examples$", 1),
    (r"lDM_jax\.data\.(crop|degrade|masks|metadata)$", 2.5),
    (r"lDM_jax\.data\.sources$", 3.3),
    (r"lDM_jax\.data\.(folder|scenes)$", 3.6),
    (r"lDM_jax\.(guidance|samplers|codec|losses)$", 3),
    (r"lDM_jax\.tiling$", 3.5),
    (r"lDM_jax\.(pictures|windows|scores|preview)$", 3.8),
    (r"lDM_jax\.(requests|weights)$", 4),
    (r"lDM_jax\.tasks$", 4.5),
    (r"lDM_jax\.data(\..*)?$", 4),
    (r"lDM_jax\.metrics\.(statistics|recognition)$", 3.9),
    (r"lDM_jax\.metrics(\..*)?$", 4),
    (r"lDM_jax\.perceptual$", 5),
    (r"lDM_jax\.training\.(accumulation|distributed|optim|sharding|state)$", 5),
    (r"lDM_jax\.training\.(adversary|charts|codebook|health)$", 5),
    (r"lDM_jax\.training\.(checkpoint|guard|workdir)$", 5.5),
    (r"lDM_jax\.training\.(posthoc|report|wandb_log)$", 5.6),
    (r"lDM_jax\.training\.recorder$", 5.7),
    (r"lDM_jax\.training\.(autoencoder|classifier|diffusion)$", 6),
    (r"lDM_jax\.trajectory$", 6.5),
    (r"lDM_jax\.(build|interop\.names(_text)?)$", 7),
    (r"lDM_jax\.datasets$", 7.1),
    (r"lDM_jax\.config_file$", 7.2),
    (r"lDM_jax\.latents$", 7.2),
    (r"lDM_jax\.(experiment|training\.loop)$", 7.5),
    (r"lDM_jax\.interop\.conversion$", 7.6),
    (r"lDM_jax\.interop\.from_original$", 7.7),
    (r"lDM_jax\.interop\.(from_diffusers|export_(diffusers|original))$", 7.8),
    (r"lDM_jax\.trained$", 7.5),
    (r"lDM_jax\.planner$", 7.8),
    (r"lDM_jax\.(pipeline|summary)$", 8),
    (r"lDM_jax\.bulk$", 8.5),
    (r"lDM_jax\.evaluation$", 8.6),
    (r"lDM_jax\.evaluation\.(extractors|image_sets)$", 8.61),
    (r"lDM_jax\.evaluation\.features$", 8.62),
    (r"lDM_jax\.evaluation\.references$", 8.63),
    (r"lDM_jax\.evaluation\.figures$", 8.64),
    (r"lDM_jax\.evaluation\.options$", 8.65),
    (r"lDM_jax\.evaluation\.(compare|prompts|reference)$", 8.66),
    (r"lDM_jax\.evaluation\.generate$", 8.67),
    (r"lDM_jax\.evaluation\.tracking$", 8.68),
    (r"lDM_jax\.evaluation(\..*)?$", 8.7),
    (r"lDM_jax\.timeline$", 8.1),
    (r"lDM_jax\.studio\.turns$", 0),
    (r"lDM_jax\.studio\.(limits|run)$", 8.2),
    (r"lDM_jax\.studio\.(session|tabs|guard)$", 8.3),
    (r"lDM_jax\.studio\.conduct$", 8.4),
    (r"lDM_jax\.studio\.(again|fragments)$", 8.5),
    (r"lDM_jax\.studio\.files$", 8.6),
    (r"lDM_jax\.tools\.studio_layout$", 8.9),
    (r"lDM_jax\.tools\.studio_wiring$", 8.9),
    (r"lDM_jax\.tools\.studio_inputs$", 8.93),
    (r"lDM_jax\.tools\.studio_events$", 8.96),
    (r"lDM_jax\.tools(\..*)?$", 9),
    (r"lDM_jax(\.(training|interop|studio))?$", -1),
]
SIDEWAYS = {
    ("lDM_jax.models.conditioners", "lDM_jax.models.text"),
    ("lDM_jax.models.classifier", "lDM_jax.models.unet"),
    ("lDM_jax.metrics.objects", "lDM_jax.metrics.recognition"),
    ("lDM_jax.build", "lDM_jax.training.checkpoint"),
}
DOORS = {
    "orbax": {"lDM_jax/training/checkpoint.py"},
    "PIL": {"lDM_jax/image.py"},
    "grain": {"lDM_jax/data/pipeline.py"},
    "safetensors": {"lDM_jax/weights.py"},
    "torch": set(),
    "yaml": {"lDM_jax/tools/convert.py"},
    "gradio": {
        f"lDM_jax/tools/studio_{part}.py"
        for part in ("layout", "wiring", "inputs", "events")
    },
    "tensorboardX": {"lDM_jax/training/recorder.py"},
    "wandb": {"lDM_jax/training/wandb_log.py"},
    "matplotlib": {"lDM_jax/evaluation/sweep.py"},
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


def level(module: str) -> int:
    for pattern, number in LEVELS:
        if re.match(pattern, module):
            return number
    raise AssertionError(f"{module} has no level: add it to LEVELS")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_strictly_downward(path):
    name = module_name(path)
    for target in imports(path):
        if target.split(".")[0] != "lDM_jax" or (name, target) in SIDEWAYS:
            continue
        if target == "lDM_jax":
            continue
        assert level(target) < level(name), f"{name} imports {target}"


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
