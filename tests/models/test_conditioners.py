"""Conditions: every encoder and its null, what the frozen networks derive."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lDM_jax.core.errors import UserError
from lDM_jax.diffusion.codec import Codec
from lDM_jax.from_config import networks
from lDM_jax.models.autoencoder import Autoencoder
from lDM_jax.models.conditioners import AsItIs, ClassConditioner, SpatialRescaler
from tests.reference import rule
from tests.toys import small

KEEP = jnp.zeros(2, bool)
DROP_SECOND = jnp.array([False, True])


def made(config):
    """(model, frozen networks) of a config with random weights."""
    config.first_stage.path = "identity"
    codec, codec_params = networks.first_stage(config)
    frozen = networks.frozen(config, codec_params)
    return networks.model(config, codec), frozen


def test_label_maps_become_the_mean_colour_of_their_cells():
    labels = np.random.default_rng(0).integers(0, 5, (2, 8, 12))
    network = SpatialRescaler(5, num_stages=2, width=3)
    variables = network.init(jax.random.key(0), jnp.asarray(labels), KEEP)
    kernel = np.asarray(variables["params"]["mapper"]["kernel"])
    assert kernel.shape == (5, 3)
    shares = np.eye(5)[labels].reshape(2, 2, 4, 3, 4, 5).mean(axis=(2, 4))
    out = network.apply(variables, jnp.asarray(labels), DROP_SECOND)
    np.testing.assert_allclose(out[0], (shares @ kernel)[0], atol=1e-6)
    np.testing.assert_array_equal(out[1], 0)


@pytest.mark.parametrize("as_vector", [False, True])
def test_classes_with_and_without_a_null_class(as_vector):
    label = jnp.array([0, 2], jnp.int32)
    network = ClassConditioner(3, 4, as_vector=as_vector)
    variables = network.init(jax.random.key(0), label, KEEP)
    table = variables["params"]["embed"]["embedding"]
    assert table.shape == (4, 4)
    out = network.apply(variables, label, DROP_SECOND)
    assert out.shape == ((2, 4) if as_vector else (2, 1, 4))
    np.testing.assert_array_equal(out.reshape(2, 4), table[jnp.array([0, 3])])
    bare = ClassConditioner(3, 4, null_class=False, as_vector=as_vector)
    variables = {"params": {"embed": {"embedding": table[:3]}}}
    out = bare.apply(variables, label, DROP_SECOND)
    np.testing.assert_array_equal(out.reshape(2, 4), table[label])


def test_which_label_has_which_box_is_seen_from_the_first_step():
    """Blind to order, the six vectors of swapped labels would have the same mean."""
    config = small("emoji_layout")
    here, there = (0.1, 0.1, 0.4, 0.4), (0.5, 0.5, 0.3, 0.3)
    layouts = [[(0, here), (1, there)], [(1, here), (0, there)]]
    tokens = jnp.asarray(networks.tokenizer(config)(layouts))
    assert sorted(tokens[0].tolist()) == sorted(tokens[1].tolist())
    network = networks.conditioner(config).encoders["layout"].transformer
    variables = network.init(jax.random.key(0), tokens)
    one, other = network.apply(variables, tokens)[:, :6].mean(axis=1)
    difference = jnp.linalg.norm(one - other) / jnp.linalg.norm(one)
    assert difference > 0.05


def test_class_embeddings_start_with_variance_one():
    variables = ClassConditioner(200, 512).init(
        jax.random.key(0), jnp.zeros(1, int), KEEP[:1]
    )
    table = variables["params"]["embed"]["embedding"]
    assert abs(table.std() - 1) < 0.01  # 2 / sqrt(2 * 201 * 512) is 0.004


def test_a_condition_as_it_is():
    value = jnp.ones((2, 3, 3, 1))
    out = AsItIs().apply({}, value, DROP_SECOND)
    np.testing.assert_array_equal(out[:, 0, 0, 0], [1, 0])
    out = AsItIs(droppable=False).apply({}, value, DROP_SECOND)
    np.testing.assert_array_equal(out, value)


def test_a_class_vector_is_added_to_the_time_embedding():
    config = small("celebahq_ldm4", task="class", num_classes=3)
    model, frozen = made(config)
    batch = {"label": jnp.array([0, 2], jnp.int32)}
    conditioner = rule.fast_jit(model.conditioner.init)(jax.random.key(0), batch)
    cond = model.condition({"conditioner": conditioner}, frozen, batch, DROP_SECOND)
    table = conditioner["params"]["encoders_class"]["embed"]["embedding"]
    assert cond.vector.shape == (2, 4 * config.unet.width)
    np.testing.assert_array_equal(cond.vector, table[jnp.array([0, 3])])


def test_inpainting_sees_the_masked_latents_and_the_mask():
    config = small("celebahq_ldm4", task="inpaint")
    codec = Codec(Autoencoder(8, (1, 1, 1), 1, 3, 3, num_groups=4), 0.5)
    model = networks.model(config, codec)
    x = jax.random.uniform(jax.random.key(0), (2, 32, 32, 3), minval=-1, maxval=1)
    mask = jnp.zeros((2, 32, 32, 1)).at[:, 8:20, :16].set(1)
    params = rule.fast_jit(codec.autoencoder.init)(jax.random.key(1), x)
    frozen = {"first_stage": params}
    batch = {"image": x, "mask": mask}
    condition = rule.fast_jit(model.condition)
    cond = condition({"conditioner": {}}, frozen, batch, DROP_SECOND)
    assert cond.concat.shape == (2, 8, 8, 4)
    black = np.where(np.asarray(mask) > 0, -1, np.asarray(x))
    z = rule.fast_jit(codec.encode)(params, jnp.asarray(black))
    np.testing.assert_allclose(cond.concat[0, :, :, :3], z[0], atol=1e-5)
    expected = -np.ones((8, 8))
    expected[2:5, :4] = 1
    np.testing.assert_array_equal(cond.concat[0, :, :, 3], expected)
    np.testing.assert_array_equal(cond.concat[1], 0)


def test_a_frozen_tower_is_dropped_by_its_empty_prompt_and_does_not_train():
    text = dict(kind="clip", path="random", pad="eos")
    text["network"] = dict(width=16, depth=1, num_heads=2)
    config = small("emoji", text=text)
    model, frozen = made(config)
    tokens = networks.tokenizer(config)(["a red heart", "a dog", ""])
    batch = {"tokens": jnp.asarray(tokens)}
    z0 = jnp.zeros((3, 8, 8, 3))
    shapes = jax.eval_shape(model.init, jax.random.key(0), batch, z0)
    assert shapes["conditioner"] == {}
    params = {"conditioner": {}}
    drop = jnp.array([False, True, False])
    condition = rule.fast_jit(model.condition)
    context = condition(params, frozen, batch, drop).context
    assert context.shape == (3, 77, 16)
    np.testing.assert_allclose(context[1], context[2], atol=1e-6)
    assert np.abs(context[0] - context[2]).max() > 1e-3
    gradient = rule.fast_jit(
        jax.grad(lambda frozen: model.condition(params, frozen, batch).context.sum())
    )(frozen)
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (dict(task="layout", unet__context_width=0), "needs config.unet.context_width"),
        (dict(text__width=8), "must equal config.unet.context_width"),
        (dict(text__kind="elmo"), "valid: bert, clip"),
        (dict(text=dict(kind="clip", path="", network=dict(
            width=16, depth=1, num_heads=2))), "config.text.path is empty"),
        (dict(text=dict(kind="clip", path="random", network=dict(
            width=8, depth=1, num_heads=2))), "the text tower is 8 wide"),
        (dict(text=dict(kind="clip", path="emoji_kl_f8")), "is no text tower"),
        (dict(task="semantic", num_classes=0), "needs config.num_classes"),
        (dict(task="class", num_classes=3, null_class=False), "needs a null class"),
        (dict(unet__transformer_depth=(1, 2, 3)), "one for each of the 2 levels"),
    ],
)  # fmt: skip
def test_impossible_conditions(changes, reason):
    config = small("emoji", **changes)
    config.loss.drop_rate = 0.1
    with pytest.raises(UserError, match=reason):
        made(config)
