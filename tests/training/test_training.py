"""Both stages from their smoke configs: they learn, look at themselves, and shard."""

import functools
import importlib
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lDM_jax.core import rng
from lDM_jax.core.arrays import Cond
from lDM_jax.core.errors import UserError
from lDM_jax.core.sharding import make_mesh
from lDM_jax.diffusion import losses
from lDM_jax.diffusion.process import Process
from lDM_jax.from_config import networks
from lDM_jax.training import diffusion, experiment
from lDM_jax.training.optim import make_optimizer, make_schedule
from lDM_jax.training.state import ema_update


def make(name, arg="smoke", **changes):
    config = importlib.import_module(f"configs.{name}").get_config(arg).unlock()
    for key, value in changes.items():
        section, _, field = key.partition("__")
        config[section][field] = value
    return experiment.make(config)


@functools.cache
def started(name: str, arg: str, **changes) -> tuple:
    """(experiment, a batch, first state, compiled step) for all tests of a config."""
    rate = dict(optimizer__learning_rate=3e-3, optimizer__schedule="constant")
    made = make(name, arg, **rate, **changes)
    batch = {k: jnp.asarray(v) for k, v in next(made.iterator).items()}
    made.iterator.close()
    state = jax.jit(made.stage.init)(jax.random.key(0))
    return made, batch, state, jax.jit(made.stage.step)


@pytest.mark.parametrize(
    ("name", "arg", "picture"),
    [
        ("emoji_autoencoder", "smoke", "reconstruction"),
        ("emoji_autoencoder", "vq,smoke", "reconstruction"),
        ("emoji", "smoke", "samples"),
        pytest.param("celebahq_ldm4", "smoke", "samples", marks=pytest.mark.slow),
    ],
)
def test_a_stage_learns_one_batch_and_looks_at_itself(name, arg, picture):
    # fewer levels to compile
    changes = dict(autoencoder__width_mults=(1, 2)) if "auto" in name else {}
    made, batch, state, step = started(name, arg, **changes)
    stage, frozen = made.stage, made.frozen
    values = []
    for number in range(60):
        # few noise draws, so that the same error can fall
        key = rng.key(jax.random.key(0), "step", number % 4)
        state, scalars = step(state, frozen, batch, key)
        values.append(float(scalars["loss"]))
    assert int(state.step) == 60
    assert np.mean(values[-8:]) < 0.8 * np.mean(values[:8])
    pictures = stage.preview(state, frozen, batch, jax.random.key(0))
    assert pictures[picture].dtype == np.uint8 and pictures[picture].ndim == 3
    figures = stage.evaluate(state, frozen, [next(iter(made.eval_batches()))])
    assert all(np.isfinite(value) for value in figures.values())


def test_a_preview_without_a_condition_draws_every_row_once():
    seen = []

    def denoise(params, z, t, cond):
        seen.append(len(z))
        return z

    conds = Cond(), Cond(context=jnp.zeros((3, 1, 2)))
    for cond, rows in zip(conds, (3, 6), strict=True):
        model = SimpleNamespace(
            process=Process.discrete(),
            condition=lambda *rest, cond=cond: cond,
            denoise=denoise,
            codec=SimpleNamespace(decode=lambda params, z: z),
        )
        stage = diffusion.DiffusionStage(
            model,
            None,
            conditions={},
            latent_shape=(2, 2, 1),
            previews=diffusion.PreviewSettings(steps=2, guidance=3.0),
        )
        keys = jax.random.split(jax.random.key(0), 3)
        frozen = {"first_stage": None}
        assert stage.sample({}, frozen, {}, keys).shape == (3, 2, 2, 1)
        assert set(seen) == {rows}
        seen.clear()


def test_the_denoiser_trains_its_text_transformer_and_averages_it():
    """Unlike the original, tau has an EMA; the frozen first stage gets no gradient."""
    made, batch, start, step = started("emoji", "smoke")
    state = start
    for number in range(3):
        state, _ = step(state, made.frozen, batch, jax.random.key(number))
    assert set(state.params) == set(state.ema) == {"unet", "conditioner"}
    for tree in (state.params, state.ema):
        moved = jax.tree.map(
            lambda a, b: float(jnp.abs(a - b).max()),
            tree["conditioner"],
            start.params["conditioner"],
        )
        assert min(jax.tree.leaves(moved)) > 0


def test_ema_warms_up_as_the_original_and_ends_at_its_decay():
    ema, params = {"w": jnp.zeros(())}, {"w": jnp.ones(())}
    # LitEma: decay min(0.9999, (1 + n) / (10 + n)), n counting this update
    assert float(ema_update(ema, params, 0.9999, 1)["w"]) == pytest.approx(1 - 2 / 11)
    assert float(ema_update(ema, params, 0.5, 10**6)["w"]) == pytest.approx(0.5)


def test_adamw_against_its_definition():
    """One step from zero moments moves by lr sign(g), plus decoupled decay."""
    optimizer, _ = make_optimizer(learning_rate=0.1, weight_decay=0.5)
    params = {"w": jnp.array([2.0, -4.0])}
    grads = {"w": jnp.array([0.3, -7.0])}
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    expected = -0.1 * (np.array([1.0, -1.0]) + 0.5 * np.array([2.0, -4.0]))
    np.testing.assert_allclose(updates["w"], expected, rtol=1e-5)


def test_schedules_meet_their_ends():
    common = dict(learning_rate=2.0, warmup_steps=10, num_steps=110)
    for name, halfway, end in [
        ("constant", 2.0, 2.0),
        ("cosine", 1.0, 0.0),
        ("linear", 1.0, 0.0),
    ]:
        rate = make_schedule(schedule=name, **common)
        assert float(rate(0)) == 0.0 and float(rate(5)) == pytest.approx(1.0)
        assert float(rate(60)) == pytest.approx(halfway, abs=1e-6)
        assert float(rate(110)) == pytest.approx(end, abs=1e-6)
    with pytest.raises(UserError, match="constant, cosine, linear"):
        make_schedule(schedule="step", **common)
    with pytest.raises(UserError, match="adam, adamw"):
        make_optimizer(name="sgd", learning_rate=1.0)


def test_mesh_sizes_that_do_not_fill_the_devices_are_refused():
    with pytest.raises(UserError, match="does not fill 8 devices"):
        make_mesh(3, 1)


def test_latents_cache_equals_encoding_on_the_fly():
    made, *_ = started("emoji", "smoke")
    config = made.config
    codec, params = networks.first_stage(config)
    source, row = experiment.source(config, "validation"), experiment.transform(config)
    images = np.stack(
        [row(source[i], np.random.default_rng(0))["image"] for i in range(4)]
    )
    cached = next(iter(made.eval_batches()))["moments"][:4]
    np.testing.assert_allclose(codec.moments(params, images), cached, atol=1e-5)
    assert float(losses.psnr(images, images).min()) > 100
