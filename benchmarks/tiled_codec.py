"""Tiled against untiled first stages: memory and differences, as JSON.

    python -m benchmarks.tiled_codec [--height_px 1536] [--width_px 1024] [--width 32]
    python -m benchmarks.tiled_codec --trained \\
        --height_px 640 --width_px 320 --tile_px 320

The first line runs vq_f4_noattn at a reduced width with drawn weights: no attention, so
exact mode should agree with the untiled run. `--trained` runs the shipped emoji_kl_f8,
which has attention in the middle: tiles attend to themselves, and the difference says
what that costs. Every measurement is a process of its own; peak memory is its largest
resident set (ru_maxrss), once for the imports and weights alone ("idle"), once for an
image of one tile, once for the whole image. Differences are over all pixels (or
moments) and over the interior, without a tile's width along the border.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

MODES = ("idle", "untiled", "tile", "exact", "fast")


def picture(height_px: int, width_px: int) -> np.ndarray:
    """A mosaic of emoji with a gradient over it: f32 [-1, 1] "1 H W 3"."""
    from lDM_jax.data.sources import EmojiSource

    source, side = EmojiSource(split="train", size_px=64), 64
    rows, cols = -(-height_px // side), -(-width_px // side)
    tiles = np.stack([source[i % len(source)]["image"] for i in range(rows * cols)])
    mosaic = tiles[..., :3].reshape(rows, cols, side, side, 3).swapaxes(1, 2)
    mosaic = mosaic.reshape(rows * side, cols * side, 3)[:height_px, :width_px]
    light = np.linspace(0.3, 1.0, height_px)[:, None, None]
    return (mosaic[None] / 127.5 * light - 1.0).astype(np.float32)


def first_stage(args):
    """(codec, params) of the comparison."""
    import jax
    import jax.numpy as jnp
    from ml_collections import ConfigDict

    from configs import common
    from lDM_jax.diffusion.codec import Codec
    from lDM_jax.from_config import networks

    if args.trained:
        return networks.first_stage(
            ConfigDict({"first_stage": {"path": "emoji_kl_f8", "scale": 0.0}})
        )
    section = common.first_stage_network("vq_f4_noattn", width=args.width)
    network = networks.autoencoder(section)
    shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        values = rng.standard_normal(leaf.shape).astype(np.float32)
        if path[-1].key == "kernel":  # gain 1 / sqrt(3), as when training starts
            return values / np.sqrt(3 * np.prod(leaf.shape[:-1]), dtype=np.float32)
        if path[-1].key == "scale":
            return 1 + 0.1 * values
        return values if path[-1].key == "codebook" else 0.1 * values

    return Codec(network), jax.tree_util.tree_map_with_path(draw, shapes)


def measure(args) -> dict:
    """One mode in this process: seconds, peak memory; the results go to a file."""
    import jax
    import jax.numpy as jnp

    from lDM_jax.diffusion import tiling

    codec, params = first_stage(args)
    x = picture(args.height_px, args.width_px)
    if args.mode == "tile":
        x = x[:, : args.tile_px, : args.tile_px]
    start, results = time.perf_counter(), {}
    if args.mode == "untiled":
        moments = jax.device_get(jax.jit(codec.moments)(params, jnp.asarray(x)))
        pixels = jax.jit(codec.decode)(params, codec.mode(jnp.asarray(moments)))
        results = dict(moments=moments, pixels=jax.device_get(pixels))
    elif args.mode != "idle":
        options = dict(tile_px=args.tile_px, exact=args.mode != "fast")
        results["moments"] = tiling.encode_tiled(codec, params, x, **options)
        z0 = latents(codec, args.out)
        if args.mode == "tile":
            side = args.tile_px // codec.factor
            z0 = z0[:, :side, :side]
        results["pixels"] = tiling.decode_tiled(codec, params, z0, **options)
    seconds = time.perf_counter() - start
    if results:
        np.savez(args.out, **results)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return dict(peak_mib=round(peak), seconds=round(seconds, 1))


def latents(codec, out: str) -> np.ndarray:
    """The untiled run's latents, so that every mode decodes the same."""
    with np.load(Path(out).with_name("untiled.npz")) as file:
        return np.asarray(codec.mode(file["moments"]))


def difference(folder: Path, mode: str, args, factor: int) -> dict:
    """Largest and root mean square difference of a mode to the untiled results."""
    figures = {}
    with np.load(folder / f"{mode}.npz") as a, np.load(folder / "untiled.npz") as b:
        for name, unit in (("moments", factor), ("pixels", 1)):
            delta = np.abs(a[name].astype(np.float64) - b[name])
            edge = args.border_px // unit
            inner = delta[:, edge:-edge, edge:-edge]
            figures[name] = dict(
                largest=float(delta.max()),
                largest_interior=float(inner.max()),
                rms=float(np.sqrt((delta**2).mean())),
                deviation=float(b[name].std()),
            )
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--height_px", type=int, default=1536)
    parser.add_argument("--width_px", type=int, default=1024)
    parser.add_argument("--tile_px", type=int, default=640)
    parser.add_argument("--border_px", type=int, default=64)
    parser.add_argument("--width", type=int, default=32, help="channels (drawn)")
    parser.add_argument("--trained", action="store_true", help="shipped emoji_kl_f8")
    parser.add_argument("--mode", choices=MODES, help=argparse.SUPPRESS)
    parser.add_argument("--out", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.mode:
        sys.stdout.write(json.dumps(measure(args)))
        return
    report = {key: value for key, value in vars(args).items() if value is not None}
    with tempfile.TemporaryDirectory() as folder:
        for mode in MODES:
            command = [sys.executable, "-m", "benchmarks.tiled_codec", *sys.argv[1:]]
            command += ["--mode", mode, "--out", f"{folder}/{mode}.npz"]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(f"{mode} ended with {done.returncode}:\n{done.stderr}")
            report[mode] = json.loads(done.stdout)
        factor = 8 if args.trained else 4
        for mode in ("exact", "fast"):
            report[mode] |= difference(Path(folder), mode, args, factor)
    for mode in ("exact", "fast"):
        ratio = report[mode]["peak_mib"] / report["tile"]["peak_mib"]
        report[mode]["peak_over_tile"] = round(ratio, 3)
    sys.stdout.write(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
