"""How long the random transforms take on one core, as JSON; docstrings quote it.

    taskset -c 0 python -m benchmarks.transforms [--repeats 200]
    python -m benchmarks.transforms --masks 2000

Milliseconds of processor time of one call, the mean over `repeats` seeds: masks and
degradations of every kind at 256 px, crops for super-resolution of 188 to 375 px, crops
of a 500 x 375 image, and scenes of emoji at 64 px with the share that is covered.
With --masks, instead, the share of the image that so many masks of each kind paint:
mean, 5th and 95th percentile.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable

import numpy as np

from lDM_jax.data.crop import Crop
from lDM_jax.data.degrade import Degrade, RandomCrop
from lDM_jax.data.masks import KINDS, draw_mask
from lDM_jax.data.scenes import SceneSource


def milliseconds(call: Callable, repeats: int) -> float:
    """Mean time of call(seed) after one call that is not counted."""
    call(0)
    started = time.process_time()
    for seed in range(repeats):
        call(seed)
    return round(1e3 * (time.process_time() - started) / repeats, 2)


def measure_masks(count: int) -> dict:
    """kind -> [mean, 5th percentile, 95th] of the painted share of `count` masks."""
    result = {}
    for kind in KINDS:
        seeds = map(np.random.default_rng, range(count))
        shares = [draw_mask(kind, 256, 256, rng).mean() for rng in seeds]
        figures = [np.mean(shares), *np.percentile(shares, (5, 95))]
        result[kind] = [round(float(figure), 2) for figure in figures]
    return result


def measure(repeats: int) -> dict:
    """Every figure, by name."""
    rng = np.random.default_rng
    pixels = rng(0).integers(0, 256, (375, 500, 3)).astype(np.uint8)
    x = {"image": pixels[:256, :256] / np.float32(127.5) - np.float32(1)}
    photo = {"image": pixels / np.float32(127.5) - np.float32(1)}
    scenes = SceneSource(size_px=64, num_scenes=max(repeats, 2))
    covered = np.mean([(scenes[i]["segmentation"] > 0).mean() for i in range(repeats)])
    result = {
        f"mask {kind}": milliseconds(
            lambda seed, kind=kind: draw_mask(kind, 256, 256, rng(seed)), repeats
        )
        for kind in KINDS
    }
    for kind in ("bicubic", "bsr", "bsr_light"):
        result[f"degrade {kind}"] = milliseconds(
            lambda seed, kind=kind: Degrade(kind)(x, rng(seed)), repeats
        )
    result["crop of 188 to 375 px"] = milliseconds(
        lambda seed: RandomCrop(256)(photo, rng(seed)), repeats
    )
    for method in ("bicubic", "linear"):
        crop = Crop(256, "random", method=method)
        result[f"crop {method} of 500 x 375"] = milliseconds(
            lambda seed, crop=crop: crop({"image": pixels}, rng(seed)), repeats
        )
    result["scene"] = milliseconds(lambda seed: scenes[seed], repeats)
    result["scene covered"] = round(float(covered), 3)
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--masks", type=int, default=0)
    args = parser.parse_args()
    if args.masks:
        result = {"masks": args.masks, **measure_masks(args.masks)}
    else:
        result = {"repeats": args.repeats, **measure(args.repeats)}
    sys.stdout.write(json.dumps(result) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
