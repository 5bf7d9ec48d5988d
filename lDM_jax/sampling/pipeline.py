"""Sampling for people and programs: the interface to write against.

    pipe = Pipeline.load("emoji")
    images = pipe.sample(prompt="red heart", seeds=range(4))     # uint8 "b H W 3"

Owns the path from a request to pictures: `prepare` makes of it, once, what a trajectory
runs on, `programs` runs it, the first stage decodes. An image depends on its seed and
its request alone, not on what stands beside it in a batch: each row has its noise key.
Rows run `BATCH` at a time, the last batch padded, so that a trajectory compiles once.
Guidance, prompt and seed never retrace.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from lDM_jax.core import image, rng
from lDM_jax.core.arrays import Array, Cond, per_row
from lDM_jax.core.errors import UserError
from lDM_jax.diffusion import samplers, tiling
from lDM_jax.diffusion.latent_diffusion import LatentDiffusion
from lDM_jax.diffusion.samplers import Carry
from lDM_jax.from_config import networks
from lDM_jax.sampling import prepare, preview
from lDM_jax.sampling import request as request_lib
from lDM_jax.sampling.prepare import Models, Prepared
from lDM_jax.sampling.programs import CompiledSamplers, SamplingInputs
from lDM_jax.sampling.request import Request, RequestPixels
from lDM_jax.sampling.trained_model import TrainedModel
from lDM_jax.tasks.task import Task

BATCH = 8
# What shapes a trajectory, and with it the program.
FIXED = ("seeds", "strength", "source", "steps", "sampler", "spacing", "size_px")
FIXED += ("window_px", "regional")


@dataclasses.dataclass
class Step:
    """What `Pipeline.stream` yields after a step; `Pipeline.update` changes it.

    step of total; carry: what the sampler goes on from; prepared: what the next steps
    follow; z f32 "b h w c", the latents now; z0_hat, their clean estimate. A copy by
    `dataclasses.replace(step)` is a branch: its updates do not reach the original.
    """

    step: int
    total: int
    carry: Carry
    prepared: Prepared

    @property
    def z(self) -> Array:
        return self.carry.z

    @property
    def z0_hat(self) -> Array:
        return self.carry.z0_hat


class Pipeline:
    """A trained model, ready to sample. Holds EMA weights; `load` makes one.

    companions: guide, classifier and lpips, as `prepare.Models` has them.
    """

    def __init__(
        self,
        config: ConfigDict,
        model: LatentDiffusion,
        params: dict,
        frozen: dict,
        **companions,
    ):
        trained = TrainedModel(config, model, params, frozen)
        self._serve(Models(trained, **companions))

    def _serve(self, models: Models) -> None:
        self.models, guide, classifier = models, models.guide, models.classifier
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
        models = Models(
            TrainedModel.load(name),
            guide=TrainedModel.load(guide) if guide else None,
            classifier=networks.load_classifier(classifier) if classifier else None,
            lpips=lpips,
        )
        pipe = cls.__new__(cls)
        pipe._serve(models)
        return pipe

    @property
    def trained(self) -> TrainedModel:
        return self.models.trained

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

    def resolve(self, request: Request) -> Request:
        """The request with the model's defaults filled in, checked; reads no file."""
        return prepare.resolve(self.models, request)

    def prepare(self, request: Request, **options) -> Prepared:
        """The request with all that its trajectories need; see `prepare.prepare`."""
        prepared = prepare.prepare(self.models, request, **options)
        if request.source is None:
            return prepared
        spec, z0, inputs = prepare.inversion(self.models, prepared)
        eps = self._programs.invert(spec)(self.params, z0, inputs)
        inputs = prepared.inputs._replace(eps=eps)
        return dataclasses.replace(prepared, inputs=inputs)

    def resolved_defaults(self, **options) -> dict:
        """sampler, steps, guidance and eta as they will be used, for records."""
        values = self.config.sample.to_dict()
        values |= {name: value for name, value in options.items() if value is not None}
        return {name: values[name] for name in ("sampler", "steps", "guidance", "eta")}

    def sample(
        self, prompt: str | Sequence[str] | None = None, **options
    ) -> np.ndarray:
        """Pictures uint8 "b H W 3", for each prompt all seeds; options as `Request`."""
        prompts = [prompt] if prompt is None or isinstance(prompt, str) else prompt
        if not prompts:
            raise UserError("the list of prompts is empty: give at least one prompt")
        requests = [self.resolve(Request(prompt=text, **options)) for text in prompts]
        pictures, prepared = [], None
        for request in requests:
            prepared = self.prepare(request, old=prepared)
            pictures.extend(self.run(prepared))
        return np.stack(pictures)

    def run(self, request: Request | Prepared) -> Iterator[np.ndarray]:
        """The pictures of a request, one a seed, as they are finished."""
        prepared = self.prepare(request) if isinstance(request, Request) else request
        seeds, program = prepared.request.seeds, self._programs.whole(prepared.spec)
        rows = min(BATCH, len(seeds))
        inputs = prepare.spread(prepared.inputs, rows)
        for start in range(0, len(seeds), rows):
            some = seeds[start : start + rows]
            padded = some + (some[-1],) * (rows - len(some))
            z = program(self.params, rng.seed_keys(padded), inputs)
            yield from self._pictures(z, prepared)[: len(some)]

    def each(self, requests: Sequence[Request], *, sharding=None) -> np.ndarray:
        """One picture a resolved request, all in one batch: uint8 "b H W 3".

        The requests have one seed each, and differ in seeds and conditions only; they
        start from noise. sharding: of the batch, for several devices.
        """
        presets = [request.embedded() for request in requests]
        known = self.task, self.trained.settings
        pixels = [request_lib.canvas(preset, *known) for preset in presets]
        inputs = prepare.sampling_inputs(self.models, presets, pixels)
        keys = rng.seed_keys([request.seeds[0] for request in requests])
        if sharding is not None:
            rows = (inputs.cond, inputs.null, keys)
            cond, null, keys = jax.device_put(rows, sharding)
            inputs = inputs._replace(cond=cond, null=null)
        spec = prepare.sampling_spec(self.models, presets[0], pixels[0])
        z = self._programs.whole(spec)(self.params, keys, inputs)
        pictures = self.to_pixels(z, window_px=presets[0].window_px)
        pairs = zip(pictures, pixels, strict=True)
        return np.stack([paste(picture, own) for picture, own in pairs])

    def place(self, sharding) -> None:
        """Put the parameters where the batches of `each` will be."""
        self.trained.place(sharding)

    def stream(self, prompt: str | None = None, **options) -> Iterator[Step]:
        """One `Step` after every sampler step, for all seeds of one request at once.

        `update` changes the request of a step: the next steps follow it.
        """
        yield from self.resume(self.begin(Request(prompt=prompt, **options)))

    def begin(self, request: Request) -> Step:
        """Where the stream of a request begins: no step is made yet."""
        prepared = self.prepare(request, changing=True)
        request, inputs = prepared.request, prepared.inputs
        begin, _ = self._programs.single_step(prepared.spec)
        keys = rng.seed_keys(request.seeds)
        carry = begin(keys, prepare.spread(inputs, len(request.seeds)))
        return Step(int(inputs.start), request.steps, carry, prepared)

    def resume(self, step: Step) -> Iterator[Step]:
        """The steps after `step`: what `stream` yields from there.

        Of one step as often as one likes: a trajectory has branches.
        """
        seeds, prepared = step.prepared.request.seeds, None
        keys = rng.seed_keys(seeds)
        _, advance = self._programs.single_step(step.prepared.spec)
        while step.step < step.total:
            if step.prepared is not prepared:
                prepared = step.prepared
                inputs = prepare.spread(prepared.inputs, len(seeds))
            carry = advance(self.params, step.carry, step.step, keys, inputs)
            step = Step(step.step + 1, step.total, carry, prepared)
            yield step

    def update(self, step: Step, **changes) -> None:
        """Change prompt, negative, guidance, mask, ... for the steps after `step`.

        Nothing is compiled again, only what changed is encoded, and the sampler forgets
        what it remembers of another denoiser: its next step is a first one. UserError
        for what shapes the trajectory: seeds, sampler, steps, spacing, size, or a mask,
        an image or a region where there was none.
        """
        fixed = [name for name in changes if name in FIXED]
        if fixed:
            raise UserError(f"{', '.join(fixed)} cannot change midway")
        old = step.prepared
        request = dataclasses.replace(old.request, **changes)
        options = dict(changing=True, old=old, read_anew=changes)
        new = prepare.prepare(self.models, request, **options)
        inputs = new.inputs._replace(start=old.inputs.start, eps=old.inputs.eps)
        if new.spec != old.spec or shapes(inputs) != shapes(old.inputs):
            raise UserError(
                f"{', '.join(changes)}: cannot come, go or change its extent midway, "
                "only its content"
            )
        step.prepared = dataclasses.replace(new, inputs=inputs)
        if request_lib.changed_fields(old.preset, new.preset) - {"eta"}:
            step.carry = samplers.forget(step.carry)

    def interpolate(
        self, frames: int, prompt: str | Sequence[str] | None = None, **options
    ) -> Iterator[np.ndarray]:
        """uint8 "H W 3" pictures between one seed and the next, `frames` a pair.

        The noise goes along great circles (`samplers.slerp`), conditions along lines:
        with as many prompts as seeds each seed has its own. Begins with the first
        seed's own picture and ends with the last one's.
        """
        many = isinstance(prompt, (list, tuple))
        prepared = self.prepare(Request(prompt[0] if many else prompt, **options))
        request, spec = prepared.preset, prepared.spec
        prompts = list(prompt) if many else [prompt] * len(request.seeds)
        if len(prompts) != len(request.seeds) or len(prompts) < 2 or frames < 1:
            raise UserError(
                f"{len(prompts)} prompts for {len(request.seeds)} seeds, {frames} "
                "frames: give two seeds or more, one prompt or as many as seeds"
            )
        ends = [
            self.resolve(dataclasses.replace(request, prompt=text, seeds=(seed,)))
            for text, seed in zip(prompts, request.seeds, strict=True)
        ]
        pixels, last = [prepared.pixels] * len(ends), len(ends) - 1
        inputs = prepare.sampling_inputs(self.models, ends, pixels)
        noise = rng.normal_per_seed(rng.seed_keys(request.seeds), spec.shape)
        places = np.append(np.arange(last * frames) / frames, last)
        for start in range(0, len(places), BATCH):
            some = places[start : start + BATCH]
            padded = np.append(some, np.repeat(some[-1:], BATCH - len(some)))
            left = np.minimum(padded.astype(int), last - 1)
            u = jnp.asarray(padded - left, jnp.float32)
            part = along(inputs, left, u)._replace(
                eps=samplers.slerp(noise[left], noise[left + 1], per_row(u, noise))
            )
            keys = rng.seed_keys([request.seeds[0]] * BATCH)
            z = self._programs.whole(spec)(self.params, keys, part)
            yield from self._pictures(z, prepared)[: len(some)]

    def finish(self, step: Step) -> np.ndarray:
        """The pictures of a step by the full decoder: uint8 "b H W 3".

        Of the last step its latents, of an earlier one their clean estimate, with the
        known pixels of a mask pasted back.
        """
        z0 = step.z if step.step == step.total else step.z0_hat
        return self._pictures(z0, step.prepared)

    def _pictures(self, z0: Array, prepared: Prepared) -> np.ndarray:
        """Latents -> uint8 pictures of a request, its known pixels pasted back."""
        pictures = self.to_pixels(z0, window_px=prepared.request.window_px)
        return np.stack([paste(picture, prepared.pixels) for picture in pictures])

    def to_pixels(self, z0: Array, *, window_px: int = 0) -> np.ndarray:
        """Latents -> uint8 pictures.

        What was drawn in windows is decoded in exact tiles of their extent, unless the
        first stage attends: then as a whole, since tiles would show.
        """
        tiled = window_px and not self.model.codec.attends
        options = dict(tile_px=window_px, exact=True) if tiled else {}
        return image.to_uint8(jax.device_get(self.decode(z0, **options)))

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


def paste(picture: np.ndarray, pixels: RequestPixels) -> np.ndarray:
    """The picture, with the request's own pixels wherever its mask is 0."""
    if pixels.mask is None:
        return picture
    return np.where(pixels.mask > 0, picture, image.to_uint8(pixels.image))


def shapes(tree) -> tuple:
    """A tree's structure and the shapes of its leaves."""
    leaves, structure = jax.tree.flatten(tree)
    return structure, [np.shape(leaf) for leaf in leaves]


def along(inputs: SamplingInputs, left: np.ndarray, u: Array) -> SamplingInputs:
    """Rows (1 - u) row[left] + u row[left + 1] of the conditions."""

    def mix(tree):
        def between(x: Array) -> Array:
            return (1 - per_row(u, x)) * x[left] + per_row(u, x) * x[left + 1]

        return jax.tree.map(between, tree)

    guide = inputs.guide and (inputs.guide[0], mix(inputs.guide[1]))
    return inputs._replace(cond=mix(inputs.cond), null=mix(inputs.null), guide=guide)
