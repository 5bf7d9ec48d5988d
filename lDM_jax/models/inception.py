"""InceptionV3 of FID: the network of 2015-12-05, with pytorch-fid's names.

Differs from later InceptionV3s in three ways that move FID: 1,008 classes, averages
that do not count the padding, and a maximum in the pool branch of the last block.
Normalization uses the stored means and variances; there is no training mode. Module
names are those of the weight file, and everything runs in full f32.

    pool     "b 2048"  means over the last 8 x 8 positions: FID, KID, precision, recall
    spatial  "b 2023"  the first seven channels after the first convolution of block
                       Mixed_6d at all 17 x 17 positions: guided-diffusion's sFID
    logits   "b 1008"  without the bias, as both guided-diffusion and torch-fidelity
                       take them for the Inception Score

Source: Szegedy et al. 2016 (arXiv 1512.00567); Heusel et al. 2017. Read `Inception`
first.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict

from lDM_jax.core.arrays import Array, Float, typecheck

SIZE_PX = 299
CLASSES = 1008
BATCH_NORM_EPS = 1e-3
SPATIAL_CHANNELS = 7

# The branches of a block and what its last branch begins with: see `Mixed`.
Block = tuple[Sequence[Sequence[tuple]], str]


class Unit(nn.Module):
    """Convolution, normalization by stored statistics, ReLU."""

    channels: int
    kernel: Sequence[int] = (1, 1)
    stride: int = 1
    padding: str = "SAME"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = self.channels, self.kernel, self.stride, self.padding
        conv = nn.Conv(*shape, use_bias=False, precision="highest", name="conv")
        return nn.relu(StoredNorm(name="bn")(conv(x)))


class StoredNorm(nn.Module):
    """(x - mean) / sqrt(variance + 1e-3) * weight + bias, all four stored."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        width = (x.shape[-1],)
        weight = self.param("weight", nn.initializers.ones, width)
        bias = self.param("bias", nn.initializers.zeros, width)
        mean = self.param("running_mean", nn.initializers.zeros, width)
        variance = self.param("running_var", nn.initializers.ones, width)
        scale = weight * jax.lax.rsqrt(variance + BATCH_NORM_EPS)
        shape = (1, 1, 1, -1)
        return x * scale.reshape(shape) + (bias - mean * scale).reshape(shape)


class Mixed(nn.Module):
    """Branches side by side; `branches` lists their units by name, one after another.

    A unit is (name, channels, kernel, stride). A name that ends in "a" is followed by
    its "b": both see the same input, and their outputs lie side by side.
    pool: "average" or "max" before the last branch; "shrink" is a branch of its own, a
    maximum of stride 2. Returns the blocks' output and the first branch's.
    """

    branches: Sequence[Sequence[tuple]]
    pool: str

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, Array]:
        outputs = []
        for index, branch in enumerate(self.branches):
            last = index == len(self.branches) - 1
            h = self.pool_input(x) if last and self.pool != "shrink" else x
            outputs.append(self.chain(h, branch))
        if self.pool == "shrink":
            outputs.append(nn.max_pool(x, (3, 3), (2, 2)))
        return jnp.concatenate(outputs, axis=-1), outputs[0]

    def pool_input(self, x: Array) -> Array:
        """Pool 3 x 3 positions; averages at the border count only those inside."""
        if self.pool == "max":
            return nn.max_pool(x, (3, 3), (1, 1), "SAME")
        return nn.avg_pool(x, (3, 3), (1, 1), "SAME", count_include_pad=False)

    def chain(self, x: Array, branch: Sequence[tuple]) -> Array:
        """The units of a branch, with the pair at its end if there is one."""
        pair = []
        for name, channels, kernel, stride in branch:
            padding = "SAME" if stride == 1 else "VALID"
            unit = Unit(channels, kernel, stride, padding, name=name)
            if name[-1] in "ab" and name[-2].isdigit():
                pair.append(unit(x))
            else:
                x = unit(x)
        return jnp.concatenate(pair, axis=-1) if pair else x


def numbered(name: str, *units: tuple) -> tuple[tuple, ...]:
    """Units (channels, rows, columns, stride) of a branch: name_1, name_2, ..."""
    return tuple(
        (f"{name}_{number}", channels, (rows, columns), stride)
        for number, (channels, rows, columns, stride) in enumerate(units, start=1)
    )


def block_a(pool_channels: int) -> Block:
    """35 x 35 positions: Mixed_5b, 5c, 5d."""
    return (
        (
            (("branch1x1", 64, (1, 1), 1),),
            numbered("branch5x5", (48, 1, 1, 1), (64, 5, 5, 1)),
            numbered("branch3x3dbl", (64, 1, 1, 1), (96, 3, 3, 1), (96, 3, 3, 1)),
            (("branch_pool", pool_channels, (1, 1), 1),),
        ),
        "average",
    )


def block_b() -> Block:
    """To 17 x 17 positions: Mixed_6a."""
    return (
        (
            (("branch3x3", 384, (3, 3), 2),),
            numbered("branch3x3dbl", (64, 1, 1, 1), (96, 3, 3, 1), (96, 3, 3, 2)),
        ),
        "shrink",
    )


def block_c(width: int) -> Block:
    """17 x 17 positions: Mixed_6b, 6c, 6d, 6e."""
    across, down = (width, 1, 7, 1), (width, 7, 1, 1)
    return (
        (
            (("branch1x1", 192, (1, 1), 1),),
            numbered("branch7x7", (width, 1, 1, 1), across, (192, 7, 1, 1)),
            numbered(
                "branch7x7dbl", (width, 1, 1, 1), down, across, down, (192, 1, 7, 1)
            ),
            (("branch_pool", 192, (1, 1), 1),),
        ),
        "average",
    )


def block_d() -> Block:
    """To 8 x 8 positions: Mixed_7a."""
    return (
        (
            numbered("branch3x3", (192, 1, 1, 1), (320, 3, 3, 2)),
            numbered(
                "branch7x7x3",
                *((192, 1, 1, 1), (192, 1, 7, 1), (192, 7, 1, 1), (192, 3, 3, 2)),
            ),
        ),
        "shrink",
    )


def block_e(pool: str) -> Block:
    """8 x 8 positions: Mixed_7b (average) and 7c (max)."""
    return (
        (
            (("branch1x1", 320, (1, 1), 1),),
            (
                ("branch3x3_1", 384, (1, 1), 1),
                ("branch3x3_2a", 384, (1, 3), 1),
                ("branch3x3_2b", 384, (3, 1), 1),
            ),
            (
                ("branch3x3dbl_1", 448, (1, 1), 1),
                ("branch3x3dbl_2", 384, (3, 3), 1),
                ("branch3x3dbl_3a", 384, (1, 3), 1),
                ("branch3x3dbl_3b", 384, (3, 1), 1),
            ),
            (("branch_pool", 192, (1, 1), 1),),
        ),
        pool,
    )


BLOCKS = {
    "Mixed_5b": block_a(32),
    "Mixed_5c": block_a(64),
    "Mixed_5d": block_a(64),
    "Mixed_6a": block_b(),
    "Mixed_6b": block_c(128),
    "Mixed_6c": block_c(160),
    "Mixed_6d": block_c(160),
    "Mixed_6e": block_c(192),
    "Mixed_7a": block_d(),
    "Mixed_7b": block_e("average"),
    "Mixed_7c": block_e("max"),
}


class Inception(nn.Module):
    """Pixels f32, about [-1, 1], "b h w 3" -> {"pool", "spatial", "logits"}, f32.

    FID is of 299 x 299 px; other extents of at least 75 px work, with another number
    of spatial features.
    """

    @nn.compact
    @typecheck
    def __call__(self, x: Float[Array, "b h w 3"]) -> dict[str, Array]:
        x = Unit(32, (3, 3), 2, "VALID", name="Conv2d_1a_3x3")(x)
        x = Unit(32, (3, 3), 1, "VALID", name="Conv2d_2a_3x3")(x)
        x = Unit(64, (3, 3), name="Conv2d_2b_3x3")(x)
        x = nn.max_pool(x, (3, 3), (2, 2))
        x = Unit(80, name="Conv2d_3b_1x1")(x)
        x = Unit(192, (3, 3), 1, "VALID", name="Conv2d_4a_3x3")(x)
        x = nn.max_pool(x, (3, 3), (2, 2))
        spatial = None
        for name, (branches, pool) in BLOCKS.items():
            x, first = Mixed(branches, pool, name=name)(x)
            if name == "Mixed_6d":
                spatial = first[..., :SPATIAL_CHANNELS].reshape(len(first), -1)
        pooled = x.mean(axis=(1, 2))
        head = nn.Dense(CLASSES, use_bias=False, precision="highest", name="fc")
        return {"pool": pooled, "spatial": spatial, "logits": head(pooled)}


def inception_shapes() -> dict[tuple[str, ...], tuple[int, ...]]:
    """The shape of every parameter by its path."""
    x = jax.ShapeDtypeStruct((1, 75, 75, 3), jnp.float32)
    params = jax.eval_shape(Inception().init, jax.random.key(0), x)["params"]
    return {path: leaf.shape for path, leaf in flatten_dict(params).items()}
