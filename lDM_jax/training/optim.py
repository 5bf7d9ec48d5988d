"""The optax chain of a config: clipping, Adam, AdamW or Muon, learning-rate schedule.

Schedules, after a linear warm-up of w steps, with n the updates done and N all of them:

    constant      r
    cosine        r (1 + cos(pi (n - w) / (N - w))) / 2
    linear        r (N - n) / (N - w)
    inverse_sqrt  r / sqrt(max(n / n_ref, 1)), n_ref = decay_from_steps: the decay of
                  Karras et al. 2023 (arXiv 2312.02696), which needs no end
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from lDM_jax.core.errors import UserError

OPTIMIZERS = ("adam", "adamw", "muon")
SCHEDULES = ("constant", "cosine", "linear", "inverse_sqrt")
DECAY_MASKS = ("all", "matrices")


def make_schedule(
    *,
    learning_rate: float,
    schedule: str,
    warmup_steps: int,
    num_steps: int | None,
    decay_from_steps: int = 0,
) -> optax.Schedule:
    """Linear warm-up from 0, then one of the module's formulas."""
    if schedule not in SCHEDULES:
        raise UserError(f"schedule {schedule!r}; valid: {', '.join(SCHEDULES)}")
    if schedule == "constant":
        rest = optax.constant_schedule(learning_rate)
    elif schedule == "inverse_sqrt":
        if decay_from_steps < 1:
            raise UserError(
                f"an inverse_sqrt schedule needs decay_from_steps ({decay_from_steps}) "
                "above 0: the step from which the rate falls"
            )

        def rest(n):  # join_schedules counts from the end of the warm-up
            share = (n + warmup_steps) / decay_from_steps
            return learning_rate / jnp.sqrt(jnp.maximum(share, 1.0))

    elif num_steps is None or num_steps <= warmup_steps:
        raise UserError(
            f"a {schedule} schedule needs num_steps ({num_steps}) above "
            f"warmup_steps ({warmup_steps})"
        )
    elif schedule == "cosine":
        rest = optax.cosine_decay_schedule(learning_rate, num_steps - warmup_steps)
    else:
        rest = optax.linear_schedule(learning_rate, 0.0, num_steps - warmup_steps)
    if not warmup_steps:
        return rest
    warmup = optax.linear_schedule(0.0, learning_rate, warmup_steps)
    return optax.join_schedules([warmup, rest], [warmup_steps])


def make_optimizer(
    *,
    name: str = "adamw",
    learning_rate: float,
    schedule: str = "constant",
    warmup_steps: int = 0,
    decay_from_steps: int = 0,
    num_steps: int | None = None,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    clip_norm: float | None = None,
    decay_mask: str = "all",
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """(transformation, schedule). UserError for unknown names and impossible values.

    decay_mask: AdamW decays "all" parameters (the original) or the "matrices" only:
    leaves of two and more axes, so neither biases nor norms. "muon" (Jordan et al.
    2024) orthogonalizes the momentum b1 of matrices and convolution kernels, scaled to
    Adam's size of update (0.2 sqrt(longer side), arXiv 2502.16982), so that rates and
    decay mean what they mean for AdamW, which moves all other arrays.
    """
    if name not in OPTIMIZERS:
        raise UserError(f"optimizer {name!r}; valid: {', '.join(OPTIMIZERS)}")
    if decay_mask not in DECAY_MASKS:
        raise UserError(f"decay_mask {decay_mask!r}; valid: {', '.join(DECAY_MASKS)}")
    for what, value, valid, holds in (
        ("learning_rate", learning_rate, "above 0", learning_rate > 0),
        ("warmup_steps", warmup_steps, "at least 0", warmup_steps >= 0),
        ("b1", b1, "in [0, 1)", 0 <= b1 < 1),
        ("b2", b2, "in [0, 1)", 0 <= b2 < 1),
        ("eps", eps, "above 0", eps > 0),
        ("weight_decay", weight_decay, "at least 0", weight_decay >= 0),
        ("clip_norm", clip_norm, "above 0", clip_norm is None or clip_norm > 0),
    ):
        if not holds:
            raise UserError(f"optimizer {what} = {value}; it must be {valid}")
    if name == "adam" and weight_decay:
        raise UserError(
            f"weight_decay = {weight_decay}, but adam has none; valid: 0, or adamw"
        )
    rate = make_schedule(
        learning_rate=learning_rate,
        schedule=schedule,
        warmup_steps=warmup_steps,
        num_steps=num_steps,
        decay_from_steps=decay_from_steps,
    )
    parts = [] if clip_norm is None else [optax.clip_by_global_norm(clip_norm)]
    adam = optax.scale_by_adam(b1=b1, b2=b2, eps=eps)
    parts.append(by_kind(adam, orthogonal(b1)) if name == "muon" else adam)
    if name != "adam":
        mask = None if decay_mask == "all" else matrices
        parts.append(optax.add_decayed_weights(weight_decay, mask=mask))
    parts.append(optax.scale_by_learning_rate(rate))
    return optax.chain(*parts), rate


def matrices(params: Any) -> Any:
    """True for leaves with two and more axes."""
    return jax.tree.map(lambda leaf: leaf.ndim >= 2, params)


def by_kind(adam: Any, muon: Any) -> optax.GradientTransformation:
    """Muon for hidden matrices and kernels, Adam for all other arrays."""

    def label(path, leaf) -> str:
        kernel = jax.tree_util.keystr(path[-1:], simple=True) == "kernel"
        return "muon" if leaf.ndim >= 2 and kernel else "adam"

    return optax.partition(
        {"adam": adam, "muon": muon}, lambda p: jax.tree.map_with_path(label, p)
    )


def orthogonal(b1: float) -> optax.GradientTransformation:
    """Nesterov momentum, orthogonalized as a matrix (rest, last axis) by
    Newton-Schulz (optax's), times 0.2 sqrt(longer side)."""
    step = contrib.scale_by_muon(
        beta=b1, weight_dimension_numbers=lambda params: jax.tree.map(as_matrix, params)
    )

    def scale(update: Any) -> Any:
        rows = math.prod(update.shape[:-1])
        return 0.2 * math.sqrt(max(rows, update.shape[-1])) * update

    return optax.chain(step, optax.stateless(lambda u, _: jax.tree.map(scale, u)))


def as_matrix(leaf: Any) -> contrib.MuonDimensionNumbers:
    """A kernel "... in out" as the matrix (... in) x out."""
    axes = tuple(range(leaf.ndim))
    return contrib.MuonDimensionNumbers(axes[:-1], axes[-1:])
