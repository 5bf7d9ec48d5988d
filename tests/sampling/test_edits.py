"""Steered trajectories: branches, records, and the same picture again."""

import dataclasses
import json

import numpy as np
import pytest

from lDM_jax.core.errors import UserError
from lDM_jax.sampling import edits
from lDM_jax.sampling.edits import Edit, Timeline
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
    other = third._replace(plan=dataclasses.replace(third.plan))
    pipe.update(other, prompt="pizza")
    assert np.abs(list(pipe.resume(other))[-1].z - steps[-1].z).max() > 1e-3
    # the branch left the plan of the others alone
    np.testing.assert_array_equal(list(pipe.resume(third))[-1].z, steps[-1].z)


def test_a_timeline_draws_what_was_steered_bit_for_bit(pipe, tmp_path):
    """Changed words, guidance and mask; through JSON and back."""
    start = Request(**COMMON, image=PICTURE, mask=HOLE, strength=0.9)
    changes = {2: {"prompt": "pizza"}, 4: {"guidance": 1.5, "mask": HOLE.T}}
    for step in pipe.stream(**vars(start)):
        if step.step in changes:
            pipe.update(step, **changes[step.step])
    given = pipe.planner.canvas(step.plan.request)
    steered = pipe.finish(step.z, step.plan.request, given)
    spec = Timeline(start, [Edit(at, change) for at, change in changes.items()])
    stored = json.loads(json.dumps(spec.record()))
    np.testing.assert_array_equal(edits.draw(pipe, edits.from_record(stored)), steered)
    plain = Timeline(start)
    assert difference(edits.draw(pipe, plain), steered) > 1
    assert spec.final.prompt == "pizza" and spec.final.guidance == 1.5


def test_until_is_the_clean_estimate_of_an_earlier_step(pipe):
    steps = list(pipe.stream(**COMMON))
    found = edits.draw(pipe, Timeline(Request(**COMMON), until=2))
    np.testing.assert_array_equal(found, pipe.to_pixels(steps[1].z0_hat))


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
