"""The discriminator and the game: recorded vectors, closed forms, the sleeping turn."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lDM_jax.core.errors import UserError
from lDM_jax.core.sharding import batch_sharding, make_mesh, replicated
from lDM_jax.diffusion import losses
from lDM_jax.models.autoencoder import Autoencoder
from lDM_jax.models.discriminator import PatchDiscriminator
from lDM_jax.training import autoencoder as stage1
from lDM_jax.training.adversary import Adversary
from lDM_jax.training.autoencoder import diagnose
from lDM_jax.training.codebook import CodeAverages, code_usage, update_codebook
from tests.reference import rule

PATCHGAN = rule.FOLDER / "original" / "patchgan"
SMALL = dict(width=8, width_mults=(1, 2), num_res_blocks=1, z_channels=4)
SMALL |= dict(latent_channels=4, num_groups=4)


def original_weights() -> dict:
    """The recorded PatchGAN: entry main.i is convolution or norm number i // 3."""
    shapes = rule.read_shapes(PATCHGAN / "keys.tsv.gz")
    buffers = rule.read_arrays(PATCHGAN / "buffers.npz")
    params, stats = {}, {}
    for name in shapes:
        _, index, kind = name.split(".")
        number = (int(index) + 1) // 3
        value = rule.weight(name, shapes[name])
        if value.ndim == 4:
            entry = {"kernel": value.transpose(2, 3, 1, 0)}
            params.setdefault(f"conv_{number}", {}).update(entry)
        elif kind.startswith("running"):
            leaf = kind.removeprefix("running_")
            stats.setdefault(f"norm_{number}", {})[leaf] = buffers[name]
        elif kind in ("weight", "bias"):
            norm = f"main.{index}.running_mean" in shapes
            leaf = "scale" if norm and kind == "weight" else kind
            place = f"{'norm' if norm else 'conv'}_{number}"
            params.setdefault(place, {})[leaf] = value
    return {"params": params, "batch_stats": stats}


def test_patchgan_agrees_with_the_original():
    """In both modes; 2.77M parameters, the published size."""
    network, variables = PatchDiscriminator(), original_weights()
    count = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    assert count == 2_765_633  # counted from the original
    io = {k: rule.last(v) for k, v in rule.read_arrays(PATCHGAN / "io.npz").items()}
    fresh = jax.eval_shape(network.init, jax.random.key(0), io["image"])
    jax.tree.map(
        lambda a, b: np.testing.assert_equal(a.shape, b.shape), fresh, variables
    )
    logits = rule.fast_jit(network.apply)(variables, io["image"])
    np.testing.assert_allclose(logits, io["logits_eval"], atol=1e-4)
    logits, updated = rule.fast_jit(
        lambda v, x: network.apply(v, x, True, mutable=["batch_stats"])
    )(variables, io["image"])
    np.testing.assert_allclose(logits, io["logits_train"], atol=1e-4)
    moved = jax.tree.map(
        lambda a, b: float(jnp.abs(a - b).max()),
        updated["batch_stats"],
        variables["batch_stats"],
    )
    assert min(jax.tree.leaves(moved)) > 0


def test_batch_norm_takes_its_statistics_over_all_devices():
    network = PatchDiscriminator(width=8, num_layers=1)
    x = rule.noise("x", (8, 16, 16, 3)) * np.arange(1, 9)[:, None, None, None]
    x = x.astype(np.float32)
    variables = network.init(jax.random.key(0), x)

    def run(variables, x):
        return network.apply(variables, x, True, mutable=["batch_stats"])

    alone = jax.jit(run)(variables, x)
    mesh = make_mesh(8, 1)
    spread = jax.jit(run, in_shardings=(replicated(mesh), batch_sharding(mesh)))(
        variables, x
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        alone,
        spread,
    )


def test_group_norm_has_no_state_and_impossible_sizes_are_refused():
    network = PatchDiscriminator(width=8, num_layers=2, norm="group")
    variables = network.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    assert set(variables) == {"params"}
    with pytest.raises(UserError, match="at least 24 px, not 16"):
        PatchDiscriminator().check_size(16)
    with pytest.raises(UserError, match="batch, group"):
        PatchDiscriminator(norm="layer").check_size(64)


def test_adversarial_losses_by_hand():
    real = jnp.array([2.0, 0.5]).reshape(1, 1, 2, 1)
    fake = jnp.array([-3.0, 0.25]).reshape(1, 1, 2, 1)
    # hinge: max(0, 1 - D(x)) = (0, 0.5), max(0, 1 + D(x_hat)) = (0, 1.25)
    assert float(losses.discriminator_loss(real, fake)) == pytest.approx(
        0.5 * (0.25 + 0.625)
    )
    expected = 0.5 * (
        np.mean(np.log1p(np.exp([-2.0, -0.5])))
        + np.mean(np.log1p(np.exp([-3.0, 0.25])))
    )
    vanilla = losses.discriminator_loss(real, fake, "vanilla")
    assert float(vanilla) == pytest.approx(expected)
    assert float(losses.generator_loss(fake)) == pytest.approx(1.375)
    with pytest.raises(UserError, match="hinge, vanilla"):
        losses.discriminator_loss(real, fake, "wasserstein")


def test_adaptive_weight_is_a_ratio_of_norms_with_a_ceiling():
    rec, gen = jnp.array([3.0, 4.0]), jnp.array([0.0, 0.1])
    assert float(losses.adaptive_weight(rec, gen)) == pytest.approx(5 / 0.1001)
    assert float(losses.adaptive_weight(rec, 0 * gen)) == pytest.approx(1e4)


@pytest.fixture(scope="module")
def game():
    """(first state, compiled step, its traces); the discriminator wakes at step 2."""
    adversary = Adversary(
        PatchDiscriminator(width=8, num_layers=1),
        optax.adam(1e-3),
        start_steps=2,
        weight=0.5,
    )
    network, optimizer = Autoencoder(**SMALL), optax.adam(1e-3)
    stage = stage1.AutoencoderStage(
        network, optimizer, image_size_px=16, adversary=adversary
    )
    traces = []

    def counted(*args):
        traces.append(1)
        return stage.step(*args)

    return jax.jit(stage.init)(jax.random.key(0)), jax.jit(counted), traces


def test_the_discriminator_sleeps_then_wakes_without_a_retrace(game):
    state, step, traces = game
    batch = {"image": jnp.asarray(np.tanh(rule.noise("x", (2, 16, 16, 3))))}
    players, weights = [state.discriminator.variables], []
    for number in range(4):
        state, scalars = step(state, {}, batch, jax.random.key(number))
        players.append(state.discriminator.variables)
        weights.append(float(scalars["adv_weight"]))
    assert len(traces) == 1
    jax.tree.map(np.testing.assert_array_equal, players[0], players[2])
    # the last bias alone stays: both hinges pull at it with 1/2
    before, after = (player["params"] for player in players[2:4])
    for place in ("conv_0", "conv_1", "conv_2"):
        assert (before[place]["kernel"] != after[place]["kernel"]).any()
    assert weights[:2] == [0, 0] and min(weights[2:]) > 0


def test_the_sleeping_game_changes_nothing_for_the_autoencoder(game):
    network = Autoencoder(**SMALL)
    plain = stage1.AutoencoderStage(network, optax.adam(1e-3), image_size_px=16)
    batch = {"image": jnp.asarray(np.tanh(rule.noise("x", (2, 16, 16, 3))))}
    alone = jax.jit(plain.init)(jax.random.key(0)), jax.jit(plain.step)
    ends = []
    for state, step in (alone, game[:2]):
        state, _ = step(state, {}, batch, jax.random.key(1))
        ends.append(state.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), *ends)


def test_averages_move_the_codebook_to_the_mean_of_its_latents():
    """With decay 0 a code becomes the mean of what it took; an unused one stays."""
    codebook = jnp.array([[0.0], [10.0], [-50.0]])
    z = jnp.array([1.0, 3.0, 8.0, 0.0]).reshape(1, 2, 2, 1)
    codes = jnp.array([0, 0, 1, 0]).reshape(1, 2, 2)
    start = CodeAverages.start(codebook)
    options = dict(by_average=True, restart_below=0.0)
    _, moved = update_codebook(
        start, codebook, z, codes, jax.random.key(0), decay=1e-9, **options
    )
    np.testing.assert_allclose(moved[:2, 0], [4 / 3, 8.0], rtol=1e-5)
    # 100 steps on the same batch at decay 0.9 forget the start
    averages, book = start, codebook
    for _ in range(100):
        averages, book = update_codebook(
            averages, book, z, codes, jax.random.key(0), decay=0.9, **options
        )
    np.testing.assert_allclose(book[:2, 0], [4 / 3, 8.0], rtol=1e-3)
    np.testing.assert_allclose(averages.counts[:2], [3, 1], rtol=1e-3)


def test_dead_codes_restart_at_latents_of_the_batch():
    codebook = jnp.array([[0.0], [10.0], [-50.0]])
    z = jnp.array([1.0, 3.0, 8.0, 0.0]).reshape(1, 2, 2, 1)
    codes = jnp.array([0, 0, 1, 0]).reshape(1, 2, 2)
    averages, book = CodeAverages.start(codebook), codebook
    for number in range(20):
        averages, book = update_codebook(
            averages,
            book,
            z,
            codes,
            jax.random.key(number),
            decay=0.5,
            by_average=False,
            restart_below=0.01,
        )
        if float(book[2, 0]) != -50.0:
            break
    assert number == 6  # 0.5^7 < 0.01 <= 0.5^6
    assert float(book[2, 0]) in (1.0, 3.0, 8.0, 0.0)
    np.testing.assert_array_equal(book[:2], codebook[:2])
    assert float(averages.counts[2]) == 1.0


@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_a_vq_stage_revives_a_codebook_that_is_far_away(decay):
    objective = stage1.Objective(codebook_decay=decay, restart_below=0.02)
    network = Autoencoder(**SMALL | dict(width_mults=(1,)), num_codes=64)
    stage = stage1.AutoencoderStage(
        network, optax.adam(1e-3), image_size_px=16, objective=objective
    )
    state = jax.jit(stage.init)(jax.random.key(0))
    far = 100.0 + stage1.codebook_of(state.params)
    params = stage1.with_codebook(state.params, far)
    hardly_used = CodeAverages.start(far).replace(counts=jnp.full(64, 0.0201))
    state = state.replace(params=params, codes=hardly_used)
    step = jax.jit(stage.step)
    batch = {"image": jnp.asarray(np.tanh(rule.noise("x", (4, 16, 16, 3))))}
    usage = []
    for number in range(4):
        state, scalars = step(state, {}, batch, jax.random.key(number))
        usage.append(float(scalars["code_usage"]))
    assert usage[0] <= 2 / 64
    assert usage[-1] > 0.5


def test_usage_and_perplexity_of_known_codes():
    codes = jnp.array([0, 0, 1, 1]).reshape(1, 2, 2)
    perplexity, usage = code_usage(codes, 8)
    assert float(perplexity) == pytest.approx(2.0) and float(usage) == 0.25


def test_each_collapse_gets_its_line_and_health_none():
    well = dict(code_usage=0.8, disc_acc=0.7, logit_real=0.5, logit_fake=-0.4)
    assert diagnose(well) == [] and diagnose({"psnr": 20.0}) == []
    assert "codebook collapse" in diagnose({**well, "code_usage": 0.01})[0]
    assert "no difference" in diagnose({**well, "logit_fake": 0.499})[0]
    won = dict(disc_acc=0.999, logit_real=9.0, logit_fake=-9.0)
    assert "wins everywhere" in diagnose({**well, **won})[0]


def test_bf16_compute_keeps_parameters_losses_and_logits_in_f32():
    """By tracing alone: inner arrays are bf16, what leaves the networks is f32."""
    half = jnp.bfloat16
    disc = PatchDiscriminator(width=8, num_layers=1, dtype=half)
    stage = stage1.AutoencoderStage(
        Autoencoder(**SMALL, dtype=half),
        optax.adam(1e-3),
        image_size_px=16,
        adversary=Adversary(disc, optax.adam(1e-3)),
    )
    state = jax.eval_shape(stage.init, jax.random.key(0))
    batch = {"image": jax.ShapeDtypeStruct((2, 16, 16, 3), jnp.float32)}
    after, scalars = jax.eval_shape(stage.step, state, {}, batch, jax.random.key(0))
    leaves = jax.tree.leaves((after, scalars))
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype("float32"), jnp.dtype("int32")}
    text = jax.jit(stage.step).lower(state, {}, batch, jax.random.key(0)).as_text()
    convolutions = [line for line in text.splitlines() if "convolution" in line]
    assert convolutions and all("bf16" in line for line in convolutions)
