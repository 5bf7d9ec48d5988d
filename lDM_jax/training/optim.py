"""The optax chain of a config: clipping, Adam or AdamW, learning-rate schedule."""

from typing import Any

import jax
import optax

from lDM_jax.arrays import UserError

OPTIMIZERS = ("adam", "adamw")
SCHEDULES = ("constant", "cosine", "linear")
DECAY_MASKS = ("all", "matrices")


def make_schedule(
    *, learning_rate: float, schedule: str, warmup_steps: int, num_steps: int | None
) -> optax.Schedule:
    """Linear warm-up from 0, then constant, or cosine / linear to 0 at `num_steps`."""
    if schedule not in SCHEDULES:
        raise UserError(f"schedule {schedule!r}; valid: {', '.join(SCHEDULES)}")
    if schedule == "constant":
        rest = optax.constant_schedule(learning_rate)
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
    leaves of two and more axes, so neither biases nor norms.
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
    )
    parts = [] if clip_norm is None else [optax.clip_by_global_norm(clip_norm)]
    parts.append(optax.scale_by_adam(b1=b1, b2=b2, eps=eps))
    if name == "adamw":
        mask = None if decay_mask == "all" else matrices
        parts.append(optax.add_decayed_weights(weight_decay, mask=mask))
    parts.append(optax.scale_by_learning_rate(rate))
    return optax.chain(*parts), rate


def matrices(params: Any) -> Any:
    """True for leaves with two and more axes."""
    return jax.tree.map(lambda leaf: leaf.ndim >= 2, params)
