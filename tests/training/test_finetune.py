"""`config.init_from`: a trained model, or a named part of it, as the starting point."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from lDM_jax.core.errors import UserError
from lDM_jax.from_config import networks
from lDM_jax.training import experiment
from lDM_jax.training.state import start_from
from lDM_jax.weights import directory as weights_directory


def config(**changes):
    made = importlib.import_module("configs.emoji").get_config("smoke").unlock()
    made.first_stage.path = "identity"
    made.data.size_px = 16
    made.data.cache_latents = False
    for key, value in changes.items():
        section, _, field = key.partition("__")
        made[section][field] = value
    return made


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> str:
    """A weights directory whose every array is 0.5."""
    made = experiment.make(config())
    state = jax.eval_shape(made.stage.init, jax.random.key(0))
    params = jax.tree.map(lambda leaf: np.full(leaf.shape, 0.5), state.params)
    path = tmp_path_factory.mktemp("trained")
    weights_directory.save(path, made.config.to_dict(), params)
    return str(path)


def started(**changes):
    made = experiment.make(config(**changes))
    shapes = jax.eval_shape(made.stage.init, jax.random.key(0))
    state = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    return start_from(state, made.initial)


def test_everything_or_a_named_part(trained):
    state = started(init_from__path=trained)
    for tree in (state.params, state.ema):
        assert all((leaf == 0.5).all() for leaf in jax.tree.leaves(tree))
    assert int(state.step) == 0
    part = started(init_from__path=trained, init_from__only=("unet/params/middle_0",))
    for tree in (part.params, part.ema):
        for path, leaf in flatten_dict(tree, sep="/").items():
            taken = path.startswith("unet/params/middle_0/")
            assert bool((leaf == 0.5).all()) == taken, path


def test_a_part_fits_where_the_whole_does_not(trained):
    """Another text encoder: the denoiser's middle is taken, the rest is refused."""
    other = dict(text__depth=2, init_from__path=trained)
    with pytest.raises(UserError, match=r"missing \['conditioner.*unexpected \[\]"):
        started(**other)
    started(**other, init_from__only=("unet",))


def test_unknown_parts_and_places_are_refused(trained):
    with pytest.raises(UserError, match="nothing lies below 'vae'.*conditioner, unet"):
        started(init_from__path=trained, init_from__only=("vae",))
    with pytest.raises(UserError, match="no weights at 'nowhere'"):
        started(init_from__path="nowhere")


def test_the_shipped_model_is_a_starting_point():
    """At its own architecture; the trained parameters arrive unchanged."""
    shipped, params = networks.load_trained("emoji")
    made = config(init_from__path="emoji")
    for section in ("unet", "text"):
        made[section] = shipped[section]
    made.first_stage.path = "emoji_kl_f8"
    made.data.update(dict(size_px=64, cache_latents=False))
    initial = experiment.make(made).initial
    flat = flatten_dict(params, sep="/")
    assert initial.keys() == flat.keys()
    assert all((initial[path] == flat[path]).all() for path in flat)
