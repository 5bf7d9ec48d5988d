"""A toy text model that several modules share, in memory and as a directory."""

from pathlib import Path

import pytest

from lDM_jax.pipeline import Pipeline
from tests.toys import drawn, saved


@pytest.fixture(scope="session")
def directory(tmp_path_factory) -> Path:
    """A weights directory of a toy text model whose last layer is not zero."""
    return Path(saved("emoji", tmp_path_factory.mktemp("models")))


@pytest.fixture(scope="session")
def pipe() -> Pipeline:
    return drawn("emoji")
