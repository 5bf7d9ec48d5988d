"""Sampling for people and programs: the interface to write against.

    pipe = Pipeline.load("emoji")
    images = pipe.sample(prompt="red heart", seeds=range(4))     # uint8 "b H W 3"

Owns the way from a request to pictures: `planner` makes of it what a trajectory runs
on, `trajectory` runs it, the first stage decodes. An image depends on its seed and its
request alone, not on what stands beside it in a batch: every row has its own noise key.
Rows run `BATCH` at a time, the last batch padded, so that a trajectory compiles once.
Guidance, prompt and seed never retrace.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from lDM_jax.core import image, rng
from lDM_jax.core.arrays import Array, Cond
from lDM_jax.core.errors import UserError
from lDM_jax.diffusion import samplers, tiling
from lDM_jax.diffusion.latent_diffusion import LatentDiffusion
from lDM_jax.diffusion.samplers import Carry
from lDM_jax.from_config import networks
from lDM_jax.sampling import prepare, preview
from lDM_jax.sampling.prepare import Planner
from lDM_jax.sampling.programs import CompiledSamplers, SamplingInputs, SamplingSpec
from lDM_jax.sampling.request import Canvas, Request
from lDM_jax.sampling.trained_model import TrainedModel
from lDM_jax.tasks.task import Task

BATCH = 8
# What shapes a trajectory, and with it the program.
FIXED = ("seeds", "strength", "source", "steps", "sampler", "spacing", "size_px")
FIXED += ("window_px", "regional")


@dataclasses.dataclass
class Plan:
    """What a stream follows; `Pipeline.update` replaces request and course midway."""

    request: Request
    spec: SamplingSpec
    inputs: SamplingInputs


class Step(NamedTuple):
    """What `Pipeline.stream` yields after a step.

    step of total; carry: what the sampler goes on from; z f32 "b h w c", the latents
    now; z0_hat, their clean estimate.
    """

    step: int
    total: int
    carry: Carry
    plan: Plan

    @property
    def z(self) -> Array:
        return self.carry.z

    @property
    def z0_hat(self) -> Array:
        return self.carry.z0_hat


class Pipeline:
    """A trained model, ready to sample. Holds EMA weights; `load` makes one."""

    def __init__(
        self,
        config: ConfigDict,
        model: LatentDiffusion,
        params: dict,
        frozen: dict,
        **companions,
    ):
        self.trained = TrainedModel(config, model, params, frozen)
        self._plan_with(**companions)

    def _plan_with(self, **companions) -> None:
        """companions: guide, classifier and lpips as `Planner` takes them."""
        self.planner = Planner(self.trained, **companions)
        guide, classifier = self.planner.guide, self.planner.classifier
        self._programs = CompiledSamplers(
            self.model,
            guide=guide and guide.model,
            classifier=classifier and classifier[0],
        )

    @classmethod
    def load(
        cls, name: str, *, guide: str = "", classifier: str = "", lpips: str = ""
    ) -> "Pipeline":
        """A work directory, a weights directory, or the name of shipped weights.

        guide: a second one, a worse version of the first, for autoguidance; classifier:
        one of stage "classifier"; lpips: the file of VGG16, for targets. Raises
        UserError when they are none of these, or do not fit.
        """
        pipe = cls.__new__(cls)
        pipe.trained = TrainedModel.load(name)
        pipe._plan_with(
            guide=TrainedModel.load(guide) if guide else None,
            classifier=networks.load_classifier(classifier) if classifier else None,
            lpips=lpips,
        )
        return pipe

    @property
    def config(self) -> ConfigDict:
        return self.trained.config

    @property
    def model(self) -> LatentDiffusion:
        return self.trained.model

    @property
    def params(self) -> dict:
        return self.trained.params

    @property
    def frozen(self) -> dict:
        return self.trained.frozen

    @property
    def task(self) -> Task:
        return self.trained.task

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        return self.trained.latent_shape

    def resolved(self, request: Request) -> Request:
        """The request with the model's defaults filled in, checked; `Planner`'s."""
        return self.planner.resolved(request)

    def resolved_defaults(self, **options) -> dict:
        """sampler, steps, guidance and eta as they will be used, for records."""
        given = {name: value for name, value in options.items() if value is not None}
        used = {**self.config.sample.to_dict(), **given}
        return {name: used[name] for name in ("sampler", "steps", "guidance", "eta")}

    def sample(
        self, prompt: str | Sequence[str] | None = None, **options
    ) -> np.ndarray:
        """Pictures uint8 "b H W 3", for each prompt all seeds; options as `Request`."""
        prompts = [prompt] if prompt is None or isinstance(prompt, str) else prompt
        if not prompts:
            raise UserError("the list of prompts is empty: give at least one prompt")
        wanted = [self.resolved(Request(prompt=p, **options)) for p in prompts]
        pictures = [picture for request in wanted for picture in self.run(request)]
        return np.stack(pictures)

    def run(self, request: Request) -> Iterator[np.ndarray]:
        """The pictures of a resolved request, one a seed, as they are finished."""
        rows = min(BATCH, len(request.seeds))
        given = self.planner.canvas(request)
        spec, inputs = self.planner.spec(request, given), self._inputs(request, given)
        inputs = prepare.spread(inputs, rows)
        for start in range(0, len(request.seeds), rows):
            seeds = request.seeds[start : start + rows]
            padded = seeds + (seeds[-1],) * (rows - len(seeds))
            z = self._programs.whole(spec)(self.params, rng.seed_keys(padded), inputs)
            yield from self.finish(z, request, given)[: len(seeds)]

    def each(self, wanted: Sequence[Request], *, sharding=None) -> np.ndarray:
        """One picture a resolved request, all in one batch: uint8 "b H W 3".

        The requests have one seed each, and differ in seeds and conditions only; they
        start from noise. sharding: of the batch, for several devices.
        """
        given = [self.planner.canvas(request) for request in wanted]
        inputs = self.planner.inputs(wanted, given)
        keys = rng.seed_keys([request.seeds[0] for request in wanted])
        if sharding is not None:
            rows = (inputs.cond, inputs.null, keys)
            cond, null, keys = jax.device_put(rows, sharding)
            inputs = inputs._replace(cond=cond, null=null)
        spec = self.planner.spec(wanted[0], given[0])
        z = self._programs.whole(spec)(self.params, keys, inputs)
        pixels = self.finish(z, wanted[0], given[0]._replace(mask=None))
        pairs = zip(pixels, given, strict=True)
        return np.stack([paste(picture, canvas) for picture, canvas in pairs])

    def place(self, sharding) -> None:
        """Put the parameters where the batches of `each` will be."""
        self.trained.place(sharding)

    def stream(self, prompt: str | None = None, **options) -> Iterator[Step]:
        """One `Step` after every sampler step, for all seeds of one request at once.

        `update` changes the request of a step: the next steps follow it.
        """
        request = self.resolved(Request(prompt=prompt, **options))
        yield from self.resume(self.begin(request))

    def begin(self, request: Request) -> Step:
        """Where the stream of a resolved request begins: no step is made yet."""
        given = self.planner.canvas(request)
        spec = self.planner.spec(request, given, changing=True)
        inputs = prepare.spread(self._inputs(request, given), len(request.seeds))
        begin, _ = self._programs.single_step(spec)
        carry = begin(rng.seed_keys(request.seeds), inputs)
        plan = Plan(request, spec, inputs)
        return Step(int(inputs.start), request.steps, carry, plan)

    def resume(self, step: Step) -> Iterator[Step]:
        """The steps after `step`, by its plan: what `stream` yields from there.

        Of one step as often as wanted: a trajectory has branches. They share its plan;
        `step._replace(plan=dataclasses.replace(step.plan))` has one of its own.
        """
        plan = step.plan
        keys, carry = rng.seed_keys(plan.request.seeds), step.carry
        _, advance = self._programs.single_step(plan.spec)
        for index in range(step.step, step.total):
            carry = advance(self.params, carry, index, keys, plan.inputs)
            yield Step(index + 1, step.total, carry, plan)

    def update(self, step: Step, **changes) -> None:
        """Change prompt, negative, guidance, mask, ... for the steps after `step`.

        Nothing is compiled again. UserError for what shapes the trajectory: seeds,
        sampler, steps, spacing, size, or a mask, an image or a region where there was
        none.
        """
        old = step.plan
        fixed = [name for name in changes if name in FIXED]
        if fixed:
            raise UserError(f"{', '.join(fixed)} cannot change midway")
        request = self.resolved(dataclasses.replace(old.request, **changes))
        given = self.planner.canvas(request)
        spec = self.planner.spec(request, given, changing=True)
        inputs = self.planner.inputs([request], [given])
        inputs = prepare.spread(inputs, len(request.seeds))
        inputs = inputs._replace(start=old.inputs.start, eps=old.inputs.eps)
        if spec != old.spec or shapes(inputs) != shapes(old.inputs):
            raise UserError(
                f"{', '.join(changes)}: cannot come, go or change its extent midway, "
                "only its content"
            )
        old.request, old.inputs = request, inputs

    def interpolate(
        self, frames: int, prompt: str | Sequence[str] | None = None, **options
    ) -> Iterator[np.ndarray]:
        """uint8 "H W 3" pictures on the way from seed to seed, `frames` a pair.

        The noise goes along great circles (`samplers.slerp`), conditions along lines:
        with as many prompts as seeds each seed has its own. Begins with the first
        seed's own picture and ends with the last one's.
        """
        many = isinstance(prompt, (list, tuple))
        request = self.resolved(Request(prompt[0] if many else prompt, **options))
        prompts = list(prompt) if many else [prompt] * len(request.seeds)
        if len(prompts) != len(request.seeds) or len(prompts) < 2 or frames < 1:
            raise UserError(
                f"{len(prompts)} prompts for {len(request.seeds)} seeds, {frames} "
                "frames: give two seeds or more, one prompt or as many as seeds"
            )
        wanted = [
            self.resolved(dataclasses.replace(request, prompt=text, seeds=(seed,)))
            for text, seed in zip(prompts, request.seeds, strict=True)
        ]
        given = [self.planner.canvas(one) for one in wanted]
        inputs = self.planner.inputs(wanted, given)
        spec, last = self.planner.spec(request, given[0]), len(wanted) - 1
        noise = rng.normal_per_seed(rng.seed_keys(request.seeds), spec.shape)
        places = np.append(np.arange(last * frames) / frames, last)
        for start in range(0, len(places), BATCH):
            some = places[start : start + BATCH]
            padded = np.append(some, np.repeat(some[-1:], BATCH - len(some)))
            left = np.minimum(padded.astype(int), last - 1)
            u = jnp.asarray(padded - left, jnp.float32)
            part = along(inputs, left, u)._replace(
                eps=samplers.slerp(noise[left], noise[left + 1], column(u, 4))
            )
            keys = rng.seed_keys([request.seeds[0]] * BATCH)
            z = self._programs.whole(spec)(self.params, keys, part)
            yield from self.finish(z, request, given[0])[: len(some)]

    def _inputs(self, request: Request, given: Canvas) -> SamplingInputs:
        """A request's course of one row; with a `source`, from its image's noise."""
        inputs = self.planner.inputs([request], [given])
        if request.source is None:
            return inputs
        source = dataclasses.replace(request, guidance=1.0, regions=None)
        if self.task.field == "prompt":
            # no words at all are the null condition
            words = {"prompt": request.source or request.prompt}
            source = dataclasses.replace(source, negative="", **words)
        cond, null = self.planner.conditions([source], [given])
        spec = self.planner.spec(source, given)._replace(
            auto=False, gradient_guidance=()
        )
        toward = SamplingInputs(cond if request.source else null, null, 1.0, 0.0, 0)
        z0 = self.planner.latents(given)
        return inputs._replace(eps=self._programs.invert(spec)(self.params, z0, toward))

    def finish(self, z0: Array, request: Request, given: Canvas) -> np.ndarray:
        """Latents -> uint8 pictures, with the known pixels of a mask pasted back.

        A request in windows is decoded in exact tiles of their extent, unless the first
        stage attends: then as a whole, since tiles would show.
        """
        tiled = request.window_px and not self.model.codec.attends
        options = dict(tile_px=request.window_px, exact=True) if tiled else {}
        pixels = image.to_uint8(jax.device_get(self.decode(z0, **options)))
        return np.stack([paste(picture, given) for picture in pixels])

    def to_pixels(self, z0: Array) -> np.ndarray:
        """Latents -> uint8 pictures."""
        return image.to_uint8(jax.device_get(self.decode(z0)))

    def preview(self, z0: Array) -> np.ndarray:
        """Latents -> uint8 pictures at the latents' extent, by one small matrix."""
        z0 = jax.device_get(z0)
        return preview.to_rgb(self.model.codec, z0, self.latent_rgb)

    @cached_property
    def latent_rgb(self) -> np.ndarray:
        """The matrix of `preview`: stored with the first stage, or fitted now."""
        stored = networks.stored_first_stage(self.config).get("latent_rgb")
        if stored is not None:
            return np.asarray(stored, np.float32)
        codec, params = self.model.codec, self.frozen["first_stage"]
        return preview.fit_to_fields(codec, params, self.config.data.size_px)

    def codec_moments(self, x: np.ndarray) -> Array:
        """uint8 or f32 [-1, 1] pixels "b H W 3" -> moments of the first stage."""
        x = image.to_float(x) if np.asarray(x).dtype == np.uint8 else x
        return self.trained.moments(self.frozen["first_stage"], jnp.asarray(x))

    def encode(self, x: np.ndarray, *, tile_px: int = 0, exact: bool = False) -> Array:
        """Pixels -> scaled latents z0 (the posterior's mean).

        With tile_px, in tiles (`diffusion.tiling`), for pictures larger than memory.
        """
        codec = self.model.codec
        if not tile_px:
            return codec.mode(self.codec_moments(x))
        x = image.to_float(x) if np.asarray(x).dtype == np.uint8 else np.asarray(x)
        options = dict(tile_px=tile_px, exact=exact)
        params = self.frozen["first_stage"]
        return codec.mode(tiling.encode_tiled(codec, params, x, **options))

    def decode(self, z0: Array, *, tile_px: int = 0, exact: bool = False) -> Array:
        """Scaled latents -> f32 pixels, about [-1, 1]; tile_px as in `encode`."""
        if not tile_px:
            return self.trained.decode(self.frozen["first_stage"], z0)
        options = dict(tile_px=tile_px, exact=exact)
        params, z0 = self.frozen["first_stage"], jax.device_get(z0)
        return tiling.decode_tiled(self.model.codec, params, z0, **options)

    def denoise(self, z_t: Array, t: Array, cond: Cond) -> Array:
        """One network evaluation with the EMA weights."""
        return self.trained.denoise(self.params, z_t, t, cond)


def paste(picture: np.ndarray, given: Canvas) -> np.ndarray:
    """The picture, with the given image's pixels wherever the mask is 0."""
    if given.mask is None:
        return picture
    return np.where(given.mask > 0, picture, image.to_uint8(given.image))


def shapes(tree) -> tuple:
    """A tree's structure and the shapes of its leaves."""
    leaves, structure = jax.tree.flatten(tree)
    return structure, [np.shape(leaf) for leaf in leaves]


def column(u: Array, ndim: int) -> Array:
    """ "b" as "b 1 .. 1" with ndim axes."""
    return u.reshape(u.shape + (1,) * (ndim - 1))


def along(inputs: SamplingInputs, left: np.ndarray, u: Array) -> SamplingInputs:
    """Rows (1 - u) course[left] + u course[left + 1] of the conditions."""

    def mix(tree):
        return jax.tree.map(
            lambda x: (
                (1 - column(u, x.ndim)) * x[left] + column(u, x.ndim) * x[left + 1]
            ),
            tree,
        )

    guide = inputs.guide and (inputs.guide[0], mix(inputs.guide[1]))
    return inputs._replace(cond=mix(inputs.cond), null=mix(inputs.null), guide=guide)
