"""From requests to what a trajectory runs on: `Planner`.

Owns the meeting of request and model: defaults and checks, conditions and their nulls,
regions, known latents, gradient guidance. Reading order: `resolved`, `spec` (what is
compiled for a request), `inputs` (what it is run on), `conditions`. Runs no trajectory.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from lDM_jax.core import image
from lDM_jax.core.arrays import Array, Cond
from lDM_jax.core.errors import UserError
from lDM_jax.diffusion import samplers
from lDM_jax.sampling import request as request_lib
from lDM_jax.sampling.programs import SamplingInputs, SamplingSpec
from lDM_jax.sampling.request import Canvas, Request
from lDM_jax.sampling.trained_model import TrainedModel
from lDM_jax.weights import lpips as lpips_weights


class Planner:
    """guide: a worse model for autoguidance, of the same task and latents; classifier:
    (network, parameters) for classifier guidance; lpips: the file of VGG16."""

    def __init__(
        self,
        trained: TrainedModel,
        *,
        guide: TrainedModel | None = None,
        classifier: tuple | None = None,
        lpips: str = "",
    ):
        self.trained, self.guide, self.classifier = trained, guide, classifier
        self._lpips = lpips
        if guide is not None and (
            (guide.task.name, guide.latent_shape)
            != (trained.task.name, trained.latent_shape)
        ):
            raise UserError(
                f"the guide is a {guide.task.name} model with latents "
                f"{guide.latent_shape}, the model a {trained.task.name} one with "
                f"{trained.latent_shape}: autoguidance needs two of a kind"
            )

    def resolved(self, request: Request) -> Request:
        """The request with the model's defaults filled in, checked.

        Raises UserError for an empty prompt, impossible seeds, steps or sampler.
        """
        defaults = self.trained.config.sample
        names, guidance = self.trained.settings.class_names, request.guidance
        if guidance is None:
            guidance = 1.0 if request.autoguidance != 1 else defaults.guidance
        request = dataclasses.replace(
            request,
            label=request_lib.label_number(request.label, names),
            layout=request_lib.numbered(request.layout, names),
            seeds=tuple(int(seed) for seed in request.seeds),
            sampler=defaults.sampler if request.sampler is None else request.sampler,
            steps=defaults.steps if request.steps is None else int(request.steps),
            spacing=request.spacing or defaults.get("spacing", "leading"),
            guidance=float(guidance),
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
        self.trained.model.process.grid(request.steps, request.spacing)
        request_lib.check(request, self.trained.task, self.trained.settings)
        if request.autoguidance != 1 and self.guide is None:
            raise UserError(
                "autoguidance needs a guide: Pipeline.load(name, guide=...), --guide"
            )
        if request.classifier_scale:
            self._check_label(request)
        given = self.canvas(request)
        self.trained.latent_extent(given.height_px, given.width_px)
        if request.window_px:
            self.trained.latent_extent(request.window_px, request.window_px)
        return request

    def _check_label(self, request: Request) -> None:
        if self.classifier is None:
            raise UserError(
                "classifier_scale needs a classifier: Pipeline.load(name, "
                "classifier=...), --classifier"
            )
        classes = self.classifier[0].out_channels
        if not 0 <= request.label < classes:
            raise UserError(f"label is {request.label}; valid: 0 .. {classes - 1}")

    def canvas(self, request: Request) -> Canvas:
        """The request's pixels and extent."""
        return request_lib.canvas(request, self.trained.task, self.trained.settings)

    def spec(
        self, request: Request, given: Canvas, *, changing: bool = False
    ) -> SamplingSpec:
        """The program of a resolved request.

        changing: guidance may change midway, so that it is there also at scale 1.
        """
        auto = request.autoguidance != 1
        guided = (changing or request.guidance != 1) and not auto
        gradient_guidance = () if request.target is None else (request.target_loss,)
        return SamplingSpec(
            request.sampler,
            request.steps,
            request.spacing,
            self.trained.latent_extent(given.height_px, given.width_px),
            guided and bool(self.trained.model.conditioner.routes),
            request.window_px // self.trained.model.codec.factor,
            request.regional if request.regions else "",
            auto,
            gradient_guidance + (("class",) if request.classifier_scale else ()),
        )

    def inputs(
        self, wanted: Sequence[Request], given: Sequence[Canvas]
    ) -> SamplingInputs:
        """One row a request: requests that differ in seeds and conditions only.

        One request makes one row, which `spread` repeats.
        """
        first, trained = wanted[0], self.trained
        guide = None
        if first.autoguidance != 1:
            cond, _ = self.conditions(wanted, given, trained=self.guide)
            guide = (self.guide.params, cond)
        total = trained.model.process.num_timesteps
        low, high = first.interval or (float("-inf"), float("inf"))
        inputs = SamplingInputs(
            *self.conditions(wanted, given),
            guidance=first.guidance if guide is None else first.autoguidance,
            eta=first.eta,
            start=0,
            rescale=first.rescale,
            interval=(total * low, total * high),
            guide=guide,
            gradient_guidance=self._gradient_guidance(first),
        )
        return self._with_image(inputs, first, given[0])

    def _gradient_guidance(self, request: Request) -> dict:
        """What the gradient guidance of `spec` needs."""
        gradient_guidance = {}
        if request.target is not None:
            pixels = request_lib.read_pixels(request.target, "target")
            pull = {
                "scale": request.target_scale,
                "target": jnp.asarray(image.to_float(pixels))[None],
                "first_stage": self.trained.frozen["first_stage"],
            }
            if request.target_loss == "lpips":
                pull["lpips"] = self.lpips
            gradient_guidance[request.target_loss] = pull
        if request.classifier_scale:
            gradient_guidance["class"] = {
                "scale": request.classifier_scale,
                "label": request.label,
                "params": self.classifier[1],
            }
        return gradient_guidance

    @property
    def lpips(self) -> dict:
        """The variables of LPIPS, read when they are first needed."""
        if isinstance(self._lpips, str):
            self._lpips = jax.device_put(lpips_weights.load_lpips(self._lpips))
        return self._lpips

    def _with_image(
        self, inputs: SamplingInputs, request: Request, given: Canvas
    ) -> SamplingInputs:
        """The known latents of image to image and of blending."""
        own = self.trained.task.own_image
        if given.image is None or own or request.source is not None:
            return inputs
        z0 = self.latents(given)
        start = request.steps - max(1, round(request.strength * request.steps))
        if given.mask is None:
            return inputs._replace(start=start, z0=z0)
        # a latent position is known if no pixel of its cell is to be painted
        cell = self.trained.model.codec.factor
        h, w = z0.shape[1:3]
        paint = given.mask.reshape(h, cell, w, cell).max(axis=(1, 3))
        return inputs._replace(start=start, z0=z0, keep=1 - paint[None, :, :, None])

    def latents(self, given: Canvas) -> Array:
        """z0 "1 h w c" of the request's image."""
        first_stage = self.trained.frozen["first_stage"]
        moments = self.trained.moments(first_stage, jnp.asarray(given.image)[None])
        return self.trained.model.codec.mode(moments)

    def conditions(
        self,
        wanted: Sequence[Request],
        given: Sequence[Canvas],
        *,
        trained: TrainedModel | None = None,
    ) -> tuple[Cond, Cond]:
        """(condition, null condition), a row a request; negative replaces null."""
        trained = trained or self.trained
        if wanted[0].regions:
            return self._regional(wanted[0], given[0], trained)
        negatives = [
            dataclasses.replace(r, prompt=r.negative) if r.negative else r
            for r in wanted
        ]
        keep = jnp.zeros(len(wanted), bool)
        drop = jnp.asarray([not r.negative for r in wanted])
        return (
            self._condition(trained, wanted, given, keep),
            self._condition(trained, negatives, given, drop),
        )

    def _condition(self, trained, wanted, given, drop) -> Cond:
        rows = [
            trained.task.row(request, canvas, trained.settings)
            for request, canvas in zip(wanted, given, strict=True)
        ]
        batch = {key: jnp.stack([row[key] for row in rows]) for key in rows[0]}
        return trained.condition(trained.params, trained.frozen, batch, drop)

    def _regional(
        self, request: Request, given: Canvas, trained: TrainedModel
    ) -> tuple[Cond, Cond]:
        """`conditions` of one request with a text for each region, the prompt's first.

        Where a position lies in several regions it attends to all of their texts. What
        the heaviest region of a position leaves is the prompt's.
        """
        plain = dataclasses.replace(request, regions=None)
        texts = [request.prompt, *(prompt for prompt, *_ in request.regions)]
        parts = [
            self.conditions(
                [dataclasses.replace(plain, prompt=text)], [given], trained=trained
            )
            for text in texts
        ]
        cell = trained.model.codec.factor
        maps = request_lib.region_maps(request, given)
        h, w = given.height_px // cell, given.width_px // cell
        # a position belongs where most of its pixels do
        maps = maps.reshape(h, cell, w, cell, -1).mean(axis=(1, 3)) >= 0.5
        regions = jnp.asarray(weighted(maps, request_lib.region_weights(request)))[None]

        def join(conds: Sequence[Cond]) -> Cond:
            contexts = jnp.concatenate([cond.context for cond in conds], axis=1)
            return conds[0].replace(context=contexts, regions=regions)

        return tuple(join(conds) for conds in zip(*parts, strict=True))


def weighted(maps: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """bool "h w r" (the prompt's first) -> the shares of the texts, f32 "h w r"."""
    shares = maps.astype(np.float32)
    shares[:, :, 1:] *= weights
    left = 1 - shares[:, :, 1:].max(axis=-1)
    inside = maps[:, :, 1:].any(axis=-1) & ~maps[:, :, 0]
    shares[:, :, 0] = np.where(inside, left, shares[:, :, 0])
    return shares


def spread(inputs: SamplingInputs, rows: int) -> SamplingInputs:
    """A course of one row, its conditions repeated for `rows` seeds."""

    def repeat(tree):
        return jax.tree.map(lambda x: jnp.repeat(x, rows, axis=0), tree)

    guide = inputs.guide and (inputs.guide[0], repeat(inputs.guide[1]))
    cond, null = repeat(inputs.cond), repeat(inputs.null)
    return inputs._replace(cond=cond, null=null, guide=guide)
