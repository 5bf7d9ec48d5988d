"""Steered trajectories: branches, records, and the same picture again."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lDM_jax.core.errors import UserError
from lDM_jax.sampling import edits
from lDM_jax.sampling.edits import Edit, EditedTrajectory
from lDM_jax.sampling.request import Request
from tests.toys import HOLE, PICTURE, difference, drawn

COMMON = dict(prompt="red heart", seeds=(3,), steps=6)


@pytest.fixture(scope="module")
def pipe():
    return drawn("emoji")


def test_a_step_leads_on_to_as_many_branches_as_one_likes(pipe):
    steps = list(pipe.stream(**COMMON))
    third = steps[2]
    again = list(pipe.resume(third))
    assert [step.step for step in again] == [4, 5, 6]
    np.testing.assert_array_equal(again[-1].z, steps[-1].z)
    other = dataclasses.replace(third)
    pipe.update(other, prompt="pizza")
    assert np.abs(list(pipe.resume(other))[-1].z - steps[-1].z).max() > 1e-3
    # the branch left the step that it came from alone
    np.testing.assert_array_equal(list(pipe.resume(third))[-1].z, steps[-1].z)


def test_a_record_draws_what_was_steered_bit_for_bit(pipe):
    """Changed words, guidance and mask; through JSON and back."""
    start = Request(**COMMON, image=PICTURE, mask=HOLE, strength=0.9)
    changes = {2: {"prompt": "pizza"}, 4: {"guidance": 1.5, "mask": HOLE[::-1]}}
    for step in pipe.stream(**vars(start)):
        if step.step in changes:
            pipe.update(step, **changes[step.step])
    steered = pipe.finish(step)
    spec = EditedTrajectory(start, [Edit(at, change) for at, change in changes.items()])
    stored = json.loads(json.dumps(spec.record()))
    np.testing.assert_array_equal(
        edits.replay(pipe, edits.from_record(stored)), steered
    )
    plain = EditedTrajectory(start)
    assert difference(edits.replay(pipe, plain), steered) > 1
    assert spec.final.prompt == "pizza" and spec.final.guidance == 1.5


@pytest.mark.parametrize("sampler", ["plms", "dpmpp_2m"])
def test_after_an_edit_the_sampler_takes_its_first_step(pipe, sampler):
    """By hand from the same z: improved Euler for PLMS, DDIM for the other.

    f32 on latents of order one through a few rounded products: 1e-4.
    """
    plain = list(pipe.stream(**COMMON, sampler=sampler, guidance=3.0))
    program = pipe._programs.single_step(plain[0].prepared.spec)[1]
    compiled = program._cache_size()
    fourth = plain[3]
    z, grid = fourth.z, pipe.model.process.grid(6)
    pipe.update(fourth, prompt="pizza")
    result = next(pipe.resume(fourth))
    assert program._cache_size() == compiled

    def estimate(z, i: int):
        """(z0_hat, eps_hat) at time i under the new prompt."""
        cond, null = fourth.prepared.inputs.cond, fourth.prepared.inputs.null
        t = jnp.full(1, grid.times[i], jnp.int32)
        strong, weak = (pipe.denoise(z, t, one) for one in (cond, null))
        v = weak + 3.0 * (strong - weak)
        a, s = grid.alphas[i], grid.sigmas[i]
        return a * z - s * v, s * z + a * v

    z0, eps = estimate(z, 4)
    a, s = grid.alphas[5], grid.sigmas[5]
    expected = a * z0 + s * eps
    if sampler == "plms":
        there = estimate(jnp.asarray(expected, jnp.float32), 5)[1]
        eps = (eps + there) / 2
        z0 = (z - grid.sigmas[4] * eps) / grid.alphas[4]
        expected = a * z0 + s * eps
    np.testing.assert_allclose(result.z, expected, atol=1e-4)
    remembered = fourth.carry._replace(age=jnp.int32(4))
    other = program(
        pipe.params, remembered, 4, jax.random.key(3)[None], result.prepared.inputs
    )
    assert np.abs(other.z - expected).max() > 1e-2


@pytest.mark.parametrize("sampler", ["plms", "dpmpp_2m"])
def test_a_branch_with_a_past_is_replayed_bit_for_bit(pipe, sampler):
    """What the sampler remembers and forgets is the same live and from the record."""
    options = dict(**COMMON, sampler=sampler)
    branch = dataclasses.replace(list(pipe.stream(**options))[3])
    pipe.update(branch, prompt="pizza")
    fifth = next(pipe.resume(branch))
    pipe.update(fifth, prompt="pizza")  # nothing new: nothing is forgotten
    last = list(pipe.resume(fifth))[-1]
    assert int(last.carry.age) == 2
    made = [Edit(4, {"prompt": "pizza"}), Edit(5, {"prompt": "pizza"})]
    result = edits.replay(pipe, EditedTrajectory(Request(**options), made))
    np.testing.assert_array_equal(result, pipe.finish(last))


def test_until_is_the_clean_estimate_of_an_earlier_step(pipe):
    steps = list(pipe.stream(**COMMON))
    result = edits.replay(pipe, EditedTrajectory(Request(**COMMON), until=2))
    np.testing.assert_array_equal(result, pipe.to_pixels(steps[1].z0_hat))


@pytest.mark.parametrize(
    ("stored", "words"),
    [
        ({"edits": 3}, "give a list"),
        ({"edits": [{"prompt": "a"}]}, "number of its step"),
        ({"edits": [{"step": 1, "colour": 2}]}, "has no colour"),
        ({"edits": [{"step": 2}, {"step": 1}]}, "rising"),
        ({"until": -1}, "until is -1"),
        ({"until": True}, "until is True"),
    ],
)
def test_records_that_are_none_are_refused(stored, words):
    with pytest.raises(UserError, match=words):
        edits.from_record({"prompt": "a", **stored})
