"""The diffusion process: schedules, signal and noise scales, targets, weights, grids.

Owns everything that is a formula of the pair (alpha_t, sigma_t) in

    z_t = alpha_t z0 + sigma_t eps,        eps ~ N(0, I)

and nothing that evaluates a network. Betas appear only where a schedule is made. Two
kinds share one face:

    discrete        t integer in 0 .. T-1, alpha_t^2 + sigma_t^2 = 1
    rectified flow  t real in [0, T], alpha_t = 1 - t / T, sigma_t = t / T

`t` is everywhere what the network is told; T = num_timesteps. The four predictions and
the clean data and noise they stand for:

    eps       the noise                     z0 = (z_t - sigma eps) / alpha
    z0        the clean latents             eps = (z_t - alpha z0) / sigma
    v         alpha eps - sigma z0          z0 = alpha z_t - sigma v
    velocity  eps - z0 = dz_t / d(t / T)    z0 = z_t - sigma velocity

(v: arXiv 2202.00512, discrete only; velocity: arXiv 2209.03003, the flow's.) Tables are
float64 numpy; they become f32 in `Process.scales`, where they meet jax arrays. Reading
order: make_betas, Process, then `grid`, which samplers index.
"""

import dataclasses
import inspect

import jax
import jax.numpy as jnp
import numpy as np

from lDM_jax.arrays import Array, Float, Int, Key, UserError, typecheck

SCHEDULES = ("linear", "cosine", "sqrt_linear", "sqrt")
PREDICTIONS = ("eps", "v", "z0")
TIME_DISTRIBUTIONS = ("uniform", "logit_normal")
SPACINGS = ("leading", "trailing", "linspace", "quadratic", "karras")
LOSS_WEIGHTS = ("uniform", "min_snr")

KARRAS_RHO = 7.0  # arXiv 2206.00364, eq. 5
KARRAS_MAX = 80.0  # the ramp's largest sigma / alpha where the process has infinity

Times = Int[Array, " b"] | Float[Array, " b"]
Scale = int | float | Float[Array, ""] | Float[Array, " b"]


def _choose(name: str, value: str, valid: tuple[str, ...]) -> None:
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
    _choose("schedule", schedule, SCHEDULES)
    if schedule == "linear":
        return np.linspace(linear_start**0.5, linear_end**0.5, num_timesteps) ** 2
    if schedule == "sqrt_linear":
        return np.linspace(linear_start, linear_end, num_timesteps)
    if schedule == "sqrt":
        return np.linspace(linear_start, linear_end, num_timesteps) ** 0.5
    u = np.arange(num_timesteps + 1) / num_timesteps + cosine_s
    signal = np.cos(u / (1 + cosine_s) * np.pi / 2) ** 2
    return np.clip(1 - signal[1:] / signal[:-1], 0, 0.999)


def _end_at_zero_snr(alphas: np.ndarray) -> np.ndarray:
    """Shift and stretch alpha_t so that the last is 0, the first unchanged.

    arXiv 2305.08891, algorithm 1.
    """
    return (alphas - alphas[-1]) * alphas[0] / (alphas[0] - alphas[-1])


@dataclasses.dataclass(frozen=True, eq=False)
class Grid:
    """`steps + 1` times from the noisiest to clean, with their scales; float64 numpy.

    times "steps+1"; the last is never shown to a network. Strictly decreasing except
    that a last time 0 may stand for clean data after index 0.
    """

    times: np.ndarray
    alphas: np.ndarray
    sigmas: np.ndarray

    @property
    def steps(self) -> int:
        """How many moves the grid describes."""
        return len(self.times) - 1


@dataclasses.dataclass(frozen=True, eq=False)
class Process:
    """z_t = alpha_t z0 + sigma_t eps, and what a network predicts of it.

    Made by `discrete`, `rectified_flow` or, from a config section, `make_process`.
    alphas, sigmas: float64 "T", None for the rectified flow.
    """

    num_timesteps: int
    prediction: str
    alphas: np.ndarray | None = None
    sigmas: np.ndarray | None = None
    time_distribution: str = "uniform"

    @classmethod
    def discrete(
        cls,
        num_timesteps: int = 1000,
        schedule: str = "linear",
        *,
        linear_start: float = 0.0015,
        linear_end: float = 0.0195,
        cosine_s: float = 8e-3,
        prediction: str = "eps",
        zero_terminal_snr: bool = False,
    ) -> "Process":
        """The paper's process: alpha_t^2 = prod_{s <= t} (1 - beta_s), t = 0 .. T-1.

        With `zero_terminal_snr` the last time is pure noise, where predicting eps says
        nothing about z0: it needs prediction "v" or "z0".
        """
        _choose("prediction", prediction, PREDICTIONS)
        if zero_terminal_snr and prediction == "eps":
            raise UserError(
                'zero_terminal_snr with prediction "eps" leaves z0 undefined at the '
                'last time; valid: prediction "v" or "z0"'
            )
        betas = make_betas(
            num_timesteps,
            schedule,
            linear_start=linear_start,
            linear_end=linear_end,
            cosine_s=cosine_s,
        )
        alphas = np.sqrt(np.cumprod(1 - betas))
        if zero_terminal_snr:
            alphas = _end_at_zero_snr(alphas)
        return cls(num_timesteps, prediction, alphas, np.sqrt(1 - alphas**2))

    @classmethod
    def rectified_flow(
        cls, num_timesteps: int = 1000, time_distribution: str = "uniform"
    ) -> "Process":
        """Straight lines: alpha = 1 - t / T, sigma = t / T, prediction "velocity".

        time_distribution "logit_normal" trains at t / T = sigmoid(N(0, 1)), which the
        middle of the line sees most (arXiv 2403.03206, section 3.1).
        """
        _choose("time_distribution", time_distribution, TIME_DISTRIBUTIONS)
        return cls(num_timesteps, "velocity", time_distribution=time_distribution)

    @property
    def continuous(self) -> bool:
        """Whether times are real numbers (the rectified flow)."""
        return self.alphas is None

    @typecheck
    def sample_times(self, key: Key[Array, ""], batch: int) -> Times:
        """Training times "b": i32 uniform on 0 .. T-1, or f32 in (0, T]."""
        if not self.continuous:
            return jax.random.randint(key, (batch,), 0, self.num_timesteps, jnp.int32)
        if self.time_distribution == "logit_normal":
            u = jax.nn.sigmoid(jax.random.normal(key, (batch,)))
        else:
            u = 1 - jax.random.uniform(key, (batch,))
        return self.num_timesteps * u

    def scales(self, t: Times, dtype: jnp.dtype = jnp.float32) -> tuple[Array, Array]:
        """(alpha_t, sigma_t), each "b".

        Of discrete times i32 0 .. T-1; real ones between them, as Karras' spacing has,
        are interpolated in log(sigma / alpha) as the grid's are.
        """
        if self.continuous:
            sigma = t.astype(dtype) / self.num_timesteps
            return 1 - sigma, sigma
        if jnp.issubdtype(t.dtype, jnp.floating):
            finite = self.alphas > 0
            table = np.log(self.sigmas[finite] / self.alphas[finite])
            ratio = jnp.exp(jnp.interp(t, np.flatnonzero(finite), table))
            pure = t > np.flatnonzero(finite)[-1]
            alpha = jnp.where(pure, 0, 1 / jnp.sqrt(1 + ratio**2)).astype(dtype)
            return alpha, jnp.where(pure, 1, ratio * alpha).astype(dtype)
        return jnp.asarray(self.alphas, dtype)[t], jnp.asarray(self.sigmas, dtype)[t]

    @typecheck
    def q_sample(
        self, z0: Float[Array, "b *rest"], eps: Float[Array, "b *rest"], t: Times
    ) -> Float[Array, "b *rest"]:
        """z_t = alpha_t z0 + sigma_t eps (eq. 4 of arXiv 2006.11239)."""
        alpha, sigma = self._scales_like(z0, t)
        return alpha * z0 + sigma * eps

    @typecheck
    def target(
        self, z0: Float[Array, "b *rest"], eps: Float[Array, "b *rest"], t: Times
    ) -> Float[Array, "b *rest"]:
        """What the network should say at z_t; the module docstring has the table."""
        if self.prediction == "eps":
            return eps
        if self.prediction == "z0":
            return z0
        if self.prediction == "velocity":
            return eps - z0
        alpha, sigma = self._scales_like(z0, t)
        return alpha * eps - sigma * z0

    @typecheck
    def to_z0_eps(
        self,
        prediction: Float[Array, "b *rest"],
        z_t: Float[Array, "b *rest"],
        alpha: Scale,
        sigma: Scale,
    ) -> tuple[Float[Array, "b *rest"], Float[Array, "b *rest"]]:
        """(z0_hat, eps_hat) of a prediction at z_t; alpha and sigma scalar or "b".

        A pair always satisfies z_t = alpha z0_hat + sigma eps_hat. Undefined (inf) for
        "eps" at alpha = 0 and for "z0" at sigma = 0.
        """
        alpha, sigma = _spread(alpha, z_t), _spread(sigma, z_t)
        if self.prediction == "eps":
            return (z_t - sigma * prediction) / alpha, prediction
        if self.prediction == "z0":
            return prediction, (z_t - alpha * prediction) / sigma
        if self.prediction == "velocity":
            return z_t - sigma * prediction, z_t + alpha * prediction
        return alpha * z_t - sigma * prediction, sigma * z_t + alpha * prediction

    @typecheck
    def eps_shift(self, t: Times) -> Float[Array, " b"]:
        """How much the prediction changes when eps_hat grows by one at fixed z_t: "b".

        Then z0_hat falls by sigma / alpha. Infinite at alpha = 0, except for "eps".
        """
        alpha, sigma = self.scales(t)
        if self.prediction == "eps":
            return jnp.ones_like(alpha)
        if self.prediction == "z0":
            return -sigma / alpha
        if self.prediction == "velocity":
            return (alpha + sigma) / alpha
        return (alpha**2 + sigma**2) / alpha

    @typecheck
    def snr(self, t: Times) -> Float[Array, " b"]:
        """alpha_t^2 / sigma_t^2 "b"; infinite at clean data."""
        alpha, sigma = self.scales(t)
        return alpha**2 / sigma**2

    @typecheck
    def loss_weight(
        self, t: Times, kind: str = "uniform", gamma: int | float = 5.0
    ) -> Float[Array, " b"]:
        """Weight "b" of the squared error of the prediction.

        min_snr is min(SNR, gamma) on the squared error of z0 (arXiv 2303.09556). With
        z0's error k times the prediction's, the weight is k^2 min(SNR, gamma): k is
        sigma / alpha for eps, sigma for v and velocity, 1 for z0.
        """
        _choose("loss weight", kind, LOSS_WEIGHTS)
        if kind == "uniform":
            return jnp.ones(t.shape, jnp.float32)
        alpha, sigma = self.scales(t)
        if self.prediction == "z0":
            return jnp.minimum((alpha / sigma) ** 2, gamma)
        if self.prediction == "eps":
            return jnp.minimum(1, gamma * (sigma / alpha) ** 2)
        return jnp.minimum(alpha**2, gamma * sigma**2)

    def grid(self, steps: int, spacing: str = "leading") -> Grid:
        """The `steps + 1` times of a sampling run, noisiest first.

        leading    the original's: floor(i T / steps) + 1, ending at index 0
        trailing   from T-1 down in equal strides, ending clean (arXiv 2305.08891)
        linspace   T-1 .. 0 evenly, then clean
        quadratic  (T-1) (i / steps)^2, made distinct, then clean
        karras     sigma / alpha to the power 1/7 evenly spaced, then clean

        Exactly `steps` moves, whatever `steps`; UserError outside 1 .. T. The rectified
        flow takes the same times unrounded, one later (its index 0 is already t = 1).
        """
        total = self.num_timesteps
        _choose("spacing", spacing, SPACINGS)
        if isinstance(steps, bool) or not isinstance(steps, (int, np.integer)):
            raise UserError(f"steps is {steps!r}; valid: an integer in 1 .. {total}")
        if not 1 <= steps <= total:
            raise UserError(f"steps is {steps}; valid: 1 .. {total}")
        if spacing == "karras":
            return self._karras(steps)
        if self.continuous:
            times = _indices(spacing, total, steps)[::-1] + 1
            sigmas = np.append(times, 0) / total
            return Grid(np.append(times, 0), 1 - sigmas, sigmas)
        index = _whole_indices(spacing, total, steps)[::-1]
        # QUIRK(ddim_plus_one): the original's DDIM grid is shifted by one and ends at
        # alphas_cumprod[0], not at clean data. With steps = T there is no room for the
        # shift (the original fails there): the full grid ends clean.
        plus_one = spacing == "leading" and steps < total
        last = (self.alphas[0], self.sigmas[0]) if plus_one else (1.0, 0.0)
        return Grid(
            np.append(index, 0),
            np.append(self.alphas[index], last[0]),
            np.append(self.sigmas[index], last[1]),
        )

    def _karras(self, steps: int) -> Grid:
        """arXiv 2206.00364, eq. 5, on the ratio sigma / alpha; times are not whole.

        Where the process ends in pure noise the first time is that end, and the ramp
        behind it starts from at most KARRAS_MAX.
        """
        if self.continuous:
            table_times = np.arange(1, self.num_timesteps + 1.0)
            sigmas = table_times / self.num_timesteps
            alphas = 1 - sigmas
        else:
            table_times = np.arange(self.num_timesteps + 0.0)
            alphas, sigmas = self.alphas, self.sigmas
        finite = alphas > 0
        table = np.log(sigmas[finite]) - np.log(alphas[finite])
        top = table[-1] if finite[-1] else min(table[-1], np.log(KARRAS_MAX))
        low, high = np.exp(table[0] / KARRAS_RHO), np.exp(top / KARRAS_RHO)
        ratios = np.linspace(high, low, steps) ** KARRAS_RHO
        if self.continuous:
            times = self.num_timesteps * ratios / (1 + ratios)
            alphas = 1 / (1 + ratios)
        else:
            times = np.interp(np.log(ratios), table, table_times[finite])
            alphas = 1 / np.sqrt(1 + ratios**2)
        sigmas = ratios * alphas
        if not finite[-1]:
            times[0], alphas[0], sigmas[0] = table_times[-1], 0.0, 1.0
        return Grid(np.append(times, 0), np.append(alphas, 1), np.append(sigmas, 0))

    def _scales_like(self, z: Array, t: Times) -> tuple[Array, Array]:
        alpha, sigma = self.scales(t, jnp.promote_types(z.dtype, jnp.float32))
        return _spread(alpha, z), _spread(sigma, z)


def _spread(scale: float | Array, z: Array) -> float | Array:
    """A scalar or "b" scale, shaped to multiply z "b ..."."""
    if jnp.ndim(scale) == 0:
        return scale
    return scale.reshape(scale.shape + (1,) * (z.ndim - 1))


def _indices(spacing: str, total: int, steps: int) -> np.ndarray:
    """Real indices in [0, total-1], ascending, before rounding."""
    i = np.arange(steps)
    if spacing == "leading":
        return i * total / steps
    if spacing == "trailing":
        return (i + 1) * total / steps - 1
    if spacing == "quadratic":
        return (total - 1) * ((i + 1) / steps) ** 2
    return i * (total - 1) / (steps - 1) if steps > 1 else np.array([total - 1.0])


def _whole_indices(spacing: str, total: int, steps: int) -> np.ndarray:
    """`_indices` as distinct integers, ascending."""
    index = _indices(spacing, total, steps)
    if spacing == "leading":
        return np.floor(index).astype(np.int64) + (steps < total)
    if spacing == "trailing":
        return np.round(index + 1).astype(np.int64) - 1
    i = np.arange(steps)
    return (np.maximum.accumulate(np.round(index) - i) + i).astype(np.int64)


def make_process(kind: str = "discrete", **section) -> Process:
    """The Process of a config section: `kind` and the keywords of its constructor.

    kind: "discrete" or "rectified_flow". UserError for unknown kinds, keys and values.
    """
    _choose("process kind", kind, ("discrete", "rectified_flow"))
    constructor = getattr(Process, kind)
    valid = tuple(inspect.signature(constructor).parameters)
    for name in section:
        if name not in valid:
            raise UserError(
                f"process section of kind {kind!r} has {name!r}; "
                f"valid: {', '.join(valid)}"
            )
    return constructor(**section)
