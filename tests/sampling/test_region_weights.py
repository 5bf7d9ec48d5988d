"""The weight of a region: how far its words count against the prompt's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lDM_jax.core.errors import UserError
from lDM_jax.models.layers import attend
from lDM_jax.sampling import request as request_lib
from lDM_jax.sampling.prepare import weighted
from lDM_jax.sampling.request import Request
from tests.toys import drawn

FULL = np.ones((32, 32), np.uint8)


@pytest.fixture(scope="module")
def pipe():
    return drawn("emoji")


def test_a_token_of_weight_n_counts_as_n_of_them():
    """Attention to a token twice is attention to it with weight 2, and so 1 to 1/2."""
    key = jax.random.key(0)
    q, k, v = (jax.random.normal(k, (2, 3, 4, 8)) for k in jax.random.split(key, 3))
    twice = [jnp.concatenate([x, x[:, :1]], axis=1) for x in (k, v)]
    weights = jnp.array([1.0, 0.5, 0.5]).reshape(1, 1, 1, 3)
    mask = jnp.broadcast_to(weights, (2, 1, 3, 3))
    # f32 softmax in another order
    np.testing.assert_allclose(attend(q, k, v, mask), attend(q, *twice), atol=1e-5)
    only = jnp.broadcast_to(jnp.array([1.0, 0.0, 1.0]), (2, 1, 3, 3))
    some = [x[:, jnp.array([0, 2])] for x in (k, v)]
    np.testing.assert_allclose(attend(q, k, v, only), attend(q, *some), atol=1e-5)
    np.testing.assert_allclose(
        attend(q, k, v, only), attend(q, k, v, only > 0), atol=1e-5
    )


def test_what_a_region_leaves_is_the_prompts():
    maps = np.array([[[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 1, 1], [0, 0, 0]]], bool)
    shares = weighted(maps, np.array([0.25, 1.0], np.float32))
    expected = [[1, 0, 0], [0.75, 0.25, 0], [0, 0, 1], [0, 0.25, 1], [0, 0, 0]]
    np.testing.assert_array_equal(shares[0], expected)


@pytest.mark.parametrize("regional", ["attention", "latent"])
def test_weights_lead_from_the_prompt_to_the_region(pipe, regional):
    # guided strongly: words move this toy little
    options = dict(seeds=[0], guidance=20.0, steps=4)

    def latents(**request) -> np.ndarray:
        return np.asarray([*pipe.stream(**request, **options)][-1].z)

    def apart(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.abs(a - b).max())

    none, some, whole = (
        latents(prompt="dog", regional=regional, regions=[("red heart", FULL, weight)])
        for weight in (0, 0.5, 1)
    )
    dog, heart = (latents(prompt=prompt) for prompt in ("dog", "red heart"))
    words = apart(dog, heart)
    # f32 programs that sum in another order, against what the words do
    assert apart(none, dog) < 0.05 * words and apart(whole, heart) < 0.05 * words
    assert min(apart(some, dog), apart(some, heart)) > 0.2 * words


def test_weights_outside_the_range_are_refused_and_kept_in_records():
    request = Request("x", regions=[("a", FULL, 0.5), ("b", FULL)])
    np.testing.assert_array_equal(request_lib.region_weights(request), [0.5, 1])
    stored = request.embedded().record()["regions"]
    assert [len(region) for region in stored] == [3, 2] and stored[0][2] == 0.5
    with pytest.raises(UserError, match="numbers from 0 to 1"):
        request_lib.region_weights(Request("x", regions=[("a", FULL, 2)]))
