"""Side by side with diffusers on PyTorch: same weights, same precision, same batch.

    python -m benchmarks.peers emoji
    python -m benchmarks.peers celebahq --batch 1 --steps 2 --repeats 3
    python -m benchmarks.peers celebahq --measure encode decode --size_px 512

Cases: training steps of the UNet (loss, gradients, AdamW, EMA; of the small network
sixteen in a row, without waiting in between, as a training loop has them), a guided or
plain DDIM trajectory, encoding and decoding by the first stage. Both programs hold the
same random weights, and their predictions are compared first. They take turns,
`repeats` times after two runs each that compile and warm up. A turn is one run; where
that takes less than a second, as many as fit in half of one, after one that is not
counted. A line has both medians over the turns' own, of one step in training, their
ratio (above 1: ours is faster), and that of the least times, which a machine shared
with others disturbs less. `--compile` puts PyTorch's networks through torch.compile. On
a CUDA GPU both run there, `--bf16` in bfloat16. On Linux both have huge pages
(`lDM_jax/core/startup.py`) unless GLIBC_TUNABLES is set.
"""

import argparse
import copy
import importlib
import json
import statistics
import sys
import time
from collections.abc import Callable

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch

from lDM_jax.core.arrays import Cond
from lDM_jax.core.startup import prepare
from lDM_jax.diffusion import samplers
from lDM_jax.diffusion.guidance import classifier_free
from lDM_jax.from_config import networks
from lDM_jax.interop import first_stage_settings, names
from lDM_jax.interop.diffusers import settings as diffusers_settings
from lDM_jax.weights import name_maps

# the config, its first stage, images and training steps of a run
CONFIGS = {
    "emoji": ("emoji", "emoji_autoencoder", 32, 16),
    "celebahq": ("celebahq_ldm4", "vq_f4", 1, 1),
    "imagenet": ("imagenet_class_ldm4", "vq_f4", 1, 1),
}
SHORT_SECS = 1.0
TURN_SECS = 0.5  # of runs that are shorter than SHORT_SECS
PAUSE_SECS = 0.3
TEXT_TOKENS = {"text": 24, "class": 1}


class Case:
    """The networks of a config in both programs, with the same weights."""

    def __init__(self, name: str, *, batch: int, options: argparse.Namespace):
        config_name, first_stage, own_batch, self.in_a_row = CONFIGS[name]
        self.config = load(config_name)
        self.batch, self.options = batch or own_batch, options
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.dtype = torch.bfloat16 if options.bf16 else torch.float32
        dtype = "bfloat16" if options.bf16 else "float32"
        self.config.unet.dtype = dtype
        autoencoder = load(first_stage).autoencoder.to_dict()
        self.stage = networks.autoencoder({**autoencoder, "dtype": dtype})
        self.stage_torch, self.stage_params = self._first_stage(autoencoder)
        channels = self.stage.latent_channels
        self.side = self.config.data.size_px // self.stage.factor
        self.unet = networks.unet(self.config.unet, out_channels=channels)
        self.unet_torch, self.params = self._unet(channels)
        rng = np.random.default_rng(0)
        self.z = rng.standard_normal((self.batch, self.side, self.side, channels))
        self.t = rng.integers(0, 1000, self.batch)
        self.context = None
        if self.config.unet.context_width:
            tokens = TEXT_TOKENS[self.config.task], self.config.unet.context_width
            self.context = rng.standard_normal((self.batch, *tokens))

    def _unet(self, channels: int):
        plain = diffusers_settings.to_unet(
            self.config.unet.to_dict(),
            in_channels=channels,
            out_channels=channels,
            sample_size=self.side,
        )
        network = made(plain)
        table = names.diffusers_unet_names(self.unet, channels)
        return self._on_device(network), converted(network, table)

    def _first_stage(self, section: dict):
        size = self.config.data.size_px
        plain = first_stage_settings.to_diffusers_first_stage(
            section, scale=1.0, size_px=size
        )
        network = made(plain)
        table = names.diffusers_autoencoder_names(self.stage)
        return self._on_device(network), converted(network, table)

    def _on_device(self, network):
        network = network.to(self.device)
        return torch.compile(network) if self.options.compile else network

    def cond(self, rows: int) -> Cond:
        if self.context is None:
            return Cond()
        return Cond(context=jnp.asarray(self.context[:rows], jnp.float32))

    def torch_unet(self, z, t):
        """diffusers' prediction "b c h w"."""
        if self.context is None:
            return self.unet_torch(z, t).sample
        context = tensor(self.context[: len(z)], self.device)
        return self.unet_torch(z, t, context).sample

    def autocast(self):
        """What makes PyTorch compute in bf16."""
        return torch.autocast(self.device, torch.bfloat16, enabled=self.options.bf16)


def load(name: str):
    return importlib.import_module(f"configs.{name}").get_config().unlock()


def made(plain: dict):
    """diffusers' network of a config, with drawn weights where zeros begin."""
    torch.manual_seed(0)
    network = getattr(diffusers, plain["_class_name"]).from_config(plain).eval()
    for parameter in network.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)
    return network


def converted(network, table) -> dict:
    """Our parameters of the same weights."""
    state = {k: v.detach().numpy() for k, v in network.state_dict().items()}
    return jax.device_put(name_maps.from_original(state, table))


def tensor(x, device) -> torch.Tensor:
    return torch.tensor(np.asarray(x), dtype=torch.float32, device=device)


def first(x) -> torch.Tensor:
    """Channels last -> channels first."""
    return x.permute(0, 3, 1, 2).contiguous()


def check(case: Case) -> float:
    """The largest difference of the predictions, relative to their deviation."""
    rows = min(case.batch, 2)
    ours = case.unet.apply(
        case.params,
        jnp.asarray(case.z[:rows], jnp.float32),
        jnp.asarray(case.t[:rows], jnp.int32),
        case.cond(rows),
    )
    with torch.no_grad(), case.autocast():
        z = first(tensor(case.z[:rows], case.device))
        theirs = case.torch_unet(z, torch.tensor(case.t[:rows], device=case.device))
    theirs = theirs.permute(0, 2, 3, 1).float().cpu().numpy()
    return float(np.abs(np.asarray(ours) - theirs).max() / theirs.std())


def training(case: Case) -> tuple[Callable, Callable]:
    """(ours, theirs): updates of UNet and EMA, squared error of random targets."""
    target = np.random.default_rng(1).standard_normal(case.z.shape)
    return our_training(case, target), their_training(case, target)


def our_training(case: Case, target) -> Callable:
    optimizer = optax.adamw(1e-6, weight_decay=0.01)
    cond = case.cond(case.batch)
    z, t = jnp.asarray(case.z, jnp.float32), jnp.asarray(case.t, jnp.int32)
    y = jnp.asarray(target, jnp.float32)

    def step(state):
        params, ema, opt_state = state

        def loss(params):
            return ((case.unet.apply(params, z, t, cond, True) - y) ** 2).mean()

        updates, opt_state = optimizer.update(jax.grad(loss)(params), opt_state, params)
        params = optax.apply_updates(params, updates)
        ema = jax.tree.map(lambda e, p: e + 0.0001 * (p - e), ema, params)
        return params, ema, opt_state

    # copies: the state is donated, the case's own parameters are not
    params, ema = (jax.tree.map(jnp.array, case.params) for _ in range(2))
    box = [(params, ema, optimizer.init(params))]
    compiled = jax.jit(step, donate_argnums=0)

    def run():
        for _ in range(case.in_a_row):
            box[0] = compiled(box[0])
        jax.block_until_ready(box[0])

    return run


def their_training(case: Case, target) -> Callable:
    network = case.unet_torch
    ema = [parameter.detach().clone() for parameter in network.parameters()]
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-6, weight_decay=0.01)
    z, y = (first(tensor(x, case.device)) for x in (case.z, target))
    t = torch.tensor(case.t, device=case.device)

    def step():
        with case.autocast():
            loss = torch.nn.functional.mse_loss(case.torch_unet(z, t).float(), y)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(ema, list(network.parameters()), 0.0001)

    def run():
        network.train()
        for _ in range(case.in_a_row):
            step()
        wait(case)
        network.eval()

    return run


def sampling(case: Case) -> tuple[Callable, Callable]:
    """(ours, theirs): a DDIM trajectory, guided (scale 3) where there is a context.

    Of the discrete process, which both programs have, whatever the config trains.
    """
    steps, rows = case.options.steps, case.options.rows
    z_T = np.random.default_rng(2).standard_normal((rows, *case.z.shape[1:]))  # noqa: N806
    section = {**case.config.process, "kind": "discrete"}
    process = networks.make_process(**section)
    grid, cond = process.grid(steps), case.cond(rows)

    @jax.jit
    def trajectory(params, z, cond):
        def network(z, t, cond):
            return case.unet.apply(params, z, t, cond)

        if cond.context is None:
            denoise = lambda z, t: network(z, t, cond)  # noqa: E731
        else:
            null = cond.replace(context=0 * cond.context)
            denoise = classifier_free(network, cond, null, 3.0)
        return samplers.sample(denoise, z, process, grid=grid)

    def ours():
        z = jnp.asarray(z_T, jnp.float32)
        jax.block_until_ready(trajectory(case.params, z, cond))

    settings = diffusers_settings.to_scheduler(section)
    scheduler = diffusers.DDIMScheduler.from_config(settings)

    @torch.no_grad()
    def theirs():
        scheduler.set_timesteps(steps, device=case.device)
        z = first(tensor(z_T, case.device))
        with case.autocast():
            for t in scheduler.timesteps:
                z = scheduler.step(their_prediction(case, z, t), t, z).prev_sample
        wait(case)

    return ours, theirs


def their_prediction(case: Case, z, t):
    """Guided as our trajectory is."""
    if case.context is None:
        return case.unet_torch(z, t).sample
    context = tensor(case.context[: len(z)], case.device)
    both = torch.cat([torch.zeros_like(context), context])
    weak, strong = case.unet_torch(torch.cat([z, z]), t, both).sample.chunk(2)
    return weak + 3.0 * (strong - weak)


def codec(case: Case, kind: str) -> tuple[Callable, Callable]:
    """(ours, theirs): the first stage's encoder or decoder."""
    rows, size = case.options.rows, case.options.size_px or case.config.data.size_px
    rng, side = np.random.default_rng(3), size // case.stage.factor
    x = rng.uniform(-1, 1, (rows, size, size, 3))
    z = rng.standard_normal((rows, side, side, case.stage.latent_channels))
    given = jnp.asarray(x if kind == "encode" else z, jnp.float32)
    method = "moments" if kind == "encode" else "decode"
    apply = jax.jit(lambda params, x: case.stage.apply(params, x, method=method))

    def ours():
        jax.block_until_ready(apply(case.stage_params, given))

    network = case.stage_torch
    moved = first(tensor(np.asarray(given), case.device))
    options = {} if case.stage.is_kl else {"force_not_quantize": True}

    @torch.no_grad()
    def theirs():
        with case.autocast():
            if kind == "encode":
                network.encode(moved)
            else:
                network.decode(moved, **options)
        wait(case)

    return ours, theirs


def wait(case: Case) -> None:
    if case.device == "cuda":
        torch.cuda.synchronize()


def seconds(run: Callable) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def settled(run: Callable, *, in_a_row: int) -> list[float]:
    """Seconds of each of some runs in a row, after a pause; of several, not the first.

    After its work a program's threads go on spinning for a while, on cores that the
    other one wants, and the caches hold the other's weights.
    """
    time.sleep(PAUSE_SECS)
    if in_a_row > 1:
        run()
    return [seconds(run) for _ in range(in_a_row)]


def race(pair: tuple[Callable, Callable], repeats: int, *, steps: int = 1) -> dict:
    """Medians of both, of one of a run's steps, taking turns.

    After two runs each that are not counted.
    """
    first_runs = [seconds(run) for run in pair]
    longest = max(seconds(run) for run in pair)
    in_a_row = max(2, int(TURN_SECS / longest)) if longest < SHORT_SECS else 1
    turns = [[settled(run, in_a_row=in_a_row) for run in pair] for _ in range(repeats)]
    columns = tuple(zip(*turns, strict=True))
    ours, theirs = (statistics.median(map(statistics.median, c)) for c in columns)
    least, their_least = (min(map(min, column)) for column in columns)
    return {
        "ours_secs": round(ours / steps, 4),
        "theirs_secs": round(theirs / steps, 4),
        "ratio": round(theirs / ours, 3),
        "ratio_of_least": round(their_least / least, 3),
        "first_run_secs": [round(value, 2) for value in first_runs],
    }


MEASURES = {
    "train": training,
    "sample": sampling,
    "encode": lambda case: codec(case, "encode"),
    "decode": lambda case: codec(case, "decode"),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", choices=tuple(CONFIGS))
    parser.add_argument("--measure", nargs="+", choices=tuple(MEASURES))
    parser.add_argument("--batch", type=int, default=0, help="of the training step")
    parser.add_argument("--rows", type=int, default=1, help="images of the others")
    parser.add_argument("--size_px", type=int, default=0, help="of encode and decode")
    parser.add_argument("--steps", type=int, default=50, help="of the trajectory")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--compile", action="store_true")
    options = parser.parse_args()
    case = Case(options.config, batch=options.batch, options=copy.copy(options))
    sys.stdout.write(json.dumps({"prediction_difference": check(case)}) + "\n")
    for name in options.measure or MEASURES:
        train = name == "train"
        steps = case.in_a_row if train else 1
        found = race(MEASURES[name](case), options.repeats, steps=steps)
        rows = case.batch if train else options.rows
        line = {"config": options.config, "measure": name, "rows": rows, **found}
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    prepare()
    sys.exit(main())
