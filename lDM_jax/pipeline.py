"""Sampling for people and programs: the interface to write against.

    pipe = Pipeline.load("emoji")
    images = pipe.sample(prompt="red heart", seeds=range(4))     # uint8 "b H W 3"

Owns the way from a request to pictures: conditions, guidance, trajectory, decoding. An
image depends on its seed and its request alone, not on what stands beside it in a
batch: every row has its own noise key. Rows run `BATCH` at a time, the last batch
padded, so that a trajectory compiles once. Guidance, prompt and seed never retrace.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from lDM_jax import build, image, requests, rng, samplers, tasks, tiling, weights
from lDM_jax.arrays import Array, Cond, UserError
from lDM_jax.models.unet import check_extent
from lDM_jax.requests import Canvas, Request
from lDM_jax.training.diffusion import Model
from lDM_jax.trajectory import Course, Programs, Way

BATCH = 8


@dataclasses.dataclass
class Plan:
    """What a stream follows; `Pipeline.update` replaces it midway."""

    request: Request
    course: Course


class Step(NamedTuple):
    """What `Pipeline.stream` yields after a step.

    step of total; z f32 "b h w c", the latents now; z0_hat, their clean estimate.
    """

    step: int
    total: int
    z: Array
    z0_hat: Array
    plan: Plan


class Pipeline:
    """A trained model, ready to sample. Holds EMA weights; `load` makes one."""

    def __init__(self, config: ConfigDict, model: Model, params: dict, frozen: dict):
        self.config, self.model = config, model
        self.params, self.frozen = jax.device_put((params, frozen))
        self.task = tasks.get_task(config.task)
        self.tokenizer = build.tokenizer(config)
        size = config.data.size_px
        self.latent_shape = model.codec.latent_shape(size, size)

    @classmethod
    def load(cls, name: str) -> "Pipeline":
        """A work directory, a weights directory, or the name of shipped weights.

        Raises UserError when it is none of these, or does not fit its own config.
        """
        config, params = build.load_trained(name)
        if config.stage != "diffusion":
            raise UserError(
                f"{name} is a first stage: it encodes and decodes but does not draw; "
                "give a model of stage 'diffusion'"
            )
        codec, codec_params = build.first_stage(config)
        frozen = build.frozen(config, codec_params)
        model = build.model(config, codec)
        pipe = cls(config, model, params, frozen)
        weights.check_cover(params, pipe.abstract_params, what=str(name))
        return pipe

    @cached_property
    def abstract_params(self) -> dict:
        """Shapes of the parameters, by tracing the model's init."""
        key = jax.eval_shape(lambda: jax.random.key(0))
        z0 = jax.ShapeDtypeStruct((1, *self.latent_shape), jnp.float32)
        rows = tasks.example_shapes(
            self.task,
            self.tokenizer,
            rows=1,
            size_px=self.config.data.size_px,
            factor=self.config.get("low_res", {}).get("factor", 4),
        )
        return jax.eval_shape(self.model.init, key, rows, z0)

    def resolved(self, request: Request) -> Request:
        """The request with the model's defaults filled in, checked.

        Raises UserError for an empty prompt, impossible seeds, steps or sampler.
        """
        defaults = self.config.sample
        request = dataclasses.replace(
            request,
            seeds=tuple(int(seed) for seed in request.seeds),
            sampler=defaults.sampler if request.sampler is None else request.sampler,
            steps=defaults.steps if request.steps is None else int(request.steps),
            spacing=request.spacing or defaults.get("spacing", "leading"),
            guidance=float(
                defaults.guidance if request.guidance is None else request.guidance
            ),
        )
        bad = [seed for seed in request.seeds if not 0 <= seed < 2**32]
        if bad or not request.seeds:
            raise UserError(
                f"seeds {bad or '(none)'}: give integers from 0 to 4294967295"
            )
        own_eta = samplers.check(request.sampler).eta
        if request.eta and own_eta is not None:
            raise UserError(
                f"eta is {request.eta}, but the sampler {request.sampler!r} has none; "
                "leave it at 0 or take the sampler 'ddim'"
            )
        self.model.process.grid(request.steps, request.spacing)
        requests.check(request, self.config)
        self.latent_extent(requests.canvas(request, self.config))
        return request

    def latent_extent(self, given: Canvas) -> tuple[int, int, int]:
        """(h, w, c) of the latents of a canvas. UserError for sides that do not fit."""
        shape = self.model.codec.latent_shape(given.height_px, given.width_px)
        check_extent(shape[:2], self.model.unet.halvings)
        return shape

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
        requests = [self.resolved(Request(prompt=p, **options)) for p in prompts]
        pictures = [picture for r in requests for picture in self.run(r)]
        return np.stack(pictures)

    def run(self, request: Request) -> Iterator[np.ndarray]:
        """The pictures of a resolved request, one a seed, as they are finished."""
        rows = min(BATCH, len(request.seeds))
        given = requests.canvas(request, self.config)
        course, way = self.course(request, given, rows), self._way(request, given)
        for start in range(0, len(request.seeds), rows):
            seeds = request.seeds[start : start + rows]
            padded = seeds + (seeds[-1],) * (rows - len(seeds))
            z = self._programs.whole(way)(self.params, rng.seed_keys(padded), course)
            yield from self.finish(z, given, request.window_px)[: len(seeds)]

    def each(self, wanted: Sequence[Request], *, sharding=None) -> np.ndarray:
        """One picture a resolved request, all in one batch: uint8 "b H W 3".

        The requests have one seed each, and differ in seeds and conditions only; they
        start from noise. sharding: of the batch, for several devices.
        """
        given = [requests.canvas(request, self.config) for request in wanted]
        rows = [self._batch(r, g, 1) for r, g in zip(wanted, given, strict=True)]
        batch = {key: jnp.concatenate([row[key] for row in rows]) for key in rows[0]}
        keys = rng.seed_keys([request.seeds[0] for request in wanted])
        if sharding is not None:
            batch, keys = jax.device_put((batch, keys), sharding)
        keep = jnp.zeros(len(wanted), bool)
        cond, null = (
            self._condition(self.params, self.frozen, batch, drop)
            for drop in (keep, ~keep)
        )
        first = wanted[0]
        course = Course(cond, null, first.guidance, first.eta, 0)
        z = self._programs.whole(self._way(first, given[0]))(self.params, keys, course)
        return self.finish(z, given[0], first.window_px)

    def place(self, sharding) -> None:
        """Put the parameters where the batches of `each` will be."""
        self.params, self.frozen = jax.device_put((self.params, self.frozen), sharding)

    def stream(self, prompt: str | None = None, **options) -> Iterator[Step]:
        """One `Step` after every sampler step, for all seeds of one request at once.

        `update` changes the request of a step: the next steps follow it.
        """
        request = self.resolved(Request(prompt=prompt, **options))
        given = requests.canvas(request, self.config)
        keys = rng.seed_keys(request.seeds)
        plan = Plan(request, self.course(request, given, len(request.seeds)))
        begin, advance = self._programs.single_step(self._way(request, given))
        carry = begin(keys, plan.course)
        for index in range(int(plan.course.start), request.steps):
            carry = advance(self.params, carry, index, keys, plan.course)
            yield Step(index + 1, request.steps, carry.z, carry.z0_hat, plan)

    def update(self, step: Step, **changes) -> None:
        """Change prompt, negative, guidance, mask, ... for the steps after `step`.

        Nothing is compiled again. UserError for what shapes the trajectory: seeds,
        sampler, steps, spacing, size, or a mask where there was none.
        """
        fixed = ("seeds", "sampler", "steps", "spacing", "size_px", "strength")
        wrong = [name for name in changes if name in fixed]
        if wrong:
            raise UserError(f"{', '.join(wrong)} cannot change midway")
        old = step.plan
        request = self.resolved(dataclasses.replace(old.request, **changes))
        given = requests.canvas(request, self.config)
        course = self.course(request, given, len(request.seeds))
        if (course.keep is None) != (old.course.keep is None):
            raise UserError("a mask cannot come or go midway, only change")
        old.request, old.course = request, course._replace(start=old.course.start)

    def course(self, request: Request, given: Canvas, rows: int) -> Course:
        """Conditions, and the known latents of image to image and of blending."""
        cond, null = self.conditions(request, rows, given)
        course = Course(cond, null, request.guidance, request.eta, 0)
        if given.image is None or self.task.name in requests.OWN_IMAGE:
            return course
        z0 = self.model.codec.mode(self.codec_moments(given.image[None]))
        start = request.steps - max(1, round(request.strength * request.steps))
        if given.mask is None:
            return course._replace(start=start, z0=z0)
        # a latent position is known if no pixel of its cell is to be painted
        cell = self.model.codec.factor
        h, w = z0.shape[1:3]
        paint = given.mask.reshape(h, cell, w, cell).max(axis=(1, 3))
        return course._replace(start=start, z0=z0, keep=1 - paint[None, :, :, None])

    def finish(self, z0: Array, given: Canvas, tile_px: int = 0) -> np.ndarray:
        """Latents -> uint8 pictures, with the known pixels of a mask pasted back."""
        pixels = image.to_uint8(jax.device_get(self.decode(z0, tile_px=tile_px)))
        if given.mask is None:
            return pixels
        return np.where(given.mask[None] > 0, pixels, image.to_uint8(given.image))

    def to_pixels(self, z0: Array) -> np.ndarray:
        """Latents -> uint8 pictures."""
        return image.to_uint8(
            jax.device_get(self._decode(self.frozen["first_stage"], z0))
        )

    def codec_moments(self, x: np.ndarray) -> Array:
        """uint8 or f32 [-1, 1] pixels "b H W 3" -> moments of the first stage."""
        x = image.to_float(x) if np.asarray(x).dtype == np.uint8 else x
        return self._moments(self.frozen["first_stage"], jnp.asarray(x))

    def encode(self, x: np.ndarray, *, tile_px: int = 0, exact: bool = False) -> Array:
        """Pixels -> scaled latents z0 (the posterior's mean).

        With tile_px, in tiles (`lDM_jax.tiling`), for pictures larger than memory.
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
            return self._decode(self.frozen["first_stage"], z0)
        options = dict(tile_px=tile_px, exact=exact)
        params, z0 = self.frozen["first_stage"], jax.device_get(z0)
        return tiling.decode_tiled(self.model.codec, params, z0, **options)

    def denoise(self, z_t: Array, t: Array, cond: Cond) -> Array:
        """One network evaluation with the EMA weights."""
        return self._denoise(self.params, z_t, t, cond)

    def conditions(
        self, request: Request, rows: int, given: Canvas | None = None
    ) -> tuple[Cond, Cond]:
        """(condition, null condition) of `rows` equal rows; negative replaces null."""
        given = requests.canvas(request, self.config) if given is None else given
        keep, drop = jnp.zeros(rows, bool), jnp.ones(rows, bool)
        batch = self._batch(request, given, rows)
        cond = self._condition(self.params, self.frozen, batch, keep)
        if request.regions:
            return self._regional(request, given, cond)
        if request.negative:
            negative = dataclasses.replace(request, prompt=request.negative)
            batch, drop = self._batch(negative, given, rows), keep
        return cond, self._condition(self.params, self.frozen, batch, drop)

    def _regional(
        self, request: Request, given: Canvas, cond: Cond
    ) -> tuple[Cond, Cond]:
        """`conditions` with a text for each region, the prompt's first."""
        plain = dataclasses.replace(request, regions=None)
        texts, rows = [cond], cond.context.shape[0]
        for prompt, _ in request.regions:
            one = dataclasses.replace(plain, prompt=prompt)
            texts.append(self.conditions(one, rows, given)[0])
        nulls = [self.conditions(plain, rows, given)[1]] * len(texts)
        cell = self.model.codec.factor
        maps = requests.region_maps(request, given)
        h, w = given.height_px // cell, given.width_px // cell
        # a position belongs where most of its pixels do
        maps = maps.reshape(h, cell, w, cell, -1).mean(axis=(1, 3)) >= 0.5
        regions = jnp.repeat(jnp.asarray(maps, jnp.float32)[None], rows, axis=0)

        def join(parts: list[Cond]) -> Cond:
            contexts = jnp.concatenate([part.context for part in parts], axis=1)
            return parts[0].replace(context=contexts, regions=regions)

        return join(texts), join(nulls)

    def _batch(self, request: Request, given: Canvas, rows: int) -> dict:
        made = requests.batch(
            request,
            given,
            task=self.task.name,
            tokenizer=self.tokenizer,
            rows=rows,
            num_labels=self.config.get("num_classes", 0),
        )
        return {name: jnp.asarray(value) for name, value in made.items()}

    @cached_property
    def _condition(self):
        return jax.jit(self.model.condition)

    @cached_property
    def _denoise(self):
        return jax.jit(self.model.denoise)

    @cached_property
    def _decode(self):
        return jax.jit(self.model.codec.decode)

    @cached_property
    def _moments(self):
        return jax.jit(self.model.codec.moments)

    @cached_property
    def _programs(self) -> Programs:
        return Programs(self.model)

    def _way(self, request: Request, given: Canvas) -> Way:
        """The program of a request."""
        guided = request.guidance != 1 and self.task.route is not None
        return Way(
            request.sampler,
            request.steps,
            request.spacing,
            self.latent_extent(given),
            guided,
            request.window_px // self.model.codec.factor,
            request.regional if request.regions else "",
        )
