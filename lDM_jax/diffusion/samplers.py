"""Samplers: from noise to latents along a grid, each a rule around one `move`.

With a network's pair (z0_hat, eps_hat) at z_t = alpha_t z0_hat + sigma_t eps_hat, the
next latents at the scales (alpha_s, sigma_s) are

    move(z0_hat, eps_hat; n) = alpha_s z0_hat + sqrt(sigma_s^2 - n^2) eps_hat + n noise

and a sampler is the choice of the pair and of n. With r = (sigma_s alpha_t) / (alpha_s
sigma_t), the noise of eta is n = eta sigma_s sqrt(1 - r^2): for variance preserving
scales DDIM's (arXiv 2010.02502, eq. 16), in general the ancestral step's.

    ddim             the pair, n of eta                  arXiv 2010.02502
    ddpm             the same, eta = 1; on the full grid the paper's ancestral sampler
    euler            the same, eta = 0                   arXiv 2206.00364, alg. 1
    euler_ancestral  the same, eta = 1                   k-diffusion
    heun             mean of eps_hat here and there      arXiv 2206.00364, alg. 1
    plms             Adams-Bashforth mix of eps_hat      arXiv 2202.09778
    dpmpp_1          the pair                            arXiv 2211.01095
    dpmpp_2m         z0_hat extrapolated in log-SNR      arXiv 2211.01095
    dpmpp_sde        the same, n of eta = 1              arXiv 2211.01095
    unipc            2m from a corrected z_t             arXiv 2302.04867 (order 2, B2)

Several names are one formula in these variables; all are kept because users ask for
them by name. Owns no grid (Process.grid does), no guidance, no network. Coefficients
are float64 numpy, of which step i takes its row; z and the memory are f32.

A trajectory is `sample`; one step of it is `step`, for callers with their own loop.
Both are pure and meant to be jitted with the grid static: z, keys, eta, the step index
and whatever `denoise` closes over may be traced.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lDM_jax.core import rng
from lDM_jax.core.arrays import Array, Denoiser, Float, typecheck
from lDM_jax.core.errors import UserError
from lDM_jax.diffusion.process import Grid, Process

# Adams-Bashforth weights of the newest eps_hat and the three before it, by the number
# of earlier ones at hand (arXiv 2202.09778). Row 0 is unused: see `_plms`.
ADAMS_BASHFORTH = np.array(
    [
        [1, 0, 0, 0],
        [3 / 2, -1 / 2, 0, 0],
        [23 / 12, -16 / 12, 5 / 12, 0],
        [55 / 24, -59 / 24, 37 / 24, -9 / 24],
    ]
)


class Carry(NamedTuple):
    """What one step hands to the next.

    z       "b h w c", the latents at the current time
    z0_hat  "b h w c", the clean latents last estimated: a preview
    memory  "m b h w c", the sampler's own past, newest first
    age     i32 "", how many steps filled the memory; 0 makes it count for nothing
    """

    z: Array
    z0_hat: Array
    memory: Array
    age: Array


class Coefficients(NamedTuple):
    """All that the rules need of a grid: of every step in float64, or of one in f32.

    A step goes from t to s, the one before from p to t; h is the gain in log(alpha /
    sigma).

    alpha_t, sigma_t, alpha_s, sigma_s   scales where the step starts and ends
    ancestral     sigma_s sqrt(1 - r^2), the noise of eta = 1
    extrapolate   h / (2 h_before); 0 where one of the two is infinite, which makes the
                  step first order
    keep, pull    sigma_t / sigma_p and alpha_t - alpha_p sigma_t / sigma_p: the exact
                  solution from p to t for a constant z0_hat
    old, new      UniC-2 weights (B(h) = e^h - 1) of z0_hat_{p-1} - z0_hat_p and of
                  z0_hat_t - z0_hat_p; 0 and 1/2 where that step is first order
    """

    alpha_t: np.ndarray | Array
    sigma_t: np.ndarray | Array
    alpha_s: np.ndarray | Array
    sigma_s: np.ndarray | Array
    ancestral: np.ndarray | Array
    extrapolate: np.ndarray | Array
    keep: np.ndarray | Array
    pull: np.ndarray | Array
    old: np.ndarray | Array
    new: np.ndarray | Array


def coefficients(grid: Grid) -> Coefficients:
    """The tables "steps" of a grid, float64 numpy."""
    alpha_t, alpha_s = grid.alphas[:-1], grid.alphas[1:]
    sigma_t, sigma_s = grid.sigmas[:-1], grid.sigmas[1:]
    ratio = sigma_s * alpha_t / (alpha_s * sigma_t)
    with np.errstate(divide="ignore"):
        h = -np.log(ratio)
    keep, pull, extrapolate, old = np.zeros((4, grid.steps))
    new = np.full(grid.steps, 0.5)
    keep[1:] = sigma_s[:-1] / sigma_t[:-1]
    pull[1:] = alpha_s[:-1] - alpha_t[:-1] * keep[1:]
    for i in range(1, grid.steps):
        if np.isfinite(h[i - 1 : i + 1]).all():
            extrapolate[i] = h[i] / (2 * h[i - 1])
        if i >= 2 and np.isfinite(h[i - 2 : i]).all():
            old[i], new[i] = _corrector_weights(h[i - 1], h[i - 2])
    ancestral = sigma_s * np.sqrt(np.maximum(1 - ratio**2, 0))
    scales = (alpha_t, sigma_t, alpha_s, sigma_s)
    return Coefficients(*scales, ancestral, extrapolate, keep, pull, old, new)


def _corrector_weights(h: float, h_before: float) -> tuple[float, float]:
    """UniC-2 for a step of log-SNR h after one of h_before; see `Coefficients`."""
    x = -h
    phi_1 = np.expm1(x) / x - 1
    phi_2 = phi_1 / x - 0.5
    b = np.array([phi_1, 2 * phi_2]) / np.expm1(x)
    place = -h_before / h
    rho = np.linalg.solve(np.array([[1, 1], [place, 1]]), b)
    return rho[0] / place, rho[1]


class Move:
    """Step i of a trajectory: `at` (its coefficients), the network, and `to_next`."""

    def __init__(self, denoise: Denoiser, process: Process, grid: Grid, i, dtype):
        self._denoise, self._process, self._grid, self._i = denoise, process, grid, i
        tables = coefficients(grid)
        self.at = Coefficients(*(jnp.asarray(table, dtype)[i] for table in tables))

    def estimate(self, z: Array) -> tuple[Array, Array]:
        """(z0_hat, eps_hat) by the network at this step's time."""
        return self._ask(z, self._i, self.at.alpha_t, self.at.sigma_t)

    def estimate_next(self, z: Array) -> tuple[Array, Array]:
        """(z0_hat, eps_hat) by the network where this step ends."""
        return self._ask(z, self._i + 1, self.at.alpha_s, self.at.sigma_s)

    def _ask(self, z, i, alpha, sigma):
        whole = np.issubdtype(self._grid.times.dtype, np.integer)
        times = jnp.asarray(self._grid.times, jnp.int32 if whole else jnp.float32)
        t = jnp.broadcast_to(times[i], z.shape[:1])
        prediction = self._denoise(z, t).astype(z.dtype)
        return self._process.to_z0_eps(prediction, z, alpha, sigma)

    def with_eps(self, z: Array, eps: Array, first: tuple[Array, Array]):
        """The pair at z whose noise is eps; at alpha_t = 0 there is only `first`."""
        pure = self.at.alpha_t == 0
        z0 = (z - self.at.sigma_t * eps) / jnp.where(pure, 1, self.at.alpha_t)
        return jnp.where(pure, first[0], z0), jnp.where(pure, first[1], eps)

    def with_z0(self, z: Array, z0: Array) -> tuple[Array, Array]:
        """The pair at z whose clean latents are z0."""
        return z0, (z - self.at.alpha_t * z0) / self.at.sigma_t

    def to_next(self, z0: Array, eps: Array, eta=0.0, noise=0.0) -> Array:
        """alpha_s z0 + sqrt(sigma_s^2 - n^2) eps + n noise, n = eta * ancestral."""
        n = eta * self.at.ancestral
        rest = jnp.sqrt(jnp.maximum(self.at.sigma_s**2 - n**2, 0))
        return self.at.alpha_s * z0 + rest * eps + n * noise


def _ddim(m: Move, carry: Carry, eta, noise) -> tuple:
    z0, eps = m.estimate(carry.z)
    return m.to_next(z0, eps, eta, noise), z0, carry.memory


def _heun(m: Move, carry: Carry, eta, noise) -> tuple:
    first = z0, eps = m.estimate(carry.z)
    there = jax.lax.cond(
        m.at.sigma_s > 0,
        lambda z: m.estimate_next(z)[1],
        lambda z: eps,  # the network is not asked about clean data
        m.to_next(z0, eps),
    )
    pair = m.with_eps(carry.z, (eps + there) / 2, first)
    return m.to_next(*pair), z0, carry.memory


def _plms(m: Move, carry: Carry, eta, noise) -> tuple:
    first = z0, eps = m.estimate(carry.z)
    window = jnp.concatenate([eps[None], carry.memory])
    weights = jnp.asarray(ADAMS_BASHFORTH, eps.dtype)[jnp.minimum(carry.age, 3)]
    mixed = jax.lax.cond(
        (carry.age == 0) & (m.at.sigma_s > 0),
        lambda: (eps + m.estimate_next(m.to_next(z0, eps))[1]) / 2,
        lambda: jnp.tensordot(weights, window, axes=1, precision="highest"),
    )
    pair = m.with_eps(carry.z, mixed, first)
    return m.to_next(*pair), z0, window[:3]


def _dpmpp_2m(m: Move, carry: Carry, eta, noise) -> tuple:
    z0, _ = m.estimate(carry.z)
    weight = jnp.where(carry.age > 0, m.at.extrapolate, 0)
    pair = m.with_z0(carry.z, z0 + weight * (z0 - carry.memory[0]))
    return m.to_next(*pair, eta, noise), z0, z0[None]


def _unipc(m: Move, carry: Carry, eta, noise) -> tuple:
    z0, _ = m.estimate(carry.z)
    z0_p, z0_pp, z_p = carry.memory
    old = jnp.where(carry.age > 1, m.at.old, 0)
    new = jnp.where(carry.age > 1, m.at.new, 0.5)
    mean = z0_p + old * (z0_pp - z0_p) + new * (z0 - z0_p)
    z = jnp.where(carry.age > 0, m.at.keep * z_p + m.at.pull * mean, carry.z)
    weight = jnp.where(carry.age > 0, m.at.extrapolate, 0)
    pair = m.with_z0(z, z0 + weight * (z0 - z0_p))
    return m.to_next(*pair), z0, jnp.stack([z0, z0_p, z])


class Sampler(NamedTuple):
    """A rule, how many arrays it remembers, and its eta (None: the caller's)."""

    rule: Callable
    memory: int = 0
    eta: float | None = 0.0


SAMPLERS = {
    "ddpm": Sampler(_ddim, eta=1.0),
    "ddim": Sampler(_ddim, eta=None),
    "plms": Sampler(_plms, memory=3),
    "euler": Sampler(_ddim),
    "euler_ancestral": Sampler(_ddim, eta=1.0),
    "heun": Sampler(_heun),
    "dpmpp_1": Sampler(_ddim),
    "dpmpp_2m": Sampler(_dpmpp_2m, memory=1),
    "dpmpp_sde": Sampler(_dpmpp_2m, memory=1, eta=1.0),
    "unipc": Sampler(_unipc, memory=3),
}


def check(sampler: str) -> Sampler:
    """The sampler of that name; UserError lists the valid ones."""
    if sampler not in SAMPLERS:
        raise UserError(f"sampler is {sampler!r}; valid: {', '.join(SAMPLERS)}")
    return SAMPLERS[sampler]


def start_carry(z: Array, sampler: str = "ddim") -> Carry:
    """The carry before the first step, at latents z "b h w c"; f32 (f64 stays)."""
    z = z.astype(jnp.promote_types(z.dtype, jnp.float32))
    memory = jnp.zeros((check(sampler).memory, *z.shape), z.dtype)
    return Carry(z, jnp.zeros_like(z), memory, jnp.int32(0))


def forget(carry: Carry) -> Carry:
    """The carry without a past, for a denoiser that the memory is not of.

    The next step is the sampler's first one from the same latents.
    """
    return carry._replace(age=jnp.zeros_like(carry.age))


def step(
    denoise: Denoiser,
    carry: Carry,
    i: int | Array,
    process: Process,
    *,
    grid: Grid,
    sampler: str = "ddim",
    eta: int | float | Array = 0.0,
    keys: Array | None = None,
    constrain: Callable[[Array, Array], Array] | None = None,
) -> Carry:
    """Step i of the grid, from its time i to its time i + 1; i may be traced.

    constrain: (z, i) -> z at time i, applied before the step and, with i + 1, after
    it; blended inpainting holds the known latents so.

    eta: DDIM's noise, 0 (none) to 1 (ancestral); UserError where a sampler has none.
    keys "b": the noise of row j is normal(fold_in(keys[j], i + 1)), so that a row does
    not depend on the others. UserError if missing where noise is needed.
    """
    rule, _, own_eta = check(sampler)
    noisy = not (isinstance(eta, (int, float)) and eta == 0)
    if own_eta is not None:
        if isinstance(eta, (int, float)) and eta not in (0, own_eta):
            raise UserError(f"eta is {eta} but {sampler!r} has none; valid: eta 0")
        eta, noisy = own_eta, own_eta > 0
    noise = 0.0
    if noisy:
        if keys is None:
            raise UserError(f"sampler {sampler!r} draws noise: give keys, one a row")
        noise = rng.normal_per_seed(keys, carry.z.shape[1:], step=i + 1)
        noise = noise.astype(carry.z.dtype)
    move = Move(denoise, process, grid, i, carry.z.dtype)
    if constrain is not None:
        carry = carry._replace(z=constrain(carry.z, i))
    z, z0_hat, memory = rule(move, carry, eta, noise)
    if constrain is not None:
        z = constrain(z, i + 1)
    return Carry(z, z0_hat, memory, carry.age + 1)


@typecheck
def sample(
    denoise: Denoiser,
    z_T: Float[Array, "b h w c"],  # noqa: N803
    process: Process,
    *,
    grid: Grid,
    sampler: str = "ddim",
    start: int | Array = 0,
    **options,
) -> Float[Array, "b h w c"]:
    """The latents at the end of the grid, from z_T at its time `start`.

    z_T is alpha z0 + sigma eps there: plain noise for start = 0, noised latents for
    image to image; start = grid.steps returns it. One scan (a while loop if `start` is
    traced). UserError for a start outside 0 .. grid.steps; options (eta, keys,
    constrain) and the rest as in `step`.
    """
    if isinstance(start, int) and not 0 <= start <= grid.steps:
        raise UserError(f"start is {start}; valid: 0 .. {grid.steps}")
    options |= dict(grid=grid, sampler=sampler)

    def advance(i: Array, carry: Carry) -> Carry:
        return step(denoise, carry, i, process, **options)

    return jax.lax.fori_loop(start, grid.steps, advance, start_carry(z_T, sampler)).z


@typecheck
def invert(
    denoise: Denoiser, z0: Float[Array, "b h w c"], process: Process, *, grid: Grid
) -> Float[Array, "b h w c"]:
    """DDIM from clean latents to the grid's first time (arXiv 2105.05233, appendix F).

    Each step asks the network at the time it goes to, about the latents it comes from:
    z_t = alpha_t z0_hat + sigma_t eps_hat with the pair of z_s. `sample` with eta 0
    leads back up to the steps' error, which falls as 1 / steps.
    """
    whole = np.issubdtype(grid.times.dtype, np.integer)
    times = jnp.asarray(grid.times, jnp.int32 if whole else jnp.float32)
    alphas, sigmas = (jnp.asarray(x, jnp.float32) for x in (grid.alphas, grid.sigmas))

    def back(k: Array, z: Array) -> Array:
        i = grid.steps - 1 - k  # from time i + 1 to time i
        prediction = denoise(z, jnp.broadcast_to(times[i], z.shape[:1]))
        z0_hat, eps = process.to_z0_eps(prediction, z, alphas[i + 1], sigmas[i + 1])
        return alphas[i] * z0_hat + sigmas[i] * eps

    return jax.lax.fori_loop(0, grid.steps, back, z0.astype(jnp.float32))


def slerp(a: Array, b: Array, u: float | Array) -> Array:
    """The point at u in [0, 1] of the great circle from `a` to `b`, row by row.

    sin((1 - u) w) / sin w a + sin(u w) / sin w b with w the angle between the rows
    "b ...": between two draws of unit noise it stays one, where a straight line has
    too small a norm. Rows that are parallel are mixed straight.
    """
    axes = tuple(range(1, a.ndim))
    norm = lambda x: jnp.sqrt((x**2).sum(axis=axes, keepdims=True))  # noqa: E731
    cosine = (a * b).sum(axis=axes, keepdims=True) / (norm(a) * norm(b))
    angle = jnp.arccos(jnp.clip(cosine, -1, 1))
    parallel = jnp.sin(angle) < 1e-4
    sine = jnp.where(parallel, 1.0, jnp.sin(angle))
    left = jnp.where(parallel, 1 - u, jnp.sin((1 - u) * angle) / sine)
    right = jnp.where(parallel, u, jnp.sin(u * angle) / sine)
    return left * a + right * b
