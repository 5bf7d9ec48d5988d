"""Numbers along time, in float64 numpy: betas of the schedules, indices of the grids.

Owns what is a formula of integers alone; `process` knows what the numbers mean.
"""

import numpy as np

from lDM_jax.core.errors import UserError

SCHEDULES = ("linear", "cosine", "sqrt_linear", "sqrt")
SPACINGS = ("leading", "trailing", "linspace", "quadratic", "karras")


def choose(name: str, value: str, valid: tuple[str, ...]) -> None:
    """UserError unless `value` is one of the valid names."""
    if value not in valid:
        raise UserError(f"{name} is {value!r}; valid: {', '.join(valid)}")


def make_betas(
    num_timesteps: int,
    schedule: str,
    *,
    linear_start: float = 0.0015,
    linear_end: float = 0.0195,
    cosine_s: float = 8e-3,
) -> np.ndarray:
    """The variances beta_t "T" (float64) of the original's `make_beta_schedule`.

    linear: linspace(sqrt(start), sqrt(end))^2 (others call it "scaled linear");
    sqrt_linear: linspace(start, end); sqrt: sqrt(linspace(start, end));
    cosine: arXiv 2102.09672, eq. 17, betas clipped to [0, 0.999].
    """
    choose("schedule", schedule, SCHEDULES)
    if schedule == "linear":
        return np.linspace(linear_start**0.5, linear_end**0.5, num_timesteps) ** 2
    if schedule == "sqrt_linear":
        return np.linspace(linear_start, linear_end, num_timesteps)
    if schedule == "sqrt":
        return np.linspace(linear_start, linear_end, num_timesteps) ** 0.5
    u = np.arange(num_timesteps + 1) / num_timesteps + cosine_s
    signal = np.cos(u / (1 + cosine_s) * np.pi / 2) ** 2
    return np.clip(1 - signal[1:] / signal[:-1], 0, 0.999)


def end_at_zero_snr(alphas: np.ndarray) -> np.ndarray:
    """Shift and stretch alpha_t so that the last is 0, the first unchanged.

    arXiv 2305.08891, algorithm 1.
    """
    return (alphas - alphas[-1]) * alphas[0] / (alphas[0] - alphas[-1])


def indices(spacing: str, total: int, steps: int) -> np.ndarray:
    """Real indices in [0, total-1], ascending, before rounding."""
    i = np.arange(steps)
    if spacing == "leading":
        return i * total / steps
    if spacing == "trailing":
        return (i + 1) * total / steps - 1
    if spacing == "quadratic":
        return (total - 1) * ((i + 1) / steps) ** 2
    return i * (total - 1) / (steps - 1) if steps > 1 else np.array([total - 1.0])


def whole_indices(spacing: str, total: int, steps: int) -> np.ndarray:
    """`indices` as distinct integers, ascending."""
    index = indices(spacing, total, steps)
    if spacing == "leading":
        return np.floor(index).astype(np.int64) + (steps < total)
    if spacing == "trailing":
        return np.round(index + 1).astype(np.int64) - 1
    i = np.arange(steps)
    return (np.maximum.accumulate(np.round(index) - i) + i).astype(np.int64)
