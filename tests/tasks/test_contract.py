"""A condition from outside the package: what a new task costs, and that it is enough.

How bright a picture is, one number, becomes the denoiser's vector. The request says it
in percent, in the field `label`.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lDM_jax.core.arrays import Array, Bool, Float, typecheck
from lDM_jax.core.errors import UserError
from lDM_jax.from_config import datasets
from lDM_jax.sampling.request import Request
from lDM_jax.tasks.registry import TASKS, register
from lDM_jax.tasks.task import Condition, Task
from lDM_jax.training import experiment
from tests.toys import difference, pipeline_of, smoke


class Ray(nn.Module):
    """A number as far along a learned direction."""

    width: int

    @nn.compact
    @typecheck
    def __call__(
        self, value: Float[Array, "b 1"], drop: Bool[Array, " b"], train: bool = False
    ) -> Float[Array, "b e"]:
        del train
        vector = nn.Dense(self.width, name="direction")(value)
        return jnp.where(drop[:, None], 0, vector)


@dataclasses.dataclass(frozen=True)
class Brightness:
    """The mean of a picture's pixels, in [-1, 1], as the key "brightness"."""

    def __call__(self, example: dict, rng: np.random.Generator) -> dict:
        mean = np.asarray([example["image"].mean()], np.float32)
        return {**example, "brightness": mean}


def check(request, settings) -> None:
    if not 0 <= request.label <= 100:
        raise UserError(f"brightness is {request.label}; valid: 0 .. 100")


def row(request, pixels, settings) -> dict:
    return {"brightness": np.asarray([request.label / 50 - 1], np.float32)}


def conditions(settings) -> tuple[Condition, ...]:
    return (Condition("brightness", "ray", "vector", Ray(settings.time_width)),)


@pytest.fixture
def task():
    yield register(
        Task(
            name="brightness",
            conditions=conditions,
            shapes=lambda settings: {"brightness": (np.float32, (1,))},
            steps=lambda settings: [Brightness()],
            field="label",
            ask="draws by brightness: give a label from 0 to 100",
            check=check,
            row=row,
        )
    )
    del TASKS["brightness"]


def bright():
    """The smoke size of a config with the new condition."""
    config = smoke("emoji_unconditional")
    config.task, config.loss.drop_rate = "brightness", 0.5
    return config


def test_a_new_condition_trains(task):
    config = bright()
    config.train.batch_size = 4
    example = datasets.transform(config)(
        experiment.source(config, "train")[0], np.random.default_rng(0)
    )
    assert example.keys() == {"image", "brightness"}
    np.testing.assert_allclose(example["brightness"], example["image"].mean())
    made = experiment.make(config)
    state = made.stage.init(jax.random.key(0))
    assert "encoders_ray" in state.params["conditioner"]["params"]
    batch = next(iter(made.eval_batches()))
    batch.pop("weight")
    step = jax.jit(made.stage.step)
    after, scalars = step(state, made.frozen, batch, jax.random.key(1))
    assert np.isfinite(scalars["loss"])
    before, now = (
        s.params["conditioner"]["params"]["encoders_ray"]["direction"]["kernel"]
        for s in (state, after)
    )
    assert np.abs(now - before).max() > 0


def test_a_new_condition_is_drawn_by_and_guided_by(task):
    pipe = pipeline_of(bright())
    assert pipe.task is task
    options = dict(seeds=[0], steps=2, guidance=3.0)
    dark, light = (pipe.sample(label=label, **options) for label in (0, 100))
    assert difference(dark, light) > 1
    # guidance 0 leaves the null condition alone, which reads no brightness
    options["guidance"] = 0.0
    dark, light = (pipe.sample(label=label, **options) for label in (0, 100))
    assert difference(dark, light) <= 1
    with pytest.raises(UserError, match="draws by brightness: give a label"):
        pipe.sample(**options)
    with pytest.raises(UserError, match=r"valid: 0 \.\. 100"):
        pipe.resolve(Request(label=101))
