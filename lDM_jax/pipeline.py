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

from lDM_jax import build, image, rng, samplers, tasks, tiling, weights
from lDM_jax.arrays import Array, Cond, UserError
from lDM_jax.guidance import classifier_free
from lDM_jax.training.diffusion import Model

BATCH = 8


class Step(NamedTuple):
    """What `Pipeline.stream` yields after a step.

    step of total; z f32 "b h w c", the latents now; z0_hat, their clean estimate.
    """

    step: int
    total: int
    z: Array
    z0_hat: Array


@dataclasses.dataclass(frozen=True)
class Request:
    """Everything that determines pictures, besides the weights.

    prompt, negative: one text for all seeds. seeds: non-negative integers below 2^32.
    None takes the model's own default (steps, guidance, sampler).
    """

    prompt: str | None = None
    negative: str = ""
    label: int | None = None
    seeds: tuple[int, ...] = (0,)
    sampler: str | None = None
    steps: int | None = None
    guidance: float | None = None
    eta: float = 0.0


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
        codec, frozen = build.first_stage(config)
        model = build.model(config, codec)
        pipe = cls(config, model, params, frozen)
        weights.check_cover(params, pipe.abstract_params, what=str(name))
        return pipe

    @cached_property
    def abstract_params(self) -> dict:
        """Shapes of the parameters, by tracing the model's init."""
        key = jax.eval_shape(lambda: jax.random.key(0))
        z0 = jnp.zeros((1, *self.latent_shape))
        return jax.eval_shape(
            lambda key: self.model.init(key, self._conditions(Request("x"), 1), z0), key
        )

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
        self.model.process.grid(request.steps)
        self._conditions(request, 1)
        return request

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
        for start in range(0, len(request.seeds), rows):
            seeds = request.seeds[start : start + rows]
            padded = seeds + (seeds[-1],) * (rows - len(seeds))
            cond, null = self.conditions(request, rows)
            z = self._trajectory(request.sampler, request.steps)(
                self.params,
                rng.seed_keys(padded),
                cond,
                null,
                request.guidance,
                request.eta,
            )
            yield from self.to_pixels(z)[: len(seeds)]

    def stream(self, prompt: str | None = None, **options) -> Iterator[Step]:
        """One `Step` after every sampler step, for all seeds of one request at once."""
        request = self.resolved(Request(prompt=prompt, **options))
        rows = len(request.seeds)
        keys = rng.seed_keys(request.seeds)
        cond, null = self.conditions(request, rows)
        start, advance = self._single_step(request.sampler, request.steps)
        carry = start(keys)
        for index in range(request.steps):
            carry = advance(
                self.params,
                carry,
                index,
                keys,
                cond,
                null,
                request.guidance,
                request.eta,
            )
            yield Step(index + 1, request.steps, carry.z, carry.z0_hat)

    def to_pixels(self, z0: Array) -> np.ndarray:
        """Latents -> uint8 pictures."""
        return image.to_uint8(jax.device_get(self._decode(self.frozen, z0)))

    def codec_moments(self, x: np.ndarray) -> Array:
        """uint8 or f32 [-1, 1] pixels "b H W 3" -> moments of the first stage."""
        x = image.to_float(x) if np.asarray(x).dtype == np.uint8 else x
        return self._moments(self.frozen, jnp.asarray(x))

    def encode(self, x: np.ndarray, *, tile_px: int = 0, exact: bool = False) -> Array:
        """Pixels -> scaled latents z0 (the posterior's mean).

        With tile_px, in tiles (`lDM_jax.tiling`), for pictures larger than memory.
        """
        codec = self.model.codec
        if not tile_px:
            return codec.mode(self.codec_moments(x))
        x = image.to_float(x) if np.asarray(x).dtype == np.uint8 else np.asarray(x)
        options = dict(tile_px=tile_px, exact=exact)
        return codec.mode(tiling.encode_tiled(codec, self.frozen, x, **options))

    def decode(self, z0: Array, *, tile_px: int = 0, exact: bool = False) -> Array:
        """Scaled latents -> f32 pixels, about [-1, 1]; tile_px as in `encode`."""
        if not tile_px:
            return self._decode(self.frozen, z0)
        options = dict(tile_px=tile_px, exact=exact)
        z0 = jax.device_get(z0)
        return tiling.decode_tiled(self.model.codec, self.frozen, z0, **options)

    def denoise(self, z_t: Array, t: Array, cond: Cond) -> Array:
        """One network evaluation with the EMA weights."""
        return self._denoise(self.params, z_t, t, cond)

    def conditions(self, request: Request, rows: int) -> tuple[Cond, Cond]:
        """(condition, null condition) of `rows` equal rows; negative replaces null."""
        batch = self._conditions(request, rows)
        cond = self._condition(self.params, batch, jnp.zeros(rows, bool))
        if request.negative:
            negative = dataclasses.replace(request, prompt=request.negative)
            batch, drop = self._conditions(negative, rows), jnp.zeros(rows, bool)
        else:
            drop = jnp.ones(rows, bool)
        return cond, self._condition(self.params, batch, drop)

    def _conditions(self, request: Request, rows: int) -> dict:
        prompts = None if request.prompt is None else [request.prompt] * rows
        labels = None if request.label is None else [request.label] * rows
        batch = tasks.request_batch(
            self.task, self.tokenizer, prompts=prompts, labels=labels, rows=rows
        )
        return {name: jnp.asarray(value) for name, value in batch.items()}

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
    def _compiled(self) -> dict:
        return {}

    def _guided(self, params, cond: Cond, null: Cond, guidance):
        def network(z, t, cond):
            return self.model.denoise(params, z, t, cond)

        return classifier_free(network, cond, null, guidance)

    def _trajectory(self, sampler: str, steps: int):
        """The whole trajectory as one program, compiled once per (sampler, steps)."""
        process, grid = self.model.process, self.model.process.grid(steps)

        def run(params, keys, cond, null, guidance, eta):
            return samplers.sample(
                self._guided(params, cond, null, guidance),
                rng.normal_per_seed(keys, self.latent_shape),
                process,
                grid=grid,
                sampler=sampler,
                eta=eta,
                keys=keys,
            )

        return self._compiled.setdefault(("run", sampler, steps), jax.jit(run))

    def _single_step(self, sampler: str, steps: int):
        """(start, advance): the same trajectory, one step a call, compiled once."""
        process, grid = self.model.process, self.model.process.grid(steps)

        def start(keys):
            z = rng.normal_per_seed(keys, self.latent_shape)
            return samplers.start_carry(z, sampler)

        def advance(params, carry, index, keys, cond, null, guidance, eta):
            return samplers.step(
                self._guided(params, cond, null, guidance),
                carry,
                index,
                process,
                grid=grid,
                sampler=sampler,
                eta=eta,
                keys=keys,
            )

        pair = (jax.jit(start), jax.jit(advance))
        return self._compiled.setdefault(("step", sampler, steps), pair)
