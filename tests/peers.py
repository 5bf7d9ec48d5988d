"""Programs that others wrote for evaluation, with torchvision where it is at hand.

clean-fid, pytorch-fid and torch-fidelity import torchvision, and prdc scikit-learn for
one distance function. torchvision is looked for on the path and in the folder `peers`
of the environment, where a build for another machine than this one's torch harms
nobody. Where it or scikit-learn is missing, empty modules stand in for them while a
peer is imported.
"""

import contextlib
import functools
import importlib
import importlib.util
import inspect
import sys
import types
import warnings
from pathlib import Path
from unittest import mock

import pytest
from scipy import linalg
from scipy.spatial.distance import cdist

FOLDER = Path(sys.prefix) / "peers"
# What torchvision describes on import; its library holds them on the right machine.
OPERATORS = ("nms", "qnms")
SIGNATURE = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"

ABSENT = (
    "torchvision",
    "torchvision.datasets",
    "torchvision.models",
    "torchvision.models.inception",
    "torchvision.transforms",
    "torchvision.transforms.functional",
    "torchvision.transforms.v2",
    "torchvision.transforms.v2.functional",
    "sklearn",
    "sklearn.metrics",
)


class Absent(types.ModuleType):
    """A module in which every name is an empty class."""

    __path__: list = []

    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


@functools.cache
def torchvision_modules() -> dict[str, types.ModuleType]:
    """The modules of torchvision by name, {} without it.

    Those of the folder `peers` do not stay in sys.modules, where other packages would
    find them. Networks and transforms are Python: operators that its library lacks here
    are declared, so that it can be imported, and fail when called.
    """
    import torch

    installed, before = importlib.util.find_spec("torchvision"), set(sys.modules)
    sys.path.append(str(FOLDER))
    try:
        if importlib.util.find_spec("torchvision") is None:
            return {}
        try:
            importlib.import_module("torchvision")
        except RuntimeError as error:
            if "operator torchvision::" not in str(error):
                raise
            forget(before)
            library = torch.library.Library("torchvision", "DEF")
            for name in OPERATORS:
                library.define(f"{name}{SIGNATURE}")
            torchvision_modules.library = library  # it lives as long as they do
            importlib.import_module("torchvision")
        for name in ("transforms.v2.functional", "models.inception", "datasets"):
            importlib.import_module(f"torchvision.{name}")
        found = forget(before)
    finally:
        sys.path.remove(str(FOLDER))
    if installed is not None:
        sys.modules.update(found)
    return found


def forget(before: set[str]) -> dict[str, types.ModuleType]:
    """Take torchvision's modules that came after `before` out of sys.modules."""
    names = [name for name in sys.modules if name.split(".")[0] == "torchvision"]
    return {name: sys.modules.pop(name) for name in names if name not in before}


@contextlib.contextmanager
def stand_ins():
    """torchvision, or stand-ins for it and the like; gone afterwards."""
    made = {
        name: module
        for name, module in torchvision_modules().items()
        if name not in sys.modules
    }
    sys.modules.update(made)
    absent = [
        name
        for name in ABSENT
        if name not in sys.modules
        and importlib.util.find_spec(name.split(".")[0]) is None
    ]
    made |= {name: Absent(name) for name in absent}
    sys.modules.update(made)
    for name in absent:
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, sys.modules[name])
    if "sklearn.metrics" in absent:
        sys.modules["sklearn.metrics"].pairwise_distances = lambda a, b, **_: cdist(
            a, b
        )
    try:
        yield
    finally:
        for name in made:
            del sys.modules[name]


def peer(module: str):
    """The peer's module; skips the test where its package is not installed."""
    pytest.importorskip("torch", reason="needs requirements-dev.txt")
    if importlib.util.find_spec(module.split(".")[0]) is None:
        pytest.skip("needs requirements-dev.txt")
    with stand_ins():
        return importlib.import_module(module)


def torchvision():
    """torchvision itself; skips the test where it is not installed."""
    pytest.importorskip("torch", reason="needs requirements-dev.txt")
    modules = torchvision_modules()
    if not modules:
        pytest.skip(f"needs torchvision, installed or in {FOLDER}")
    return modules["torchvision"]


def quietly(function, *arguments):
    """Call, without the warnings of SciPy about its future and singular matrices.

    FID programs pass `disp=False` to its sqrtm, which SciPy 1.18 has removed: they get
    what it returned before.
    """
    takes_disp = "disp" in inspect.signature(linalg.sqrtm).parameters
    root_and_error = (
        linalg.sqrtm if takes_disp else functools.partial(sqrtm_as_before, linalg.sqrtm)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with mock.patch.object(linalg, "sqrtm", root_and_error):
            return function(*arguments)


def sqrtm_as_before(sqrtm, matrix, disp: bool = True):
    """SciPy's sqrtm up to 1.17: with disp=False the root and its relative error."""
    root = sqrtm(matrix)
    if disp:
        return root
    return root, linalg.norm(root @ root - matrix, "fro") / linalg.norm(matrix, "fro")
