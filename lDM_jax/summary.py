"""What `train.py --dry_run` prints: config, parameter table, shapes, memory.

Everything is abstract (jax.eval_shape): no parameter is allocated and no data read, so
that the largest published model is summarised on any machine.
"""

import math

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from lDM_jax import build, tasks
from lDM_jax.arrays import UserError

# Parameters, their EMA and Adam's two moments, f32 each.
STATE_BYTES_PER_PARAM = 16


def summary(config: ConfigDict) -> str:
    """The text of `--dry_run`. Raises UserError exactly where training would."""
    if config.stage == "autoencoder":
        shapes, lines = autoencoder_shapes(config)
    elif config.stage == "diffusion":
        shapes, lines = diffusion_shapes(config)
    else:
        raise UserError(
            f"config.stage = {config.stage!r}; valid: autoencoder, diffusion"
        )
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
    state_gib = count * STATE_BYTES_PER_PARAM / 2**30
    table = parameter_table(shapes)
    return "\n".join(
        [
            config.to_json_best_effort(indent=2),
            "",
            *table,
            f"{'total':<40}{count:>16,}   {count / 1e6:.3f}M",
            "",
            *lines,
            f"training state (parameters, EMA, two moments, f32): {state_gib:.2f} GiB",
        ]
    )


def autoencoder_shapes(config: ConfigDict) -> tuple[dict, list[str]]:
    """(abstract parameters, shape lines) of stage 1."""
    network = build.autoencoder(config.autoencoder)
    build.check_pixels(config, network.factor)
    build.optimizer(config)
    size, batch = config.data.size_px, config.train.batch_size
    x = jax.ShapeDtypeStruct((batch, size, size, network.image_channels), jnp.float32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    shapes = jax.eval_shape(network.init, key, x)
    moments = jax.eval_shape(
        lambda params, x: network.apply(params, x, method="moments"), shapes, x
    )
    lines = [f"image {x.shape} -> moments {moments.shape}, f = {network.factor}"]
    adversary = build.adversary(config)
    if adversary is not None:
        player = jax.eval_shape(adversary.network.init, key, x)["params"]
        count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(player))
        lines.append(
            f"discriminator: {count / 1e6:.3f}M parameters beside these, awake from "
            f"step {adversary.start_steps}"
        )
    if config.loss.perceptual_weight:
        lines.append("LPIPS (VGG16, 14.715M parameters) in the loss, frozen")
    return shapes, lines


def diffusion_shapes(config: ConfigDict) -> tuple[dict, list[str]]:
    """(abstract parameters, shape lines) of stage 2."""
    codec = build.abstract_codec(config)
    build.check_pixels(config, codec.factor)
    build.optimizer(config)
    size, batch = config.data.size_px, config.train.batch_size
    latent_shape = codec.latent_shape(size, size)
    model = build.model(config, codec)
    rows = tasks.example_shapes(
        tasks.get_task(config.task), build.tokenizer(config), rows=batch
    )
    key = jax.eval_shape(lambda: jax.random.key(0))
    z = jax.ShapeDtypeStruct((batch, *latent_shape), jnp.float32)
    shapes = jax.eval_shape(model.init, key, rows, z)
    lines = [f"image ({batch}, {size}, {size}, 3) -> latents {z.shape}"]
    lines += [f"{name} {row.shape}" for name, row in rows.items()]
    return shapes, lines


def parameter_table(shapes: dict, *, depth: int = 3) -> list[str]:
    """One line a module at `depth`: name, parameters."""
    sums: dict[str, int] = {}
    for names, leaf in flatten_dict(shapes).items():
        parts = [name for name in names[:-1] if name != "params"][:depth]
        group = "/".join(parts[:2]) or names[-1]
        sums[group] = sums.get(group, 0) + math.prod(leaf.shape)
    return [f"{name:<40}{count:>16,}" for name, count in sums.items()]
