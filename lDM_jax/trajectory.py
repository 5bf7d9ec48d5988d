"""Trajectories as compiled programs: what varies is traced, what shapes them is not.

Owns the meeting of guidance, regions, windows, known latents and samplers, and the
cache of programs: one for each `Way`, whatever the `Course` through it is. Knows no
requests and decodes nothing by itself. Reading order: Course, Way, Programs.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lDM_jax import rng, samplers, scores
from lDM_jax.arrays import Array, Cond, Denoiser
from lDM_jax.diffusion import Grid
from lDM_jax.guidance import autoguidance, by_region, by_score, classifier_free
from lDM_jax.models.lpips import LPIPS
from lDM_jax.training.diffusion import Model
from lDM_jax.windows import in_windows


class Course(NamedTuple):
    """What a trajectory runs on: traced values, so that changing one never retraces.

    start: the first step, above 0 for image to image; rescale and interval (in times):
    as in `guidance`; z0 and keep: the known latents "1 h w c" and where they are held
    "1 h w 1" (1 = known), or None; eps: the noise it begins with "b h w c" instead of
    the seeds'; guide: (parameters, condition) of a worse model, whose scale
    `guidance` then is; pulls: for each of `Way.pulls` what it needs and its "scale".
    """

    cond: Cond
    null: Cond
    guidance: float
    eta: float
    start: int
    rescale: float = 0.0
    interval: tuple[float, float] = (float("-inf"), float("inf"))
    z0: Array | None = None
    keep: Array | None = None
    eps: Array | None = None
    guide: tuple[dict, Cond] | None = None
    pulls: dict | None = None


class Way(NamedTuple):
    """What a trajectory is compiled for.

    shape: of one row of latents; window: side of the windows in latent positions, 0 for
    none; regional: "attention", "latent" or "" without regions; pulls: of `PULLS`.
    """

    sampler: str
    steps: int
    spacing: str
    shape: tuple[int, int, int]
    guided: bool
    window: int = 0
    regional: str = ""
    auto: bool = False
    pulls: tuple[str, ...] = ()


PULLS = ("l2", "lpips", "class")
MOST = 64  # programs that are kept; the longest unused goes


class Programs:
    """The compiled trajectories of one model, made when they are first asked for.

    guide: the model of autoguidance; classifier: a network (z_t, t) -> logits.
    """

    def __init__(self, model: Model, *, guide: Model | None = None, classifier=None):
        self._model, self._guide, self._classifier = model, guide, classifier
        self._compiled = {}

    def __len__(self) -> int:
        return len(self._compiled)

    def _once(self, kind: str, way: Way, make: Callable):
        found = self._compiled.pop((kind, way), None)
        if found is None:
            grid = self._model.process.grid(way.steps, way.spacing)
            found = make(way, grid)
        self._compiled[kind, way] = found  # the last one: most recently used
        while len(self._compiled) > MOST:
            del self._compiled[next(iter(self._compiled))]
        return found

    def whole(self, way: Way):
        """(params, keys, course) -> z0: a trajectory as one program."""
        return self._once("whole", way, self._make_whole)

    def single_step(self, way: Way):
        """(begin, advance): the same trajectory, one step a call.

        begin: (keys, course) -> carry; advance: (params, carry, index, keys, course) ->
        carry.
        """
        return self._once("step", way, self._make_step)

    def invert(self, way: Way):
        """(params, z0, course) -> z_T: DDIM backwards, for an image of which no seed
        is known. Ends at the grid's first time; a whole trajectory of eta 0 from there
        leads back, the better the more steps there are.
        """
        return self._once("invert", way, self._make_invert)

    def _network(self, model: Model, params: dict, way: Way) -> Callable:
        """(z, t, cond) -> prediction, by region and in windows where asked for."""
        alone = way.regional == "latent"  # each region's text: no mask in attention

        def network(z, t, cond):
            return model.denoise(
                params, z, t, cond.replace(regions=None) if alone else cond
            )

        if way.window:
            extent, overlap = way.shape[:2], way.window // 4
            network = in_windows(
                network, extent, window=way.window, overlap=overlap, within=alone
            )
        return by_region(network) if alone else network

    def _denoiser(self, params: dict, course: Course, way: Way) -> Denoiser:
        network = self._network(self._model, params, way)
        options = dict(rescale=course.rescale, interval=course.interval)

        def main(z, t):
            return network(z, t, course.cond)

        if way.auto:
            guide_params, guide_cond = course.guide
            worse = self._network(self._guide, guide_params, way)
            denoise = autoguidance(
                main,
                lambda z, t: worse(z, t, guide_cond),
                course.guidance,
                **options,
            )
        elif way.guided:
            denoise = classifier_free(
                network, course.cond, course.null, course.guidance, **options
            )
        else:
            denoise = main
        for name in way.pulls:
            given = course.pulls[name]
            log_prob = self._log_prob(name, given)
            denoise = by_score(denoise, log_prob, self._model.process, given["scale"])
        return denoise

    def _log_prob(self, name: str, given: dict) -> scores.LogProb:
        """The score function of one of PULLS."""
        if name == "class":

            def classify(z, t):
                return self._classifier.apply(given["params"], z, t)

            return scores.toward_class(classify, given["label"])

        def perceptual(x, y):
            return LPIPS().apply(given["lpips"], x, y)

        return scores.toward_target(
            self._model.codec,
            given["first_stage"],
            given["target"],
            distance=perceptual if name == "lpips" else None,
        )

    def _begin(self, keys, course: Course, grid: Grid, shape) -> tuple:
        """(z at course.start, what holds the known latents or None)."""
        eps = rng.normal_per_seed(keys, shape) if course.eps is None else course.eps
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

    def _make_whole(self, way: Way, grid: Grid):
        def run(params, keys, course):
            z, hold = self._begin(keys, course, grid, way.shape)
            return samplers.sample(
                self._denoiser(params, course, way),
                z,
                self._model.process,
                grid=grid,
                sampler=way.sampler,
                eta=course.eta,
                keys=keys,
                start=course.start,
                constrain=hold,
            )

        return jax.jit(run)

    def _make_step(self, way: Way, grid: Grid):
        def begin(keys, course):
            z, _ = self._begin(keys, course, grid, way.shape)
            return samplers.start_carry(z, way.sampler)

        def advance(params, carry, index, keys, course):
            return samplers.step(
                self._denoiser(params, course, way),
                carry,
                index,
                self._model.process,
                grid=grid,
                sampler=way.sampler,
                eta=course.eta,
                keys=keys,
                constrain=self._begin(keys, course, grid, way.shape)[1],
            )

        return jax.jit(begin), jax.jit(advance)

    def _make_invert(self, way: Way, grid: Grid):
        def run(params, z0, course):
            denoise = self._denoiser(params, course, way)
            return samplers.invert(denoise, z0, self._model.process, grid=grid)

        return jax.jit(run)
