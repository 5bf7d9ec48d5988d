"""Convolution and attention of `models.cpu_kernels` beside XLA's own, on a CPU.

    python -m benchmarks.kernels

A line a shape: milliseconds of the forward pass and of forward and backward together,
both ways, and how many times faster ours is. Shapes are those of celebahq_ldm4's UNet,
first stages, and Stable Diffusion's attention at 512 px; "doubled" is an image made
twice as large before its convolution. "spread" is XLA's own convolution both times, of
shapes of the emoji networks: as `startup.spread_convolutions` has it, and YNNPACK's.
"norm" is our group norm beside flax's.
"""

import argparse
import json
import sys
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.scaling import milliseconds
from lDM_jax.core.startup import FUSIONS, spread_convolutions
from lDM_jax.models import cpu_kernels, layers

CONVOLUTIONS = (
    (1, 8, 8, 896, 896),
    (1, 8, 8, 1792, 896),
    (1, 16, 16, 672, 672),
    (1, 32, 32, 128, 128),
    (1, 32, 32, 448, 448),
    (1, 64, 64, 224, 224),
    (1, 128, 128, 128, 128),
    (1, 256, 256, 128, 128),
)
SPREAD = (
    (32, 8, 8, 64, 64),
    (32, 8, 8, 128, 64),
    (32, 4, 4, 128, 128),
    (1, 64, 64, 64, 64),
    (1, 32, 32, 128, 128),
)
YNNPACK = ("INDIVIDUAL_DOT", "INDIVIDUAL_CONVOLUTION", "REDUCE")
DOUBLED = ((1, 16, 16, 896), (1, 32, 32, 672), (1, 64, 64, 512), (1, 128, 128, 256))
NORMS = ((32, 8, 8, 64), (1, 32, 32, 448), (1, 64, 64, 224), (1, 256, 256, 128))
ATTENTIONS = (
    (1, 256, 21, 32),  # just from MIN_SCORES on
    (1, 1024, 14, 32),
    (1, 4096, 8, 40),
    (1, 4096, 1, 512),
)


def directions(function) -> dict[str, Callable]:
    """Forward, and forward with all gradients."""

    def gradients(*operands):
        out, pull = jax.vjp(function, *operands)
        return pull(out)

    return {"forward": function, "with_gradients": gradients}


def compare(ours: Callable, others: Callable) -> dict:
    """ours(way) and theirs(way), in milliseconds, for both ways of `ways`."""
    times = {}
    for direction in ("forward", "with_gradients"):
        first, second = ours(direction), others(direction)
        times[direction] = [round(first, 2), round(second, 2), round(second / first, 2)]
    return times


def spread(function, operands, repeats: int) -> dict:
    """XLA's own, without and with YNNPACK's convolutions."""
    types = ",".join(f"LIBRARY_FUSION_TYPE_{kind}" for kind in YNNPACK)
    ynnpack = {FUSIONS.removeprefix("--"): types}

    def measure(direction: str, options: dict | None = None):
        target = directions(function)[direction]
        return milliseconds(target, operands, repeats, compiler_options=options)

    with cpu_kernels.plain():
        return compare(measure, lambda direction: measure(direction, ynnpack))


def both(function, operands, repeats: int) -> dict:
    """Ours and XLA's."""

    def measure(direction: str):
        # a function of its own, so that nothing traced before is found again
        target = directions(function)[direction]
        return milliseconds(lambda *operands: target(*operands), operands, repeats)

    def measure_xla(direction: str):
        with cpu_kernels.plain():
            return measure(direction)

    return compare(measure, measure_xla)


def norms(x, repeats: int) -> dict:
    """Our group norm and flax's, which have the same parameters."""
    norm, flax_norm = layers.GroupNorm(), nn.GroupNorm(32)
    params = norm.init(jax.random.key(0), x)
    inner = {"params": params["params"]["norm"]}
    our_runs, flax_runs = directions(norm.apply), directions(flax_norm.apply)
    return compare(
        lambda direction: milliseconds(our_runs[direction], (params, x), repeats),
        lambda direction: milliseconds(flax_runs[direction], (inner, x), repeats),
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    repeats = parser.parse_args().repeats
    rng = np.random.default_rng(0)

    def normal(*shape):
        return jnp.asarray(rng.standard_normal(shape), jnp.float32)

    shapes = [("spread", s, spread) for s in SPREAD]
    shapes += [("convolution", s, both) for s in CONVOLUTIONS]
    for name, (b, h, w, c, d), measure in shapes:
        conv = layers.conv3x3(d, "conv")
        x = normal(b, h, w, c)
        operands = conv.init(jax.random.key(0), x), x
        line = {name: [b, h, w, c, d], **measure(conv.apply, operands, repeats)}
        sys.stdout.write(json.dumps(line) + "\n")
    for shape in DOUBLED:
        upsample, x = layers.Upsample(), normal(*shape)
        operands = upsample.init(jax.random.key(0), x), x
        line = {"doubled": shape, **both(upsample.apply, operands, repeats)}
        sys.stdout.write(json.dumps(line) + "\n")
    for shape in NORMS:
        line = {"norm": shape, **norms(normal(*shape), repeats)}
        sys.stdout.write(json.dumps(line) + "\n")
    for shape in ATTENTIONS:
        operands = [normal(*shape) for _ in range(3)]
        line = {"attention": shape, **both(layers.attend, operands, repeats)}
        sys.stdout.write(json.dumps(line) + "\n")
    return 0


if __name__ == "__main__":
    spread_convolutions()
    sys.exit(main())
