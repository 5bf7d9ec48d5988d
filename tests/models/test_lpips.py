"""LPIPS against the package lpips, and where its weights come from.

The default tests compare with vectors that tests/reference/record_metrics.py recorded;
the live tests run the package itself, with other weights, heads and images.
"""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from lDM_jax.core.errors import UserError
from lDM_jax.models.lpips import LPIPS, unit
from lDM_jax.weights import lpips as lpips_weights
from tests.reference import metrics_inputs, rule

SMALL = LPIPS(((8, 8), (16,)))
small_distance = rule.fast_jit(SMALL.apply)


@pytest.fixture(scope="module")
def vgg16_file(tmp_path_factory):
    """VGG16 by the rule, with an entry of the classifier; 59 MB."""
    path = tmp_path_factory.mktemp("vgg16") / "vgg16.safetensors"
    unused = {"classifier.6.bias": np.zeros(1000, np.float32)}
    save_file(metrics_inputs.vgg16("lpips/") | unused, path)
    return path


@pytest.fixture(scope="module")
def small():
    """A network of two slices with positive random heads, and two pairs of images."""
    keys = jax.random.split(jax.random.key(0), 3)
    x, y = jax.random.uniform(keys[0], (2, 2, 8, 8, 3), minval=-1.0)
    params = rule.fast_jit(SMALL.init)(keys[1], x, y)["params"]
    for name in ("heads_0", "heads_1"):
        head = params[name]["kernel"]
        params[name]["kernel"] = jax.random.uniform(keys[2], head.shape)
    return {"params": params}, x, y


def answer(variables: dict, inputs: dict) -> dict:
    """What `record_metrics.answer` returns, computed by our network."""

    def total(x, y):
        distance = LPIPS().apply(variables, x, y)
        return distance.sum(), distance

    run = rule.fast_jit(jax.grad(total, argnums=(0, 1), has_aux=True))
    grads, distance = run(inputs["x"], inputs["y"])
    return dict(distance=distance, grad_x=grads[0], grad_y=grads[1])


def assert_close(ours: dict, theirs: dict):
    """Distances to 1e-5, gradients of most images to 1e-4 of their norm, in f32.

    One ReLU of 300,000 whose input lies within rounding of zero, and that opens on one
    side only, is worth up to 1e-2 of a gradient (f32 and f64 of the package differ so).
    """
    np.testing.assert_allclose(ours["distance"], theirs["distance"], rtol=1e-5)
    errors = []
    for name in ("grad_x", "grad_y"):
        for result, expected in zip(ours[name], theirs[name], strict=True):
            norm = np.linalg.norm(expected)
            errors.append(np.linalg.norm(result - expected) / norm)
    assert max(errors) < 2e-2 and sorted(errors)[1] < 1e-4, errors


def test_recorded(vgg16_file):
    """VGG16 from a file, shipped heads: the package's distances and gradients."""
    variables = lpips_weights.load_lpips(vgg16_file)
    ours = answer(variables, metrics_inputs.floats("lpips/"))
    assert_close(ours, rule.read_arrays(rule.FOLDER / "lpips.npz"))


@pytest.mark.live
def test_live(tmp_path):
    """VGG16 in the older of torch's formats, that of torchvision's file."""
    torch = pytest.importorskip("torch", reason="needs requirements-dev.txt")
    pytest.importorskip("skimage", reason="needs requirements-dev.txt")
    if importlib.util.find_spec("lpips") is None:  # importing it needs torchvision
        pytest.skip("needs requirements-dev.txt")
    from tests.reference import record_metrics

    salt, path = "live/lpips/", tmp_path / "vgg16.pth"
    arrays = metrics_inputs.vgg16(salt)
    state_dict = {name: torch.from_numpy(array) for name, array in arrays.items()}
    torch.save(state_dict, path, _use_new_zipfile_serialization=False)
    variables = lpips_weights.load_lpips(path)
    for index, head in enumerate(metrics_inputs.heads(salt).values()):
        variables["params"][f"heads_{index}"]["kernel"] = head.reshape(-1, 1)
    inputs = metrics_inputs.floats(salt)
    model = record_metrics.build(salt, own_heads=False)
    assert_close(answer(variables, inputs), record_metrics.answer(model, inputs))


def test_equal_pictures_have_distance_and_slope_zero(small):
    variables, x, _ = small
    slope = rule.fast_jit(
        jax.value_and_grad(lambda x_hat, x: SMALL.apply(variables, x_hat, x).sum())
    )
    distance, grad = slope(x, x)
    assert distance == 0
    # Compiled, the two sides may be rounded apart; other images' slope is 5e-2.
    np.testing.assert_allclose(grad, 0, atol=1e-7)


def test_the_small_number_stands_beside_the_norm():
    """|(3, 4)| 1e-10 = 5e-10, and 1e-10 more; inside the root it would be 1e-5."""
    result = unit(jnp.array([[[[3e-10, 4e-10]]]]))
    np.testing.assert_allclose(result[0, 0, 0], [3 / 6, 4 / 6], rtol=1e-5)


def test_dead_features_have_a_finite_gradient(small):
    """No channel fires after slice 2: it adds nothing, to the value or to the slope."""
    variables, x, y = small
    params = dict(variables["params"])
    params["convs_2"] = params["convs_2"] | {"bias": jnp.full(16, -1e3)}
    without = params | {"heads_1": {"kernel": jnp.zeros((16, 1))}}
    slope = rule.fast_jit(
        jax.grad(lambda x, params: SMALL.apply({"params": params}, x, y).sum())
    )
    assert np.abs(slope(x, params)).max() > 0
    np.testing.assert_array_equal(slope(x, params), slope(x, without))


def test_pictures_count_one_by_one_and_pairs_are_symmetric(small):
    variables, x, y = small
    both = small_distance(variables, x, y)
    assert both.shape == (2,) and both.dtype == jnp.float32 and (both > 0).all()
    one = small_distance(variables, y[1:], x[1:])
    np.testing.assert_allclose(one, both[1:], rtol=1e-6)


def test_half_precision_is_the_convolutions_only(small):
    """bf16 has 8 bits: a few hundredths of the distance."""
    variables, x, y = small
    network = LPIPS(SMALL.widths, dtype=jnp.bfloat16)
    half = rule.fast_jit(network.apply)(variables, x, y)
    np.testing.assert_allclose(half, small_distance(variables, x, y), rtol=5e-2)

    def trace(x):
        keep = dict(capture_intermediates=True, mutable=["intermediates"])
        return network.apply(variables, x, method="units", **keep)

    units, kept = jax.eval_shape(trace, x)
    convs = [kept["intermediates"][f"convs_{i}"]["__call__"][0] for i in range(3)]
    assert {conv.dtype.name for conv in convs} == {"bfloat16"}
    assert {u.dtype.name for u in units} == {half.dtype.name} == {"float32"}


def test_too_small_a_picture_is_refused():
    x = jax.ShapeDtypeStruct((1, 15, 64, 3), jnp.float32)
    with pytest.raises(UserError, match="at least 16 px a side, not 15 x 64"):
        jax.eval_shape(LPIPS().init, jax.random.key(0), x, x)


def test_names_cover_vgg16_and_the_heads():
    names = lpips_weights.lpips_names(LPIPS())
    convs = {f"features.{i}" for i in metrics_inputs.CONVS}
    heads = {f"lin{i}.model.1" for i in range(5)}
    assert {name.rpartition(".")[0] for name in names} == convs | heads
    size = sum(np.prod(e.shape) for n, e in names.items() if n.startswith("f"))
    assert size == 14_714_688  # Simonyan and Zisserman's network D without classifier


def test_another_network_s_file_is_refused(tmp_path):
    path = tmp_path / "other.safetensors"
    arrays = {"features.0.weight": np.zeros((64, 3, 5, 5), np.float32)}
    save_file(arrays | {"features.31.bias": np.zeros(1, np.float32)}, path)
    with pytest.raises(UserError) as error:
        lpips_weights.load_lpips(path)
    text = str(error.value)
    assert "\n" not in text and f"{path} is not torchvision's VGG16" in text
    for part in ("features.0.bias", "features.31.bias", "(64, 3, 5, 5) instead of"):
        assert part in text


def test_without_network_or_file_the_way_out_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("LDM_JAX_CACHE", str(tmp_path))
    url = (tmp_path / "elsewhere" / "vgg16-397923af.pth").as_uri()
    monkeypatch.setattr(lpips_weights, "VGG16_URL", url)
    with pytest.raises(UserError) as error:
        lpips_weights.load_lpips()
    text = str(error.value)
    for part in (url, str(tmp_path / "vgg16-397923af.pth"), lpips_weights.WITHOUT):
        assert part in text
    assert "\n" not in text
    assert lpips_weights.WITHOUT.endswith("config.loss.perceptual_weight = 0.0")


def test_distance_as_a_metric(vgg16_file):
    x = metrics_inputs.floats("lpips/")
    distance = lpips_weights.make_distance(vgg16_file)(x["x"], x["y"])
    theirs = rule.read_arrays(rule.FOLDER / "lpips.npz")["distance"]
    np.testing.assert_allclose(distance, theirs, rtol=1e-5)
