"""A VQ codebook's bookkeeping: use counts, updates by averages, restarts of dead codes.

    N_k <- d N_k + (1 - d) n_k        n_k: latents of this batch nearest to code k
    m_k <- d m_k + (1 - d) sum of them
    e_k <- m_k / N_k                  where averages move the codebook, not gradients

Source: van den Oord et al. 2017 (arXiv 1711.00937), appendix A.1; restarts: Dhariwal
et al. 2020 (arXiv 2005.00341), section 3.1.
"""

import flax.struct
import jax
import jax.numpy as jnp

from lDM_jax.core.arrays import Array, Float, Int, Key, typecheck


@flax.struct.dataclass
class CodeAverages:
    """counts f32 "k": average uses a step; sums f32 "k c": of the latents they took."""

    counts: jax.Array
    sums: jax.Array

    @classmethod
    def start(cls, codebook: Array) -> "CodeAverages":
        """As if every code had taken one latent equal to itself."""
        return cls(jnp.ones(codebook.shape[0]), jnp.array(codebook))


@typecheck
def update_codebook(
    averages: CodeAverages,
    codebook: Float[Array, "k c"],
    z: Float[Array, "b h w c"],
    codes: Int[Array, "b h w"],
    key: Key[Array, ""],
    *,
    decay: float,
    by_average: bool,
    restart_below: float,
) -> tuple[CodeAverages, Float[Array, "k c"]]:
    """One step of the module's formulas: (averages, codebook).

    Without `by_average` the codebook itself only changes by restarts: a code with fewer
    than `restart_below` average uses a step becomes a random latent of this batch.
    """
    rows, taken = z.reshape(-1, z.shape[-1]), codes.reshape(-1)
    number = codebook.shape[0]
    n = jax.ops.segment_sum(jnp.ones_like(taken, jnp.float32), taken, number)
    total = jax.ops.segment_sum(rows, taken, number)
    counts = decay * averages.counts + (1 - decay) * n
    sums = decay * averages.sums + (1 - decay) * total
    if by_average:
        codebook = sums / jnp.maximum(counts, 1e-5)[:, None]
    if restart_below > 0:
        latents = rows[jax.random.randint(key, (number,), 0, len(rows))]
        dead = (counts < restart_below)[:, None]
        codebook = jnp.where(dead, latents, codebook)
        sums = jnp.where(dead, latents, sums)
        counts = jnp.where(dead[:, 0], 1.0, counts)
    return CodeAverages(counts, sums), codebook


@typecheck
def code_usage(
    codes: Int[Array, "b h w"], num_codes: int
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """(perplexity exp(H) of the codes in a batch, share of all codes it uses)."""
    counts = jnp.zeros(num_codes).at[codes.reshape(-1)].add(1.0)
    p = counts / counts.sum()
    entropy = -jnp.sum(p * jnp.log(jnp.maximum(p, 1e-20)))
    return jnp.exp(entropy), (counts > 0).mean()
