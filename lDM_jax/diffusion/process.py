"""The diffusion process: schedules, signal and noise scales, targets, weights, grids.

Owns everything that is a formula of the pair (alpha_t, sigma_t) in

    z_t = alpha_t z0 + sigma_t eps,        eps ~ N(0, I)

and nothing that evaluates a network. Betas appear only in `schedules`. Three kinds
share one face:

    discrete        t integer in 0 .. T-1, alpha_t^2 + sigma_t^2 = 1
    rectified flow  t real in [0, T], alpha_t = 1 - t / T, sigma_t = t / T
    edm             t real in [0, T], sigma_t / alpha_t = s / sigma_data with noise
                    levels s = s_min (s_max / s_min)^(t / T), alpha^2 + sigma^2 = 1

`t` is everywhere what the network is told; T = num_timesteps. The predictions and the
clean data and noise they stand for:

    eps       the noise                     z0 = (z_t - sigma eps) / alpha
    z0        the clean latents             eps = (z_t - alpha z0) / sigma
    v         alpha eps - sigma z0          z0 = alpha z_t - sigma v
    velocity  eps - z0 = dz_t / d(t / T)    z0 = z_t - sigma velocity
    F         sigma z0 - alpha eps = -v     z0 = alpha z_t + sigma F

(v: arXiv 2202.00512, discrete; velocity: arXiv 2209.03003, the flow's; F: the network
inside EDM's preconditioning, arXiv 2206.00364, table 1.) Tables are float64 numpy; they
become f32 in `Process.scales`, where they meet jax arrays. Reading order: `schedules`,
Process, then `grid`, which samplers index.
"""

import dataclasses
import inspect

import jax
import jax.numpy as jnp
import numpy as np

from lDM_jax.core.arrays import Array, Float, Int, Key, per_row, typecheck
from lDM_jax.core.errors import UserError
from lDM_jax.diffusion import schedules
from lDM_jax.diffusion.schedules import SPACINGS, choose, make_betas

KINDS = ("discrete", "rectified_flow", "edm")
PREDICTIONS = ("eps", "v", "z0")
TIME_DISTRIBUTIONS = ("logit_normal", "uniform")
LOSS_WEIGHTS = ("uniform", "min_snr")

MIN_SNR_GAMMA = 5.0
KARRAS_RHO = 7.0  # arXiv 2206.00364, eq. 5
KARRAS_MAX = 80.0  # the ramp's largest sigma / alpha where the process has infinity

Times = Int[Array, " b"] | Float[Array, " b"]
Scale = int | float | Float[Array, ""] | Float[Array, " b"]


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

    Made by `discrete`, `rectified_flow`, `edm` or, from a config section,
    `make_process`. alphas, sigmas: float64 "T", None where times are real. noise_range:
    (s_min, s_max) / sigma_data of "edm". times_like: mean and standard deviation of
    ln(sigma_t / alpha_t) of a training time, None for uniform times.
    """

    num_timesteps: int
    prediction: str
    alphas: np.ndarray | None = None
    sigmas: np.ndarray | None = None
    noise_range: tuple[float, float] | None = None
    times_like: tuple[float, float] | None = None

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
        choose("prediction", prediction, PREDICTIONS)
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
            alphas = schedules.end_at_zero_snr(alphas)
        return cls(num_timesteps, prediction, alphas, np.sqrt(1 - alphas**2))

    @classmethod
    def rectified_flow(
        cls,
        num_timesteps: int = 1000,
        time_distribution: str = "logit_normal",
        *,
        logit_mean: float = 0.0,
        logit_std: float = 1.0,
    ) -> "Process":
        """Straight lines: alpha = 1 - t / T, sigma = t / T, prediction "velocity".

        time_distribution "logit_normal" trains at t / T = sigmoid(N(mean, std^2)), so
        mostly in the middle of the line, and with a mean above 0 nearer to noise, as
        large pictures want it (arXiv 2403.03206, section 3.1).
        """
        choose("time_distribution", time_distribution, TIME_DISTRIBUTIONS)
        normal = time_distribution == "logit_normal"
        _check_positive(logit_std=logit_std)
        times_like = (logit_mean, logit_std) if normal else None
        return cls(num_timesteps, "velocity", times_like=times_like)

    @classmethod
    def edm(
        cls,
        num_timesteps: int = 1000,
        *,
        sigma_data: float = 0.5,
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        p_mean: float = -0.4,
        p_std: float = 1.0,
    ) -> "Process":
        """Noise levels s with ln s ~ N(p_mean, p_std^2) and EDM's preconditioning.

        With data y of deviation sigma_data, D(y + s n; s) = c_skip (y + s n) + c_out
        F(c_in (y + s n)). Our latents have deviation one, y = sigma_data z0, so that
        c_in (y + s n) = z_t, and the weight lambda(s) = 1 / c_out^2 on the error of D
        is 1 on that of F. The network is told t, affine in EDM's c_noise = ln(s) / 4
        and spread over 0 .. T. arXiv 2206.00364, table 1; defaults of arXiv 2312.02696
        (the former has p_mean -1.2, p_std 1.2).
        """
        _check_positive(sigma_data=sigma_data, sigma_min=sigma_min, p_std=p_std)
        if sigma_max <= sigma_min:
            raise UserError(
                f"process sigma_max = {sigma_max} must be above sigma_min = {sigma_min}"
            )
        return cls(
            num_timesteps,
            "F",
            noise_range=(sigma_min / sigma_data, sigma_max / sigma_data),
            times_like=(p_mean - float(np.log(sigma_data)), p_std),
        )

    @property
    def continuous(self) -> bool:
        """Whether times are real numbers (the rectified flow, edm)."""
        return self.alphas is None

    @typecheck
    def sample_times(self, key: Key[Array, ""], batch: int) -> Times:
        """Training times "b": i32 uniform on 0 .. T-1, or f32 in [0, T]."""
        if not self.continuous:
            return jax.random.randint(key, (batch,), 0, self.num_timesteps, jnp.int32)
        if self.times_like is None:
            return self.num_timesteps * (1 - jax.random.uniform(key, (batch,)))
        mean, std = self.times_like
        log_ratio = mean + std * jax.random.normal(key, (batch,))
        return jnp.clip(self._times_of(log_ratio, jnp), 0, self.num_timesteps)

    def _times_of(self, log_ratio, xp):
        """Real times at which ln(sigma_t / alpha_t) is `log_ratio`."""
        if self.noise_range is None:
            return self.num_timesteps / (1 + xp.exp(-log_ratio))
        low, high = np.log(self.noise_range)
        return self.num_timesteps * (log_ratio - low) / (high - low)

    def _scales_of(self, t, xp):
        """(alpha_t, sigma_t) of real times; xp is numpy or jax.numpy."""
        u = t / self.num_timesteps
        if self.noise_range is None:
            return 1 - u, u
        low, high = np.log(self.noise_range)
        ratio = xp.exp(low + (high - low) * u)
        alpha = 1 / xp.sqrt(1 + ratio**2)
        return alpha, ratio * alpha

    def scales(self, t: Times, dtype: jnp.dtype = jnp.float32) -> tuple[Array, Array]:
        """(alpha_t, sigma_t), each "b".

        Of discrete times i32 0 .. T-1; real ones between them, as Karras' spacing has,
        are interpolated in log(sigma / alpha) as the grid's are.
        """
        if self.continuous:
            return self._scales_of(t.astype(dtype), jnp)
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
        self, z0: Float[Array, " b *rest"], eps: Float[Array, " b *rest"], t: Times
    ) -> Float[Array, " b *rest"]:
        """z_t = alpha_t z0 + sigma_t eps (eq. 4 of arXiv 2006.11239)."""
        alpha, sigma = self._scales_like(z0, t)
        return alpha * z0 + sigma * eps

    @typecheck
    def target(
        self, z0: Float[Array, " b *rest"], eps: Float[Array, " b *rest"], t: Times
    ) -> Float[Array, " b *rest"]:
        """What the network should say at z_t; the module docstring has the table."""
        if self.prediction == "eps":
            return eps
        if self.prediction == "z0":
            return z0
        if self.prediction == "velocity":
            return eps - z0
        alpha, sigma = self._scales_like(z0, t)
        v = alpha * eps - sigma * z0
        return -v if self.prediction == "F" else v

    @typecheck
    def to_z0_eps(
        self,
        prediction: Float[Array, " b *rest"],
        z_t: Float[Array, " b *rest"],
        alpha: Scale,
        sigma: Scale,
    ) -> tuple[Float[Array, " b *rest"], Float[Array, " b *rest"]]:
        """(z0_hat, eps_hat) of a prediction at z_t; alpha and sigma scalar or "b".

        A pair always satisfies z_t = alpha z0_hat + sigma eps_hat. Undefined (inf) for
        "eps" at alpha = 0 and for "z0" at sigma = 0.
        """
        alpha, sigma = per_row(alpha, z_t), per_row(sigma, z_t)
        if self.prediction == "eps":
            return (z_t - sigma * prediction) / alpha, prediction
        if self.prediction == "z0":
            return prediction, (z_t - alpha * prediction) / sigma
        if self.prediction == "velocity":
            return z_t - sigma * prediction, z_t + alpha * prediction
        if self.prediction == "F":
            prediction = -prediction
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
        sign = -1 if self.prediction == "F" else 1
        return sign * (alpha**2 + sigma**2) / alpha

    @typecheck
    def loss_weight(
        self, t: Times, kind: str = "uniform", gamma: int | float = MIN_SNR_GAMMA
    ) -> Float[Array, " b"]:
        """Weight "b" of the squared error of the prediction.

        min_snr is min(SNR, gamma) on the squared error of z0 (arXiv 2303.09556). With
        z0's error k times the prediction's, the weight is k^2 min(SNR, gamma): k is
        sigma / alpha for eps, sigma for v, velocity and F, 1 for z0.
        """
        choose("loss weight", kind, LOSS_WEIGHTS)
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

        Exactly `steps` moves, whatever `steps`; UserError outside 1 .. T. Kinds with
        real times take the same times unrounded, one later (index 0 is already t = 1);
        for them "leading" means the grid they are published with: trailing for the
        flow, karras for edm.
        """
        total = self.num_timesteps
        choose("spacing", spacing, SPACINGS)
        if isinstance(steps, bool) or not isinstance(steps, (int, np.integer)):
            raise UserError(f"steps is {steps!r}; valid: an integer in 1 .. {total}")
        if not 1 <= steps <= total:
            raise UserError(f"steps is {steps}; valid: 1 .. {total}")
        if self.continuous and spacing == "leading":
            spacing = "trailing" if self.noise_range is None else "karras"
        if spacing == "karras":
            return self._karras(steps)
        if self.continuous:
            times = schedules.indices(spacing, total, steps)[::-1] + 1
            alphas, sigmas = self._scales_of(times, np)
            return Grid(
                np.append(times, 0), np.append(alphas, 1.0), np.append(sigmas, 0.0)
            )
        index = schedules.whole_indices(spacing, total, steps)[::-1]
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
            table_times = np.arange(self.noise_range is None, self.num_timesteps + 1.0)
            alphas, sigmas = self._scales_of(table_times, np)
        else:
            table_times = np.arange(self.num_timesteps + 0.0)
            alphas, sigmas = self.alphas, self.sigmas
        finite = alphas > 0
        table = np.log(sigmas[finite]) - np.log(alphas[finite])
        top = table[-1] if finite[-1] else min(table[-1], np.log(KARRAS_MAX))
        low, high = np.exp(table[0] / KARRAS_RHO), np.exp(top / KARRAS_RHO)
        ratios = np.linspace(high, low, steps) ** KARRAS_RHO
        if self.continuous:
            times = np.clip(self._times_of(np.log(ratios), np), 0, self.num_timesteps)
            alphas, _ = self._scales_of(times, np)
        else:
            times = np.interp(np.log(ratios), table, table_times[finite])
            alphas = 1 / np.sqrt(1 + ratios**2)
        sigmas = ratios * alphas
        if not finite[-1]:
            times[0], alphas[0], sigmas[0] = table_times[-1], 0.0, 1.0
        return Grid(np.append(times, 0), np.append(alphas, 1), np.append(sigmas, 0))

    def _scales_like(self, z: Array, t: Times) -> tuple[Array, Array]:
        alpha, sigma = self.scales(t, jnp.promote_types(z.dtype, jnp.float32))
        return per_row(alpha, z), per_row(sigma, z)


def _check_positive(**values: float) -> None:
    for name, value in values.items():
        if not value > 0:
            raise UserError(f"process {name} = {value}; it must be above 0")


def keys_of(kind: str) -> frozenset[str]:
    """The keys of a config's process section that a kind reads, without "kind"."""
    choose("process kind", kind, KINDS)
    return frozenset(inspect.signature(getattr(Process, kind)).parameters)


def make_process(kind: str = "discrete", **section) -> Process:
    """The Process of a config section: `kind` and the keywords of its constructor.

    Keys that only other kinds read are ignored, so that a config changes its kind by
    that one value. UserError for unknown kinds, keys and values.
    """
    own = keys_of(kind)
    known = sorted(frozenset().union(*map(keys_of, KINDS)))
    for name in section:
        if name not in known:
            raise UserError(f"process section has {name!r}; valid: {', '.join(known)}")
    return getattr(Process, kind)(**{k: v for k, v in section.items() if k in own})
