"""Trajectories as compiled programs: what varies is traced, what shapes them is not.

Owns the meeting of guidance, regions, windows, known latents and samplers, and the
cache of programs: one for each `SamplingSpec`, whatever its `SamplingInputs` are. Knows
no requests and decodes nothing. Reading order: SamplingInputs, SamplingSpec,
CompiledSamplers.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lDM_jax.core import rng
from lDM_jax.core.arrays import Array, Cond, Denoiser
from lDM_jax.diffusion import guidance, samplers
from lDM_jax.diffusion.latent_diffusion import LatentDiffusion
from lDM_jax.diffusion.process import Grid
from lDM_jax.diffusion.windows import in_windows
from lDM_jax.models.lpips import LPIPS


class SamplingInputs(NamedTuple):
    """What a trajectory runs on: traced values, so that changing one never retraces.

    start: the first step, above 0 for image to image; rescale and interval (in times):
    as in `guidance`; z0 and keep: the known latents "1 h w c" and where they are held
    "1 h w 1" (1 = known), or None; eps: the noise it begins with "b h w c" instead of
    the seeds'; guide: (parameters, condition) of a worse model, whose scale
    `guidance` then is; gradient_guidance: what each one in the spec needs, with its
    "scale".
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
    gradient_guidance: dict | None = None


class SamplingSpec(NamedTuple):
    """What a trajectory is compiled for.

    shape: of one row of latents; window: side of the windows in latent positions, 0 for
    none; regional: "attention", "latent" or "" without regions;
    gradient_guidance: some of `GRADIENT_GUIDANCE`.
    """

    sampler: str
    steps: int
    spacing: str
    shape: tuple[int, int, int]
    guided: bool
    window: int = 0
    regional: str = ""
    auto: bool = False
    gradient_guidance: tuple[str, ...] = ()


GRADIENT_GUIDANCE = ("l2", "lpips", "class")
MOST = 64  # programs that are kept; the longest unused goes


class CompiledSamplers:
    """The compiled trajectories of one model, made when they are first asked for.

    guide: the model of autoguidance; classifier: a network (z_t, t) -> logits.
    """

    def __init__(
        self,
        model: LatentDiffusion,
        *,
        guide: LatentDiffusion | None = None,
        classifier=None,
    ):
        self._model, self._guide, self._classifier = model, guide, classifier
        self._compiled = {}

    def __len__(self) -> int:
        return len(self._compiled)

    def _once(self, kind: str, spec: SamplingSpec, make: Callable):
        program = self._compiled.pop((kind, spec), None)
        if program is None:
            grid = self._model.process.grid(spec.steps, spec.spacing)
            program = make(spec, grid)
        self._compiled[kind, spec] = program  # the last one: most recently used
        while len(self._compiled) > MOST:
            del self._compiled[next(iter(self._compiled))]
        return program

    def whole(self, spec: SamplingSpec):
        """(params, keys, inputs) -> z0: a trajectory as one program."""
        return self._once("whole", spec, self._make_whole)

    def single_step(self, spec: SamplingSpec):
        """(begin, advance): the same trajectory, one step a call.

        begin: (keys, inputs) -> carry; advance: (params, carry, index, keys, inputs) ->
        carry.
        """
        return self._once("step", spec, self._make_step)

    def invert(self, spec: SamplingSpec):
        """(params, z0, inputs) -> z_T: DDIM backwards, for an image of which no seed
        is known. Ends at the grid's first time; a whole trajectory of eta 0 from there
        leads back, the better the more steps there are.
        """
        return self._once("invert", spec, self._make_invert)

    def _network(
        self, model: LatentDiffusion, params: dict, spec: SamplingSpec
    ) -> Callable:
        """(z, t, cond) -> prediction, by region and in windows where asked for."""
        alone = spec.regional == "latent"  # each region's text: no mask in attention

        def network(z, t, cond):
            cond = cond.replace(regions=None) if alone else cond
            return model.denoise(params, z, t, cond)

        if spec.window:
            extent, overlap = spec.shape[:2], spec.window // 4
            network = in_windows(
                network, extent, window=spec.window, overlap=overlap, within=alone
            )
        return guidance.by_region(network) if alone else network

    def _denoiser(
        self, params: dict, inputs: SamplingInputs, spec: SamplingSpec
    ) -> Denoiser:
        network = self._network(self._model, params, spec)
        options = dict(rescale=inputs.rescale, interval=inputs.interval)

        def main(z, t):
            return network(z, t, inputs.cond)

        if spec.auto:
            guide_params, guide_cond = inputs.guide
            worse = self._network(self._guide, guide_params, spec)
            guide = lambda z, t: worse(z, t, guide_cond)  # noqa: E731
            denoise = guidance.autoguidance(main, guide, inputs.guidance, **options)
        elif spec.guided:
            denoise = guidance.classifier_free(
                network, inputs.cond, inputs.null, inputs.guidance, **options
            )
        else:
            denoise = main
        for name in spec.gradient_guidance:
            own = inputs.gradient_guidance[name]
            log_prob = self._log_prob(name, own)
            scale, process = own["scale"], self._model.process
            denoise = guidance.by_score(denoise, log_prob, process, scale)
        return denoise

    def _log_prob(self, name: str, own: dict) -> guidance.LogProb:
        """log p(y | z_t) of one of GRADIENT_GUIDANCE."""
        if name == "class":

            def classify(z, t):
                return self._classifier.apply(own["params"], z, t)

            return guidance.toward_class(classify, own["label"])

        def perceptual(x, y):
            return LPIPS().apply(own["lpips"], x, y)

        known = self._model.codec, own["first_stage"], own["target"]
        distance = perceptual if name == "lpips" else None
        return guidance.toward_target(*known, distance=distance)

    def _begin(self, keys, inputs: SamplingInputs, grid: Grid, shape) -> tuple:
        """(z at inputs.start, what holds the known latents or None)."""
        eps = rng.normal_per_seed(keys, shape) if inputs.eps is None else inputs.eps
        if inputs.z0 is None:
            return eps, None
        # clean at the end, where the original's grid leaves a little noise
        alphas = jnp.asarray([*grid.alphas[:-1], 1.0], jnp.float32)
        sigmas = jnp.asarray([*grid.sigmas[:-1], 0.0], jnp.float32)

        def known(i):
            return alphas[i] * inputs.z0 + sigmas[i] * eps

        def hold(z, i):
            return inputs.keep * known(i) + (1 - inputs.keep) * z

        # from pure noise where everything may change, as if there were no image
        z = jnp.where(inputs.start == 0, eps, known(inputs.start))
        return z, None if inputs.keep is None else hold

    def _make_whole(self, spec: SamplingSpec, grid: Grid):
        def run(params, keys, inputs):
            z, hold = self._begin(keys, inputs, grid, spec.shape)
            denoise = self._denoiser(params, inputs, spec)
            options = dict(grid=grid, sampler=spec.sampler, eta=inputs.eta, keys=keys)
            options |= dict(start=inputs.start, constrain=hold)
            return samplers.sample(denoise, z, self._model.process, **options)

        return jax.jit(run)

    def _make_step(self, spec: SamplingSpec, grid: Grid):
        def begin(keys, inputs):
            z, _ = self._begin(keys, inputs, grid, spec.shape)
            return samplers.start_carry(z, spec.sampler)

        def advance(params, carry, index, keys, inputs):
            _, hold = self._begin(keys, inputs, grid, spec.shape)
            denoise, process = self._denoiser(params, inputs, spec), self._model.process
            options = dict(grid=grid, sampler=spec.sampler, eta=inputs.eta, keys=keys)
            return samplers.step(
                denoise, carry, index, process, constrain=hold, **options
            )

        return jax.jit(begin), jax.jit(advance)

    def _make_invert(self, spec: SamplingSpec, grid: Grid):
        def run(params, z0, inputs):
            denoise = self._denoiser(params, inputs, spec)
            return samplers.invert(denoise, z0, self._model.process, grid=grid)

        return jax.jit(run)
