"""Twenty steps of stage 2 beside PyTorch: loss, AdamW and EMA, step by step.

The torch side is diffusers' UNet with its own class embedding, torch.optim.AdamW, the
schedule's cumulative products in torch and the original's EMA. Ours is the real `step`
of `training.diffusion`; batches, times, noise and drops are ours and handed to torch,
drawn again from the same keys. Eight channels or more a group: a bias before a norm of
one channel a group has no gradient but rounding, which Adam would blow up.
"""

import warnings

import jax
import numpy as np
import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    torch = pytest.importorskip("torch", reason="needs requirements-dev.txt")
    diffusers = pytest.importorskip("diffusers", reason="needs requirements-dev.txt")
    from tests.reference.record_diffusers import first, shapes

from lDM_jax.core import rng
from lDM_jax.diffusion import latent_diffusion
from lDM_jax.diffusion.codec import Codec
from lDM_jax.diffusion.process import Process
from lDM_jax.interop import names
from lDM_jax.models.autoencoder import Identity
from lDM_jax.models.conditioners import AsItIs, ClassConditioner, Conditioner
from lDM_jax.models.unet import UNet
from lDM_jax.training import diffusion as stage2
from lDM_jax.training.optim import make_optimizer
from lDM_jax.training.state import Averages, TrainState
from lDM_jax.weights.name_maps import from_original, to_original
from tests.reference import rule

pytestmark = [
    pytest.mark.live,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

STEPS, ROWS, CLASSES, RATE, DECAY, EMA_DECAY = 20, 4, 10, 1e-3, 0.01, 0.9999
DROP_RATE = 0.3
ROOT = jax.random.key(7)
EMBEDDING = "class_embedding.weight"


def torch_unet() -> torch.nn.Module:
    """Class vector and cross-attention; weights by the rule."""
    model = diffusers.UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(32, 64),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=24,
        attention_head_dim=4,
        norm_num_groups=4,
        num_class_embeds=CLASSES + 1,
    )
    weights = rule.draw(shapes(model), "training/")
    model.load_state_dict({name: torch.tensor(v) for name, v in weights.items()})
    return model.train()


def batch_of(step: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(step)
    return {
        "moments": rule.noise(f"z{step}", (ROWS, 8, 8, 4)),
        "embeddings": rule.noise(f"context{step}", (ROWS, 5, 24)),
        "label": generator.integers(0, CLASSES, ROWS).astype(np.int32),
    }


def draws(process: Process, step: int) -> tuple[np.ndarray, ...]:
    """(times, noise, dropped rows) of a step, as `training.diffusion` draws them."""
    key = rng.key(ROOT, "step", step)
    t = process.sample_times(rng.stream(key, "time"), ROWS)
    eps = jax.random.normal(rng.stream(key, "noise"), (ROWS, 8, 8, 4))
    drop = jax.random.bernoulli(rng.stream(key, "drop"), DROP_RATE, (ROWS,))
    return tuple(np.array(value) for value in (t, eps, drop))


def torch_training(process: Process) -> tuple[list[float], dict, dict]:
    """(losses, start, EMA) by plain torch."""
    model = torch_unet()
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    average = {name: value.clone() for name, value in start.items()}
    optimizer = torch.optim.AdamW(model.parameters(), RATE, weight_decay=DECAY)
    betas = torch.linspace(0.0015**0.5, 0.0195**0.5, 1000, dtype=torch.float64) ** 2
    products = torch.cumprod(1 - betas, 0)
    losses = []
    for step in range(STEPS):
        batch = batch_of(step)
        t, noise, drop = (torch.from_numpy(value) for value in draws(process, step))
        noise = first(noise.numpy())
        context = torch.from_numpy(batch["embeddings"]) * ~drop[:, None, None]
        label = torch.where(drop, CLASSES, torch.from_numpy(batch["label"]))
        signal = products[t].float()[:, None, None, None]
        z_t = signal**0.5 * first(batch["moments"]) + (1 - signal) ** 0.5 * noise
        eps = model(z_t, t, encoder_hidden_states=context, class_labels=label).sample
        loss = torch.nn.functional.mse_loss(eps, noise)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
        decay = min(EMA_DECAY, (2 + step) / (11 + step))
        with torch.no_grad():
            for name, p in model.named_parameters():
                average[name] -= (1 - decay) * (average[name] - p)
    return losses, start, average


def our_training(process: Process, start: dict) -> tuple[list[float], dict]:
    """(losses, EMA by diffusers' names) by the real step."""
    unet = UNet(4, 32, (1, 2), 1, (1,), num_heads=4, context_width=24, num_groups=4)
    routes = ("embeddings", "tower", "context"), ("label", "class", "vector")
    encoders = {
        "tower": AsItIs(),
        "class": ClassConditioner(CLASSES, 128, as_vector=True),
    }
    model = latent_diffusion.LatentDiffusion(
        unet, Conditioner(routes, encoders), process, Codec(Identity())
    )
    optimizer, _ = make_optimizer(learning_rate=RATE, weight_decay=DECAY)
    stage = stage2.DiffusionStage(
        model,
        optimizer,
        conditions=batch_of(0),
        latent_shape=(8, 8, 4),
        drop_rate=DROP_RATE,
        averages=Averages(EMA_DECAY),
    )
    table = names.diffusers_unet_names(unet)
    entries = {name: value.numpy() for name, value in start.items()}
    embedding = {"embed": {"embedding": entries.pop(EMBEDDING)}}
    params = {
        "unet": from_original(entries, table),
        "conditioner": {"params": {"encoders_class": embedding}},
    }
    wanted = jax.eval_shape(stage.init, ROOT).params
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, wanted)
    state = TrainState.create(params, optimizer)
    advance, losses = rule.fast_jit(stage.step), []
    for step in range(STEPS):
        key = rng.key(ROOT, "step", step)
        state, scalars = advance(state, {"first_stage": {}}, batch_of(step), key)
        losses.append(float(scalars["loss"]))
    embedding = state.ema["conditioner"]["params"]["encoders_class"]["embed"]
    ema = to_original(state.ema["unet"], table)
    return losses, ema | {EMBEDDING: np.asarray(embedding["embedding"])}


def test_twenty_steps():
    """Losses within 1e-4 (found: 2e-6), the way of the EMA within 1e-3 (found: 2e-5).

    Adam divides small gradients' rounding by its own size, hence the second's margin.
    """
    process = Process.discrete()
    expected, start, average = torch_training(process)
    losses, ema = our_training(process, start)
    np.testing.assert_allclose(losses, expected, rtol=1e-4)
    assert expected[-1] < 0.8 * expected[0]
    assert ema.keys() == average.keys()
    error = moved = 0.0
    for name, value in average.items():
        theirs = value.numpy() - start[name].numpy()
        ours = np.asarray(ema[name]) - start[name].numpy()
        error += np.sum((ours - theirs) ** 2, dtype=np.float64)
        moved += np.sum(theirs**2, dtype=np.float64)
    assert error**0.5 < 1e-3 * moved**0.5, (error / moved) ** 0.5
