"""Trajectories as compiled programs: what varies is traced, what shapes them is not.

Owns the meeting of guidance, regions, windows, known latents and samplers, and the
cache of programs: one for each `Way`, whatever the `Course` through it is. Knows no
requests and decodes nothing. Reading order: Course, Way, Programs.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from lDM_jax import rng, samplers
from lDM_jax.arrays import Array, Cond
from lDM_jax.diffusion import Grid
from lDM_jax.guidance import by_region, classifier_free
from lDM_jax.training.diffusion import Model
from lDM_jax.windows import in_windows


class Course(NamedTuple):
    """What a trajectory runs on: traced values, so that changing one never retraces.

    start: the first step, above 0 for image to image; z0 and keep: the known latents
    "1 h w c" and where they are held "1 h w 1" (1 = known), or None.
    """

    cond: Cond
    null: Cond
    guidance: float
    eta: float
    start: int
    z0: Array | None = None
    keep: Array | None = None


class Way(NamedTuple):
    """What a trajectory is compiled for.

    shape: of one row of latents; window: side of the windows in latent positions, 0 for
    none; regional: "attention", "latent" or "" without regions.
    """

    sampler: str
    steps: int
    spacing: str
    shape: tuple[int, int, int]
    guided: bool
    window: int = 0
    regional: str = ""


class Programs:
    """The compiled trajectories of one model, made when they are first asked for."""

    def __init__(self, model: Model):
        self._model, self._compiled = model, {}

    def __len__(self) -> int:
        return len(self._compiled)

    def invert(self, way: Way):
        """(params, z0, course) -> z_T: DDIM backwards, for an image of which no seed
        is known. Ends at the grid's first time; a whole trajectory of eta 0 from there
        leads back, the better the more steps there are.
        """
        if ("invert", way) in self._compiled:
            return self._compiled["invert", way]
        process = self._model.process
        grid = process.grid(way.steps, way.spacing)

        def run(params, z0, course):
            return samplers.invert(
                self._denoiser(params, course, way), z0, process, grid=grid
            )

        return self._compiled.setdefault(("invert", way), jax.jit(run))

    def _denoiser(self, params, course: Course, way: Way):
        def network(z, t, cond):
            return self._model.denoise(params, z, t, cond)

        if way.regional == "latent":
            network = by_region(network)
        if way.window:
            extent, overlap = way.shape[:2], way.window // 4
            network = in_windows(network, extent, window=way.window, overlap=overlap)
        if not way.guided:
            return lambda z, t: network(z, t, course.cond)
        return classifier_free(network, course.cond, course.null, course.guidance)

    def _begin(self, keys, course: Course, grid: Grid, shape) -> tuple:
        """(z at course.start, what holds the known latents or None)."""
        eps = rng.normal_per_seed(keys, shape)
        if course.z0 is None:
            return eps, None
        # clean at the end, where the original's grid leaves a little noise
        alphas = jnp.asarray([*grid.alphas[:-1], 1.0], jnp.float32)
        sigmas = jnp.asarray([*grid.sigmas[:-1], 0.0], jnp.float32)

        def known(i):
            return alphas[i] * course.z0 + sigmas[i] * eps

        def hold(z, i):
            return course.keep * known(i) + (1 - course.keep) * z

        # from pure noise where everything may change, as if there were no image
        z = jnp.where(course.start == 0, eps, known(course.start))
        return z, None if course.keep is None else hold

    def whole(self, way: Way):
        """(params, keys, course) -> z0: a trajectory as one program."""
        if ("whole", way) in self._compiled:
            return self._compiled["whole", way]
        process = self._model.process
        grid = process.grid(way.steps, way.spacing)

        def run(params, keys, course):
            z, hold = self._begin(keys, course, grid, way.shape)
            return samplers.sample(
                self._denoiser(params, course, way),
                z,
                process,
                grid=grid,
                sampler=way.sampler,
                eta=course.eta,
                keys=keys,
                start=course.start,
                constrain=hold,
            )

        return self._compiled.setdefault(("whole", way), jax.jit(run))

    def single_step(self, way: Way):
        """(begin, advance): the same trajectory, one step a call.

        begin: (keys, course) -> carry; advance: (params, carry, index, keys, course) ->
        carry.
        """
        if ("step", way) in self._compiled:
            return self._compiled["step", way]
        process = self._model.process
        grid = process.grid(way.steps, way.spacing)

        def begin(keys, course):
            z, _ = self._begin(keys, course, grid, way.shape)
            return samplers.start_carry(z, way.sampler)

        def advance(params, carry, index, keys, course):
            return samplers.step(
                self._denoiser(params, course, way),
                carry,
                index,
                process,
                grid=grid,
                sampler=way.sampler,
                eta=course.eta,
                keys=keys,
                constrain=self._begin(keys, course, grid, way.shape)[1],
            )

        pair = (jax.jit(begin), jax.jit(advance))
        return self._compiled.setdefault(("step", way), pair)
