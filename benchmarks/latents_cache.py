"""What a latents cache saves: seconds of a training step with images, with moments.

    python -m benchmarks.latents_cache [--config configs/emoji.py] [--steps 20]
    python -m benchmarks.latents_cache --config configs/celebahq_ldm4.py \\
        --batch_size 1 --steps 1

The second stage of the config at full width takes `steps` updates on random batches,
with random weights, after one that is not counted (it compiles). Batches are in memory:
decoding of files, which a cache saves too, is not counted. The mean of the steps is
printed as JSON, with the ratio of both.
"""

import argparse
import json
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from lDM_jax.from_config import networks
from lDM_jax.from_config.config_file import read_config
from lDM_jax.from_config.task_settings import task_of, task_settings
from lDM_jax.tasks.registry import example_shapes
from lDM_jax.training import build


def first_stage(config):
    """(codec, params): those of config.first_stage.path, else drawn."""
    if config.first_stage.path:
        return networks.first_stage(config)
    codec = networks.abstract_codec(config)
    x = jnp.zeros((1, 64, 64, 3))
    return codec, jax.jit(codec.autoencoder.init)(jax.random.key(0), x)


def batches(config, codec, rows: int) -> dict[str, dict]:
    """The same conditions with images and with moments."""
    rng, size = np.random.default_rng(0), config.data.size_px
    shapes = example_shapes(task_of(config), task_settings(config), rows=rows)
    conditions = {name: np.zeros(s.shape, s.dtype) for name, s in shapes.items()}
    height, width, channels = codec.latent_shape(size, size)
    channels *= 2 if codec.autoencoder.is_kl else 1
    moments = rng.standard_normal((rows, height, width, channels)).astype(np.float32)
    x = rng.uniform(-1, 1, (rows, size, size, 3)).astype(np.float32)
    return {
        "pictures": {**conditions, "image": x},
        "cache": {**conditions, "moments": moments},
    }


def seconds(config, codec, params, batch: dict, steps: int) -> float:
    """Mean time of an update."""
    stage = build.diffusion_stage(config, codec)
    frozen = networks.frozen(config, params)
    update = jax.jit(stage.step, donate_argnums=0)
    state = jax.jit(stage.init)(jax.random.key(0))
    state, scalars = update(state, frozen, batch, jax.random.key(0))
    jax.block_until_ready(scalars)
    started = time.perf_counter()
    for step in range(steps):
        state, scalars = update(state, frozen, batch, jax.random.key(step))
        jax.block_until_ready(scalars)
    return (time.perf_counter() - started) / steps


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="configs/emoji.py")
    parser.add_argument("--batch_size", type=int, default=0, help="0: the config's")
    parser.add_argument("--steps", type=int, default=20)
    args = parser.parse_args()
    config = read_config(args.config, [])
    rows = args.batch_size or config.train.batch_size
    codec, params = first_stage(config)
    secs = {
        name: seconds(config, codec, params, batch, args.steps)
        for name, batch in batches(config, codec, rows).items()
    }
    result = {"config": args.config, "batch_size": rows, "steps": args.steps}
    result |= {f"{name} s/step": round(value, 4) for name, value in secs.items()}
    result["speed-up"] = round(secs["pictures"] / secs["cache"], 3)
    sys.stdout.write(json.dumps(result) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
