"""Programs that others wrote for evaluation, imported without torchvision.

clean-fid, pytorch-fid and torch-fidelity import torchvision for networks and datasets
that these tests do not use, and prdc imports scikit-learn for one distance function.
Where these are missing, empty modules stand in for them while a peer is imported.
"""

import contextlib
import importlib
import importlib.util
import sys
import types

import pytest
from scipy.spatial.distance import cdist

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


@contextlib.contextmanager
def stand_ins():
    """Stand-ins for the missing modules, gone afterwards."""
    made = []
    for name in ABSENT:
        if name in sys.modules or importlib.util.find_spec(name.split(".")[0]):
            continue
        made.append(name)
    for name in made:
        sys.modules[name] = Absent(name)
    for name in made:
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, sys.modules[name])
    if "sklearn.metrics" in made:
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
