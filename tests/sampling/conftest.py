"""A toy text model that several modules share, as a directory and in memory."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lDM_jax.from_config import networks
from lDM_jax.pipeline import Pipeline
from lDM_jax.weights import directory as weights_directory
from tests.toys import smoke


@pytest.fixture(scope="session")
def directory(tmp_path_factory) -> Path:
    """A weights directory of a toy text model whose last layer is not zero."""
    config = smoke("emoji")
    codec, _ = networks.first_stage(config)
    model = networks.model(config, codec)
    batch = {"tokens": jnp.zeros((1, config.text.max_length), jnp.int32)}
    size = config.data.size_px
    z0 = jnp.zeros((1, *codec.latent_shape(size, size)))
    params = jax.jit(model.init)(jax.random.key(0), batch, z0)
    leaves, tree = jax.tree.flatten(params)
    rng = np.random.default_rng(0)
    leaves = [leaf + 0.1 * rng.standard_normal(leaf.shape) for leaf in leaves]
    path = tmp_path_factory.mktemp("models") / "toy"
    weights_directory.save(path, config.to_dict(), jax.tree.unflatten(tree, leaves))
    return path


@pytest.fixture(scope="session")
def pipe(directory) -> Pipeline:
    return Pipeline.load(str(directory))
