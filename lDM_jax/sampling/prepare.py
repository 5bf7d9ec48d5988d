"""From a request to what a trajectory runs on, once: `prepare`.

Owns the meeting of requests and models: defaults and checks, conditions and their
nulls, regions, known latents, gradient guidance. A request is resolved once, its files
are decoded once, and one that is made from another encodes only what differs. Runs no
trajectory. Reading order: Models, Prepared, `resolve`, `prepare`, `sampling_spec` (what
is compiled for a request), `sampling_inputs` (what it runs on), `conditions`.
"""

import dataclasses
from collections.abc import Collection, Sequence
from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np

from lDM_jax.core import image
from lDM_jax.core.arrays import Array, Cond
from lDM_jax.core.errors import UserError
from lDM_jax.diffusion import samplers
from lDM_jax.sampling import request as request_lib
from lDM_jax.sampling.programs import SamplingInputs, SamplingSpec
from lDM_jax.sampling.request import Request, RequestPixels
from lDM_jax.sampling.trained_model import TrainedModel
from lDM_jax.weights import lpips as lpips_weights

# The fields that the conditioner reads; beside them the image of tasks that own it.
CONDITION_FIELDS = {"prompt", "negative", "label", "layout", "segmentation", "regions"}


@dataclasses.dataclass(frozen=True)
class Models:
    """What a request may ask of: the model, and what guides it.

    guide: a worse model for autoguidance, of the same task and latents; classifier:
    (network, parameters) for classifier guidance; lpips: the variables of LPIPS or the
    file of VGG16.
    """

    trained: TrainedModel
    guide: TrainedModel | None = None
    classifier: tuple | None = None
    lpips: dict | str = ""

    def __post_init__(self):
        own, other = (
            (model.task.name, model.latent_shape)
            for model in (self.trained, self.guide or self.trained)
        )
        if own != other:
            raise UserError(
                f"the guide is a {other[0]} model with latents {other[1]}, the model a "
                f"{own[0]} one with {own[1]}: autoguidance needs two of a kind"
            )

    @cached_property
    def lpips_variables(self) -> dict:
        """The variables of LPIPS, read when they are first needed."""
        if isinstance(self.lpips, str):
            return jax.device_put(lpips_weights.load_lpips(self.lpips))
        return self.lpips


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A resolved request and all that its trajectories need.

    request: with the names of its files, as a record remembers it; preset: the same
    with their pixels; inputs: of one row, which `spread` repeats.
    """

    request: Request
    preset: Request
    pixels: RequestPixels
    spec: SamplingSpec
    inputs: SamplingInputs


def resolve(models: Models, request: Request) -> Request:
    """The request with the model's defaults filled in, checked; reads no file.

    Raises UserError for an empty prompt, impossible seeds, steps or sampler.
    """
    trained = models.trained
    defaults = trained.config.sample
    names, guidance = trained.settings.class_names, request.guidance
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
        raise UserError(f"seeds {bad or '(none)'}: give integers from 0 to 4294967295")
    own_eta = samplers.check(request.sampler).eta
    if request.eta and own_eta is not None:
        raise UserError(
            f"eta is {request.eta}, but the sampler {request.sampler!r} has none; "
            "leave it at 0 or take the sampler 'ddim'"
        )
    trained.model.process.grid(request.steps, request.spacing)
    request_lib.check(request, trained.task, trained.settings)
    if request.window_px:
        trained.latent_extent(request.window_px, request.window_px)
    _check_companions(models, request)
    return request


def _check_companions(models: Models, request: Request) -> None:
    """UserError for guidance by a model that is not there, or does not know it."""
    if request.autoguidance != 1 and models.guide is None:
        raise UserError(
            "autoguidance needs a guide: Pipeline.load(name, guide=...), --guide"
        )
    if not request.classifier_scale:
        return
    if models.classifier is None:
        raise UserError(
            "classifier_scale needs a classifier: Pipeline.load(name, "
            "classifier=...), --classifier"
        )
    classes = models.classifier[0].out_channels
    if not 0 <= request.label < classes:
        raise UserError(f"label is {request.label}; valid: 0 .. {classes - 1}")


def prepare(
    models: Models,
    request: Request,
    *,
    changing: bool = False,
    old: Prepared | None = None,
    read_anew: Collection[str] = (),
) -> Prepared:
    """The request, resolved, with its pixels, its program and what that runs on.

    changing: guidance may change midway, so that it is there also at scale 1. old: a
    request that this one was made from; what both have in common is taken from there.
    A file of the same name is the same, but for the fields read_anew. `source` is not
    looked at: see `inversion`.
    """
    request, kept = resolve(models, request), {}
    if old is not None:
        common = request_lib.FILE_FIELDS - set(read_anew)
        common -= request_lib.changed_fields(old.request, request)
        kept = {name: getattr(old.preset, name) for name in common}
    preset = dataclasses.replace(request, **kept).embedded()
    pixels = request_lib.canvas(preset, models.trained.task, models.trained.settings)
    spec = sampling_spec(models, preset, pixels, changing=changing)
    inputs = sampling_inputs(models, [preset], [pixels], old=old)
    return Prepared(request, preset, pixels, spec, inputs)


def sampling_spec(
    models: Models, request: Request, pixels: RequestPixels, *, changing: bool = False
) -> SamplingSpec:
    """The program of a resolved request; changing: as in `prepare`."""
    auto = request.autoguidance != 1
    guided = (changing or request.guidance != 1) and not auto
    gradient_guidance = () if request.target is None else (request.target_loss,)
    return SamplingSpec(
        request.sampler,
        request.steps,
        request.spacing,
        models.trained.latent_extent(pixels.height_px, pixels.width_px),
        guided and bool(models.trained.model.conditioner.routes),
        request.window_px // models.trained.model.codec.factor,
        request.regional if request.regions else "",
        auto,
        gradient_guidance + (("class",) if request.classifier_scale else ()),
    )


def sampling_inputs(
    models: Models,
    requests: Sequence[Request],
    pixels: Sequence[RequestPixels],
    *,
    old: Prepared | None = None,
) -> SamplingInputs:
    """One row a request: presets that differ in seeds and conditions only.

    old: what one request was made from; its encodings are taken where nothing changed.
    """
    first, trained = requests[0], models.trained
    changed = None if old is None else request_lib.changed_fields(old.preset, first)
    auto, total = first.autoguidance != 1, trained.model.process.num_timesteps
    told = CONDITION_FIELDS | ({"image", "mask"} if trained.task.own_image else set())
    if old is not None and old.spec.auto == auto and not changed & told:
        cond, null, guide = old.inputs.cond, old.inputs.null, old.inputs.guide
    else:
        cond, null = conditions(trained, requests, pixels)
        guide = None
        if auto:
            guide_cond, _ = conditions(models.guide, requests, pixels)
            guide = (models.guide.params, guide_cond)
    low, high = first.interval or (float("-inf"), float("inf"))
    inputs = SamplingInputs(
        cond,
        null,
        guidance=first.autoguidance if auto else first.guidance,
        eta=first.eta,
        start=0,
        rescale=first.rescale,
        interval=(total * low, total * high),
        guide=guide,
        gradient_guidance=_gradient_guidance(models, first),
    )
    if pixels[0].image is None or trained.task.own_image or first.source is not None:
        return inputs
    anew = old is None or "image" in changed
    z0 = latents(trained, pixels[0]) if anew else old.inputs.z0
    start = first.steps - max(1, round(first.strength * first.steps))
    cell = trained.model.codec.factor
    return inputs._replace(start=start, z0=z0, keep=known(pixels[0].mask, cell))


def _gradient_guidance(models: Models, request: Request) -> dict:
    """What the gradient guidance of the spec needs."""
    gradient_guidance = {}
    if request.target is not None:
        target = jnp.asarray(image.to_float(request.target))[None]
        own = dict(scale=request.target_scale, target=target)
        own["first_stage"] = models.trained.frozen["first_stage"]
        if request.target_loss == "lpips":
            own["lpips"] = models.lpips_variables
        gradient_guidance[request.target_loss] = own
    if request.classifier_scale:
        own = dict(scale=request.classifier_scale, label=request.label)
        gradient_guidance["class"] = {**own, "params": models.classifier[1]}
    return gradient_guidance


def known(mask: np.ndarray | None, cell: int) -> np.ndarray | None:
    """1 at the latent positions of whose cell no pixel is to be painted: "1 h w 1"."""
    if mask is None:
        return None
    height, width, _ = mask.shape
    cells = mask.reshape(height // cell, cell, width // cell, cell)
    return 1 - cells.max(axis=(1, 3))[None, :, :, None]


def latents(trained: TrainedModel, pixels: RequestPixels) -> Array:
    """z0 "1 h w c" of a request's image."""
    x = jnp.asarray(pixels.image)[None]
    moments = trained.moments(trained.frozen["first_stage"], x)
    return trained.model.codec.mode(moments)


def inversion(models: Models, prepared: Prepared) -> tuple:
    """(spec, z0, inputs) of `CompiledSamplers.invert` for a request with a source."""
    trained, pixels = models.trained, prepared.pixels
    request = dataclasses.replace(prepared.preset, guidance=1.0, regions=None)
    if trained.task.field == "prompt":
        # no words at all are the null condition
        words = request.source or request.prompt
        request = dataclasses.replace(request, prompt=words, negative="")
    cond, null = conditions(trained, [request], [pixels])
    spec = sampling_spec(models, request, pixels)
    spec = spec._replace(auto=False, gradient_guidance=())
    inputs = SamplingInputs(cond if request.source else null, null, 1.0, 0.0, 0)
    return spec, latents(trained, pixels), inputs


def conditions(
    trained: TrainedModel, requests: Sequence[Request], pixels: Sequence[RequestPixels]
) -> tuple[Cond, Cond]:
    """(condition, null condition), a row a request; negative replaces null."""
    if requests[0].regions:
        return _regional(trained, requests[0], pixels[0])
    negatives = [
        dataclasses.replace(r, prompt=r.negative) if r.negative else r for r in requests
    ]
    drop = jnp.asarray([not r.negative for r in requests])
    cond = _condition(trained, requests, pixels, jnp.zeros(len(requests), bool))
    return cond, _condition(trained, negatives, pixels, drop)


def _condition(trained: TrainedModel, requests, pixels, drop: Array) -> Cond:
    row, settings = trained.task.row, trained.settings
    pairs = zip(requests, pixels, strict=True)
    rows = [row(request, own, settings) for request, own in pairs]
    batch = {key: jnp.stack([row[key] for row in rows]) for key in rows[0]}
    return trained.condition(trained.params, trained.frozen, batch, drop)


def _regional(
    trained: TrainedModel, request: Request, pixels: RequestPixels
) -> tuple[Cond, Cond]:
    """`conditions` of one request with a text for each region, the prompt's first.

    Where a position lies in several regions it attends to all of their texts. What
    the heaviest region of a position leaves is the prompt's.
    """
    texts = [request.prompt, *(prompt for prompt, *_ in request.regions)]
    alone = [dataclasses.replace(request, prompt=t, regions=None) for t in texts]
    parts = [conditions(trained, [one], [pixels]) for one in alone]
    cell = trained.model.codec.factor
    maps = request_lib.region_maps(request, pixels)
    h, w = pixels.height_px // cell, pixels.width_px // cell
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
    """Inputs of one row, their conditions repeated for `rows` seeds."""

    def repeat(tree):
        return jax.tree.map(lambda x: jnp.repeat(x, rows, axis=0), tree)

    if rows == 1:
        return inputs
    guide = inputs.guide and (inputs.guide[0], repeat(inputs.guide[1]))
    cond, null = repeat(inputs.cond), repeat(inputs.null)
    return inputs._replace(cond=cond, null=null, guide=guide)
