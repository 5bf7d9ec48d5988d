"""Train the emoji feature network: python -m lDM_jax.tools.train_emoji_features.

    python -m lDM_jax.tools.train_emoji_features --out features.safetensors

Classifies the 99 subgroups of the embedded training emoji on white or colored ground,
mirrored, shifted, tinted and noisy. `assets/emoji_features.safetensors` (f16) was made
by this command with its defaults; its last line tells the accuracy on held-out emoji.
"""

import argparse
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lDM_jax.core.arrays import Array
from lDM_jax.data.sources import EmojiSource
from lDM_jax.models.emoji_features import SIZE_PX, EmojiFeatures
from lDM_jax.tools import make_main
from lDM_jax.weights import directory as weights_directory
from lDM_jax.weights.name_maps import Lazy, as_lazy

SHIFT_PX = 5
PEAK_RATE = 4e-3


def augment(key: Array, pixels: Array) -> Array:
    """uint8 RGBA "S S 4" -> f32 [-1, 1] "S S 3", changed at random."""
    flip, where, ground, color, tint, bright, noise = jax.random.split(key, 7)
    x = pixels.astype(jnp.float32) / 255
    x = jnp.where(jax.random.bernoulli(flip), x[:, ::-1], x)
    padded = jnp.pad(x, ((SHIFT_PX, SHIFT_PX), (SHIFT_PX, SHIFT_PX), (0, 0)))
    top, left = jax.random.randint(where, (2,), 0, 2 * SHIFT_PX + 1)
    x = jax.lax.dynamic_slice(padded, (top, left, 0), x.shape)
    random_color = jax.random.uniform(color, (1, 1, 3))
    background = jnp.where(jax.random.bernoulli(ground, 0.3), random_color, 1.0)
    x = x[:, :, 3:] * x[:, :, :3] + (1 - x[:, :, 3:]) * background
    x = (2 * x - 1) * jax.random.uniform(tint, (1, 1, 3), minval=0.8, maxval=1.2)
    x = x + 0.15 * jax.random.normal(bright, (1, 1, 1))
    return jnp.clip(x + 0.05 * jax.random.normal(noise, x.shape), -1.0, 1.0)


def on_white(pixels: Array) -> Array:
    """uint8 RGBA "n S S 4" on white, f32 [-1, 1] "n S S 3"."""
    x = pixels.astype(jnp.float32) / 255
    return 2 * (x[..., 3:] * x[..., :3] + (1 - x[..., 3:])) - 1


def train(steps: int, batch_size: int, seed: int, report=lambda text: None) -> dict:
    """The trained parameters, f32."""
    source = EmojiSource(split="train", size_px=SIZE_PX)
    pixels = jnp.asarray(np.stack([source[i]["image"] for i in range(len(source))]))
    labels, network = jnp.asarray(source.labels), EmojiFeatures()
    root = jax.random.key(seed)
    blank = jnp.zeros((1, SIZE_PX, SIZE_PX, 3))
    params = network.init(jax.random.fold_in(root, 0), blank)["params"]
    rate = optax.cosine_onecycle_schedule(steps, PEAK_RATE)
    chain = optax.adamw(rate, weight_decay=0.05)

    def loss(params, x, y):
        logits = network.apply({"params": params}, x)["logits"]
        targets = optax.smooth_labels(jax.nn.one_hot(y, logits.shape[-1]), 0.1)
        return optax.softmax_cross_entropy(logits, targets).mean()

    @jax.jit
    def step(params, state, key):
        rows, change = jax.random.split(key)
        indices = jax.random.randint(rows, (batch_size,), 0, len(pixels))
        keys = jax.random.split(change, batch_size)
        x = jax.vmap(augment)(keys, pixels[indices])
        value, grads = jax.value_and_grad(loss)(params, x, labels[indices])
        updates, state = chain.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    state = chain.init(params)
    for index in range(steps):
        params, state, value = step(params, state, jax.random.fold_in(root, index + 1))
        if index % 50 == 0 or index == steps - 1:
            report(f"step {index + 1}/{steps} loss {float(value):.3f}\n")
    return jax.device_get(params)


def accuracy(params: dict, split: str) -> float:
    """Share of a split's emoji on white whose subgroup comes first."""
    source = EmojiSource(split=split, size_px=SIZE_PX)
    apply, right = jax.jit(EmojiFeatures().apply), 0
    for start in range(0, len(source), 64):
        indices = range(start, min(start + 64, len(source)))
        x = on_white(np.stack([source[i]["image"] for i in indices]))
        logits = apply({"params": params}, x)["logits"]
        right += int((logits.argmax(1) == source.labels[start : start + 64]).sum())
    return right / len(source)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("--out", required=True, help="the safetensors file, f16")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)


def run(args: argparse.Namespace) -> dict:
    """Train, write the file; returns the accuracy on both splits."""
    params = train(args.steps, args.batch, args.seed, sys.stderr.write)
    lazy: dict[str, Lazy] = {"/".join(k): v for k, v in as_lazy(params).items()}
    weights_directory.write_tensors(Path(args.out), lazy, dtype=np.dtype(np.float16))
    shares = {split: round(accuracy(params, split), 4) for split in ("train", "test")}
    return {"steps": args.steps, "accuracy": shares}


main = make_main("train_emoji_features", __doc__, arguments, run)

if __name__ == "__main__":
    sys.exit(main())
