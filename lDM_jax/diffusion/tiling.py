"""Encode and decode tile by tile: memory of one tile, pictures of any size.

    moments = encode_tiled(codec, params, image, tile_px=512, exact=True)
    image = decode_tiled(codec, params, z0, tile_px=512, exact=True)

All tiles have one shape (those at the border are shifted inwards), so one program runs
for all, and the host gathers their results in numpy. Convolutions reach `halo` latent
positions and no further: a tile's middle is what the whole picture would give. Two
things are not local.

* Group norms take statistics of the whole picture. Fast mode takes each tile's own
  and blends the tiles over their overlap. Exact mode sweeps over the tiles again and
  again, each sweep normalizing with the statistics gathered by the sweep before, until
  they no longer change. A norm's statistics depend on earlier norms alone, so every
  sweep settles at least one more: at most one sweep more than norms, each at the cost
  of a fast run.
* Attention sees its tile only, in both modes: without attention exact mode equals the
  untiled result, with attention it does not.
"""

from functools import partial
from itertools import pairwise, product
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lDM_jax.core.arrays import Array, Float, typecheck
from lDM_jax.core.errors import UserError
from lDM_jax.diffusion.codec import Codec
from lDM_jax.models.autoencoder import Autoencoder
from lDM_jax.models.layers import GroupNorm

# Of a group's deviation. Statistics of f32 activations are known to about 1e-6.
SETTLED = 1e-5

# Of each norm, by its path: (mean, variance), f32 "2 b groups".
Statistics = dict[str, Array]


class Span(NamedTuple):
    """A tile along one side, in latent positions.

    It begins at `start` and answers for `first` up to (not including) `last`.
    """

    start: int
    first: int
    last: int


class _Plan(NamedTuple):
    """How a picture is cut.

    method: "moments" or "decode". rows, cols: tiles of extent `tile`. overlap: of
    neighbors, at least. These are latent positions; source and result have `unit_in`
    and `unit_out` values a position along each side.
    """

    method: str
    rows: list[Span]
    cols: list[Span]
    tile: tuple[int, int]
    overlap: int
    exact: bool
    unit_in: int
    unit_out: int


@typecheck
def encode_tiled(
    codec: Codec,
    params: dict,
    image: Float[np.ndarray, "b H W 3"],
    *,
    tile_px: int,
    overlap_px: int | None = None,
    exact: bool = False,
) -> Float[np.ndarray, "b h w m"]:
    """Pixels -> moments, as `Codec.moments`, in tiles of tile_px x tile_px.

    Neighbors overlap by at least overlap_px; None takes a quarter of a tile, or the
    two halos that `exact` needs (less is quicker, and exact no longer). UserError for
    impossible sizes.
    """
    extent = codec.latent_shape(*image.shape[1:3])[:2]
    plan = _plan(codec, "moments", extent, tile_px, overlap_px, exact)
    return _settle(codec, params, image, plan)


@typecheck
def decode_tiled(
    codec: Codec,
    params: dict,
    z0: Float[np.ndarray, "b h w c"],
    *,
    tile_px: int,
    overlap_px: int | None = None,
    exact: bool = False,
) -> Float[np.ndarray, "b H W 3"]:
    """z0 -> pixels, as `Codec.decode`; sizes as `encode_tiled`, in pixels too."""
    extent = z0.shape[1:3]
    plan = _plan(codec, "decode", extent, tile_px, overlap_px, exact)
    return _settle(codec, params, z0, plan)


def halo(network: nn.Module, method: str) -> int:
    """Latent positions that convolutions of "moments" or "decode" reach at most."""
    if not isinstance(network, Autoencoder):
        return 0
    levels, blocks = len(network.width_mults), network.num_res_blocks
    middle = 4
    if method == "decode":  # from the pixels back to the latents
        reach = 1
        for level in range(levels):
            reach += 2 * (blocks + 1)
            if level < levels - 1:  # a 3x3 convolution after doubling
                reach = -(-(reach + 1) // 2)
        return reach + middle + 1
    reach = 1 + middle
    for level in reversed(range(levels)):
        if level < levels - 1:
            reach = 2 * reach + 1
        reach += 2 * blocks
    return -(-(reach + 1) // network.factor)


def _plan(
    codec: Codec,
    method: str,
    extent: tuple[int, int],
    tile_px: int,
    overlap_px: int | None,
    exact: bool,
) -> _Plan:
    f = codec.factor
    tile = tile_px // f
    if overlap_px is None:
        overlap = 2 * halo(codec.autoencoder, method) if exact else tile // 4
    else:
        overlap = -(-overlap_px // f)
    if overlap < 0 or tile_px % f or tile <= overlap:
        raise UserError(
            f"tiles of {tile_px} px with an overlap of {overlap * f} px: tile_px must "
            f"be a multiple of the first stage's factor {f} and larger than the "
            f"overlap, for example {2 * max(overlap, 1) * f}; the overlap at least 0"
        )
    h, w = (min(tile, side) for side in extent)
    rows, cols = spans(extent[0], h, overlap), spans(extent[1], w, overlap)
    units = (f, 1) if method == "moments" else (1, f)
    return _Plan(method, rows, cols, (h, w), overlap, exact, *units)


def spans(extent: int, tile: int, overlap: int) -> list[Span]:
    """Tiles evenly spread over 0 .. extent, overlapping by at least `overlap`.

    Between neighbors, each answers up to the middle of their overlap.
    """
    spare = extent - tile
    gaps = -(-spare // (tile - overlap)) if spare else 0
    starts = [index * spare // max(gaps, 1) for index in range(gaps + 1)]
    cuts = [(left + tile + right) // 2 for left, right in pairwise(starts)]
    edges = zip(starts, [0, *cuts], [*cuts, extent], strict=True)
    return [Span(*edge) for edge in edges]


def _own(span: Span, tile: int) -> np.ndarray:
    """1 where the tile answers, 0 elsewhere: f32 "tile"."""
    position = span.start + np.arange(tile)
    return ((position >= span.first) & (position < span.last)).astype(np.float32)


def _settle(codec: Codec, params, source: np.ndarray, plan: _Plan) -> np.ndarray:
    """One sweep, or in exact mode as many as it takes."""
    params = jax.device_put(params)
    known = _unknown(codec, params, source, plan)
    out, new = _sweep(codec, params, source, plan, known, known=False)
    if not plan.exact or len(plan.rows) * len(plan.cols) == 1:
        return out
    for _ in range(len(new)):
        known = new
        out, new = _sweep(codec, params, source, plan, known, known=True)
        if max(_change(known[name], new[name]) for name in new) < SETTLED:
            break
    return out


def _change(before: Array, after: Array) -> float:
    """Largest change of a norm's statistics, in deviations."""
    (mean, variance), (new_mean, new_variance) = before, after
    floor = np.maximum(new_variance, np.finfo(np.float32).tiny)
    shift = np.abs(new_mean - mean) / np.sqrt(floor)
    return float(max(shift.max(), (np.abs(new_variance - variance) / floor).max()))


def _unknown(codec, params, source, plan: _Plan) -> Statistics:
    """Zeros in the place of the statistics, found by tracing for shapes alone."""
    tile, rows, cols = _cut(source, plan, plan.rows[0], plan.cols[0])
    program = partial(_tile.__wrapped__, codec, plan.method)
    _, shapes = jax.eval_shape(program, params, tile, None, False, rows, cols)
    return {name: np.zeros(leaf.shape, leaf.dtype) for name, leaf in shapes.items()}


def _cut(source: np.ndarray, plan: _Plan, row: Span, col: Span):
    """(tile, rows, cols): a tile and what of it counts in the statistics."""
    h, w = plan.tile
    tile = source[_place(plan, row, col, plan.unit_in)]
    if plan.exact:
        return tile, _own(row, h), _own(col, w)
    return tile, np.ones(h, np.float32), np.ones(w, np.float32)


def _place(plan: _Plan, row: Span, col: Span, unit: int):
    """Index of a tile in an array "b H W k" of `unit` values a latent position."""
    top, left = row.start * unit, col.start * unit
    h, w = (side * unit for side in plan.tile)
    return np.s_[:, top : top + h, left : left + w]


def _sweep(codec, params, source, plan: _Plan, statistics, *, known: bool):
    """(result, statistics of the whole picture) of one walk over the tiles."""
    unit = plan.unit_out
    extent = plan.rows[-1].last * unit, plan.cols[-1].last * unit
    down, across = _shares(plan, 0), _shares(plan, 1)
    out, parts = None, []
    for (row, share_h), (col, share_w) in product(down, across):
        tile, rows, cols = _cut(source, plan, row, col)
        result, own = jax.device_get(
            _tile(codec, plan.method, params, tile, statistics, known, rows, cols)
        )
        parts.append((rows.sum() * cols.sum(), own))
        if out is None:
            out = np.zeros((len(source), *extent, result.shape[-1]), np.float32)
        share = share_h[:, None, None] * share_w[:, None]
        out[_place(plan, row, col, unit)] += result * share
    return out, _merge(parts)


def _shares(plan: _Plan, axis: int) -> list[tuple[Span, np.ndarray]]:
    """Tiles along a side with the weights of their results, which add up to one.

    Exact: of each position, the tile that answers for it. Otherwise ramps over the
    overlaps.
    """
    side, tile, unit = (plan.rows, plan.cols)[axis], plan.tile[axis], plan.unit_out
    if plan.exact or not plan.overlap:
        return [(span, np.repeat(_own(span, tile), unit)) for span in side]
    position = np.arange(tile * unit, dtype=np.float32) + 0.5
    ramp = np.minimum(position, position[::-1]).clip(max=plan.overlap * unit)
    total = np.zeros(side[-1].last * unit, np.float32)
    places = [slice(span.start * unit, (span.start + tile) * unit) for span in side]
    for place in places:
        total[place] += ramp
    return [
        (span, ramp / total[place]) for span, place in zip(side, places, strict=True)
    ]


def _merge(parts: list[tuple[float, Statistics]]) -> Statistics:
    """Mean and variance over all tiles from each tile's, weighted by positions."""
    weights = np.array([weight for weight, _ in parts], np.float64)
    weights = (weights / weights.sum())[:, None, None]
    merged = {}
    for name in parts[0][1]:
        tiles = np.stack([own[name] for _, own in parts]).astype(np.float64)
        means, variances = tiles[:, 0], tiles[:, 1]
        mean = (weights * means).sum(axis=0)
        variance = (weights * (variances + (means - mean) ** 2)).sum(axis=0)
        merged[name] = np.stack([mean, variance]).astype(np.float32)
    return merged


@partial(jax.jit, static_argnames=("codec", "method"))
def _tile(
    codec: Codec,
    method: str,
    params: dict,
    tile: Array,
    statistics: Statistics | None,
    known: Array,
    rows: Array,
    cols: Array,
) -> tuple[Array, Statistics]:
    """(result of a tile, its statistics over rows x cols), by the one program.

    The norms take `statistics` if `known`, else the tile's.
    """
    own: Statistics = {}

    def intercept(call, args, kwargs, context):
        norm = context.module
        if not isinstance(norm, GroupNorm) or context.method_name != "__call__":
            return call(*args, **kwargs)
        name = "/".join(norm.path)
        x = args[0].astype(jnp.float32)
        groups = min(norm.num_groups, x.shape[-1])
        used = own[name] = _moments(x, groups, rows, cols)
        if statistics is not None:
            used = jnp.where(known, statistics[name], used)
        mean, variance = _spread(used, x.shape[-1])
        affine = norm.variables["params"]["norm"]
        scale, bias = (affine[key].reshape(1, 1, 1, -1) for key in ("scale", "bias"))
        normed = (x - mean) * (jax.lax.rsqrt(variance + norm.eps) * scale) + bias
        return normed.astype(args[0].dtype)

    with nn.intercept_methods(intercept):
        result = getattr(codec, method)(params, tile)
    return result, own


def _moments(x: Array, groups: int, rows: Array, cols: Array) -> Array:
    """(mean, variance) "2 b groups" of x "b h w c" over what rows x cols mark.

    Sums over columns first, so that no f32 sum has a million terms.
    """
    b, h, w, c = x.shape
    rows = jnp.repeat(rows, h // len(rows))[None, :, None]
    cols = jnp.repeat(cols, w // len(cols))[None, None, :, None]
    count = rows.sum() * cols.sum()

    def average(values: Array) -> Array:
        each = ((values * cols).sum(axis=2) * rows).sum(axis=1) / count
        return each.reshape(b, groups, -1).mean(axis=-1)

    mean = average(x)
    variance = average((x - _spread(mean[None], c)[0]) ** 2)
    return jnp.stack([mean, variance])


def _spread(statistics: Array, channels: int) -> Array:
    """Of groups "k b groups" -> of their channels "k b 1 1 c"."""
    each = jnp.repeat(statistics, channels // statistics.shape[-1], axis=-1)
    return each[:, :, None, None, :]
