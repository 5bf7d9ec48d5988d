"""The published first stages: sizes, codebooks, names, and configs that build."""

import importlib
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from ml_collections import ConfigDict

from configs import common
from lDM_jax.from_config import networks
from lDM_jax.interop import names
from lDM_jax.training import build
from lDM_jax.training.summary import summary
from tests.reference import rule

# f, channels, codes, millions of parameters in encoder and decoder: the released
# configs, counted with the original program. No count is published for the rest.
PUBLISHED = {
    "kl_f2": (2, 2, 0, None),
    "kl_f4": (4, 3, 0, (22.351, 32.961)),
    "kl_f8": (8, 4, 0, (34.164, 49.490)),
    "kl_f16": (16, 16, 0, (28.266, 41.344)),
    "kl_f32": (32, 64, 0, (42.615, 61.245)),
    "vq_f2": (2, 2, 2048, None),
    "vq_f4": (4, 3, 8192, (22.337, 32.961)),
    "vq_f4_noattn": (4, 3, 8192, (21.286, 31.909)),
    "vq_f8": (8, 4, 16384, (27.398, 40.254)),
    "vq_f8_n256": (8, 4, 256, (27.398, 40.254)),
    "vq_f16": (16, 8, 16384, (28.155, 41.307)),
    "vq_f32": (32, 16, 16384, None),
}
STATE_DICTS = rule.FOLDER / "state_dicts"
RELEASED = [
    name
    for name in PUBLISHED
    if (STATE_DICTS / f"{name.replace('_', '-')}.tsv.gz").is_file()
]
INSIDE = {"celeba256": "vq_f4", "lsun_churches256": "kl_f8"}


def config_of(name: str, arg: str = "") -> ConfigDict:
    return importlib.import_module(f"configs.{name}").get_config(arg)


def test_every_published_first_stage_has_a_config():
    assert set(common.FIRST_STAGES) == set(PUBLISHED)
    folder = Path(common.__file__).parent
    assert all((folder / f"{name}.py").is_file() for name in PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_sizes(name):
    f, channels, codes, published = PUBLISHED[name]
    network = networks.autoencoder(config_of(name).autoencoder)
    x = jnp.zeros((1, 2 * f, 2 * f, 3))
    shapes = jax.eval_shape(network.init, jax.random.key(0), x)["params"]
    assert network.factor == f and network.latent_channels == channels
    assert network.is_kl == (codes == 0)
    if codes:
        assert shapes["quantizer"]["codebook"].shape == (codes, channels)
    if published:
        counts = [
            sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes[part])) / 1e6
            for part in ("encoder", "decoder")
        ]
        assert tuple(round(count, 3) for count in counts) == published


def exact_cover(name: str, released: rule.Shapes):
    """Every released entry but those of the loss is ours, and nothing else."""
    network = networks.autoencoder(config_of(name).autoencoder)
    ours = {
        entry: value.shape for entry, value in names.autoencoder_names(network).items()
    }
    released = {
        entry: shape
        for entry, shape in released.items()
        if not entry.startswith("loss.")
    }
    assert ours == released


@pytest.mark.parametrize("name", RELEASED)
def test_names_of_the_released_weights(name):
    exact_cover(
        name, rule.read_shapes(STATE_DICTS / f"{name.replace('_', '-')}.tsv.gz")
    )


@pytest.mark.parametrize("model", INSIDE)
def test_names_inside_the_released_diffusion_models(model):
    path = STATE_DICTS / f"{model}.tsv.gz"
    exact_cover(INSIDE[model], rule.read_shapes(path, prefix="first_stage_model."))


@pytest.mark.parametrize("name", PUBLISHED)
def test_configs_lock_and_build_without_allocating(name):
    config = config_of(name)
    assert config.is_locked and config.train.ema_decay == 0
    assert build.adversary(config).network.width == 64
    smoke = config_of(name, "smoke")
    assert smoke.is_locked
    assert f"f = {PUBLISHED[name][0]}" in summary(smoke)
    with pytest.raises(ValueError, match="smoke"):
        config_of(name, "huge")


def test_the_diffusion_config_takes_its_first_stage_from_the_table():
    section = config_of("celebahq_ldm4").first_stage.network
    assert section == config_of("vq_f4").autoencoder
