"""Convolution and attention of `models.kernels` beside XLA's own, on a CPU.

    python -m benchmarks.kernels

A line a shape: milliseconds of the forward pass and of forward and backward together,
both ways, and how many times faster ours is. Shapes are those of celebahq_ldm4's UNet,
its first stage, and Stable Diffusion's attention at 512 px; "doubled" is a picture made
twice as large before its convolution.
"""

import argparse
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.scaling import milliseconds
from lDM_jax.models import kernels, layers

CONVOLUTIONS = (
    (1, 8, 8, 896, 896),
    (1, 8, 8, 1792, 896),
    (1, 16, 16, 672, 672),
    (1, 32, 32, 448, 448),
    (1, 64, 64, 224, 224),
    (1, 128, 128, 128, 128),
    (1, 256, 256, 128, 128),
)
DOUBLED = ((1, 16, 16, 896), (1, 32, 32, 672), (1, 64, 64, 512), (1, 128, 128, 256))
ATTENTIONS = ((1, 1024, 14, 32), (1, 4096, 8, 40), (1, 4096, 1, 512))


def both(function, operands, repeats: int) -> dict:
    """Ours and XLA's: forward, and forward with all gradients."""

    def gradients(*operands):
        out, pull = jax.vjp(function, *operands)
        return pull(out)

    line = {}
    for name, what in (("forward", function), ("with_gradients", gradients)):
        ours = milliseconds(what, operands, repeats)
        with kernels.plain():
            # another function, so that nothing traced before is found again
            theirs = milliseconds(lambda *a, what=what: what(*a), operands, repeats)
        line[name] = [round(ours, 2), round(theirs, 2), round(theirs / ours, 2)]
    return line


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    repeats = parser.parse_args().repeats
    rng = np.random.default_rng(0)

    def normal(*shape):
        return jnp.asarray(rng.standard_normal(shape), jnp.float32)

    for b, h, w, c, d in CONVOLUTIONS:
        conv = layers.conv3x3(d, "conv")
        x = normal(b, h, w, c)
        operands = conv.init(jax.random.key(0), x), x
        line = {"convolution": [b, h, w, c, d], **both(conv.apply, operands, repeats)}
        sys.stdout.write(json.dumps(line) + "\n")
    for shape in DOUBLED:
        upsample, x = layers.Upsample(), normal(*shape)
        operands = upsample.init(jax.random.key(0), x), x
        line = {"doubled": shape, **both(upsample.apply, operands, repeats)}
        sys.stdout.write(json.dumps(line) + "\n")
    for shape in ATTENTIONS:
        operands = [normal(*shape) for _ in range(3)]
        line = {"attention": shape, **both(layers.attend, operands, repeats)}
        sys.stdout.write(json.dumps(line) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
