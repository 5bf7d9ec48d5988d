"""Cost against batch, extent and width: does it grow as the work does?

    python -m benchmarks.scaling
    python -m benchmarks.scaling --config configs/celebahq_ldm4.py --sides 32 64

A line a size: milliseconds of the UNet's forward pass and of its gradients (of a
squared error), operations by our own count (`flops.count`), operations a second, and
`linear`: the rate against that of the first line of the same table. 1 is growth as the
work grows; below 1 the larger size is dearer than its work. `peak_gb`: the most memory
that the process had held by then, 10^9 bytes. Weights are random.
"""

import argparse
import json
import resource
import statistics
import sys
import time

import jax
import jax.numpy as jnp

from lDM_jax.core.arrays import Cond
from lDM_jax.core.startup import prepare
from lDM_jax.from_config import config_file, networks
from lDM_jax.training import flops


def milliseconds(function, operands, repeats: int, **options) -> float:
    """Median of `repeats` runs after one that compiles; options: `jax.jit`'s."""
    compiled = jax.jit(function, **options)
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        jax.block_until_ready(compiled(*operands))
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times[1:])


def measured(section: dict, channels: int, batch: int, side: int, repeats: int) -> dict:
    """Times and operations of one size."""
    unet = networks.unet(section, out_channels=channels)
    z = jnp.ones((batch, side, side, channels), jnp.float32)
    t = jnp.zeros(batch, jnp.int32)
    width = section["context_width"]
    cond = Cond(context=jnp.ones((batch, 24, width))) if width else Cond()
    params = jax.jit(unet.init)(jax.random.key(0), z, t, cond)

    def forward(params, z):
        return unet.apply(params, z, t, cond)

    def training(params, z):
        return jax.grad(lambda params: ((forward(params, z) - 1) ** 2).mean())(params)

    line = {"batch": batch, "side": side, "width": section["width"]}
    for name, function in (("forward", forward), ("training", training)):
        work = flops.count(function, params, z)
        spent = milliseconds(function, (params, z), repeats)
        line[f"{name}_ms"] = round(spent, 2)
        line[f"{name}_gflops"] = round(work / 1e9, 2)
        line[f"{name}_gflops_per_sec"] = round(work / spent / 1e6, 1)
    # Of Linux, in KiB.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    line["peak_gb"] = round(1024 * peak / 1e9, 2)
    return line


def table(lines) -> None:
    """Write lines as they come, with their rates against the first one's."""
    first = None
    for line in lines:
        first = first or line
        for name in ("forward", "training"):
            rate = f"{name}_gflops_per_sec"
            line[f"{name}_linear"] = round(line[rate] / first[rate], 2)
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="configs/emoji.py")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--sides", type=int, nargs="+", default=[8, 16, 32])
    parser.add_argument("--widths", type=int, nargs="+", default=[])
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    config = config_file.read_config(args.config, [])
    section, channels = config.unet.to_dict(), 4
    batch, side = args.batches[0], args.sides[0]
    repeats = args.repeats
    table(measured(section, channels, n, side, repeats) for n in args.batches)
    table(measured(section, channels, batch, n, repeats) for n in args.sides)
    wider = ({**section, "width": n} for n in args.widths)
    table(measured(one, channels, batch, side, repeats) for one in wider)
    return 0


if __name__ == "__main__":
    prepare()
    sys.exit(main())
