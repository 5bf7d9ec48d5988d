"""What a run tells: norms, errors by time, Weights & Biases, figures of samples."""

import importlib.util
import json
import sys
from types import ModuleType, SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lDM_jax.core import rng
from lDM_jax.core.errors import UserError
from lDM_jax.core.sharding import make_mesh
from lDM_jax.diffusion.codec import Codec
from lDM_jax.diffusion.latent_diffusion import LatentDiffusion
from lDM_jax.diffusion.process import Process
from lDM_jax.evaluation import tracking
from lDM_jax.models.autoencoder import Identity
from lDM_jax.models.conditioners import Conditioner
from lDM_jax.training import experiment as experiment_lib
from lDM_jax.training import loop
from lDM_jax.training.diffusion import DiffusionStage
from lDM_jax.training.optim import make_optimizer
from lDM_jax.training.state import Averages
from tests import toy_run


def metrics(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


class Service(ModuleType):
    """Stands for wandb: remembers what it is told."""

    def __init__(self):
        super().__init__("wandb")
        self.__spec__ = importlib.util.spec_from_loader("wandb", None)
        self.started, self.logged, self.finished = [], [], 0

    def init(self, **options):
        self.started.append(options)
        log = lambda values, step: self.logged.append((step, values))  # noqa: E731
        return SimpleNamespace(log=log, finish=self.finish)

    def finish(self):
        self.finished += 1


def test_wandb_gets_what_tensorboard_gets_and_one_run_is_one_run(tmp_path, monkeypatch):
    service = Service()
    monkeypatch.setitem(sys.modules, "wandb", service)
    here = tmp_path / "toy"
    for end in (20, 40):
        settings = toy_run.config(num_steps=end, wandb="ldm", eval_every_steps=40)
        loop.run(toy_run.experiment(settings), str(here), mesh=make_mesh())
    first, second = service.started
    assert first["project"] == "ldm" and first["name"] == "toy"
    assert first["id"] == second["id"] and second["resume"] == "allow"
    assert first["config"]["train"]["wandb"] == "ldm"
    assert "jax" in first["config"]["versions"]
    assert service.finished == 2
    steps = [step for step, values in service.logged if "train/loss" in values]
    assert steps == [10, 20, 30, 40]
    written = {line["step"]: line["loss"] for line in metrics(here) if "loss" in line}
    for step, values in service.logged:
        if "train/loss" in values:
            assert values["train/loss"] == written[step]
    assert any("eval/eval_distance" in values for _, values in service.logged)


def test_wandb_is_missed_only_by_those_who_ask_for_it(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    asked = toy_run.experiment(toy_run.config(num_steps=10, wandb="ldm"))
    with pytest.raises(UserError, match="pip install wandb"):
        loop.run(asked, str(tmp_path / "a"), mesh=make_mesh())
    plain = toy_run.experiment(toy_run.config(num_steps=10))
    assert loop.run(plain, str(tmp_path / "b"), mesh=make_mesh()) == 0


def test_wandb_that_does_not_start_is_one_line(tmp_path, monkeypatch):
    service = Service()

    def init(**options):
        raise ConnectionError("no\nnetwork")

    service.init = init
    monkeypatch.setitem(sys.modules, "wandb", service)
    asked = toy_run.experiment(toy_run.config(num_steps=10, wandb="ldm"))
    with pytest.raises(UserError, match=r"no network.*WANDB_MODE=offline"):
        loop.run(asked, str(tmp_path / "a"), mesh=make_mesh())


class Small(nn.Module):
    """A denoiser that compiles in a second."""

    @nn.compact
    def __call__(self, z, t, cond, train=False):
        del cond, train
        shift = nn.Dense(4)(jnp.cos(t[:, None] / 300.0))
        return nn.Conv(z.shape[-1], (3, 3))(z) + shift[:, None, None].mean(
            -1, keepdims=True
        )


def small_stage(log_variance=False, **options):
    model = LatentDiffusion(
        Small(),
        Conditioner(),
        Process.discrete(),
        Codec(Identity()),
        log_variance=log_variance,
    )
    optimizer, _ = make_optimizer(learning_rate=0.01, clip_norm=0.1)
    shape = dict(latent_shape=(4, 4, 3), drop_rate=0.0)
    return DiffusionStage(model, optimizer, conditions={}, **shape, **options)


@pytest.mark.parametrize("parts", [1, 4])
def test_a_step_reports_norms_and_errors_by_time(parts):
    """Each from its definition: differences of states, and the plain error again."""
    stage = small_stage(accumulate_steps=parts)
    z = jax.random.normal(jax.random.key(5), (64, 4, 4, 3))
    state, key = stage.init(jax.random.key(0)), jax.random.key(1)
    after, scalars = jax.jit(stage.step)(state, {}, {"moments": z}, key)
    process = Process.discrete()
    t = process.sample_times(rng.stream(key, "time"), 64)
    eps = jax.random.normal(rng.stream(key, "noise"), z.shape)
    z0 = Codec(Identity()).sample(z, rng.stream(key, "latent"))
    z_t = process.q_sample(z0, eps, t)
    said = Small().apply(state.params["unet"], z_t, t, None)
    error = np.asarray(((said - eps) ** 2).mean(axis=(1, 2, 3)))
    assert float(scalars["error"]) == pytest.approx(error.mean(), rel=1e-5)
    for k, place in enumerate(("0.00", "0.25", "0.50", "0.75")):
        rows = np.asarray(t) // 250 == k
        wanted = pytest.approx(error[rows].mean(), rel=1e-5)
        assert float(scalars[f"error/t{place}"]) == wanted
    for name, tree in (
        ("norm/parameters", after.params),
        ("norm/update", jax.tree.map(jnp.subtract, after.params, state.params)),
    ):
        square = sum(float((leaf**2).sum()) for leaf in jax.tree.leaves(tree))
        # differences of parameters lose digits that the update has
        assert float(scalars[name]) == pytest.approx(square**0.5, rel=1e-4)
    assert float(scalars["gnorm"]) > 0.1  # before clipping


def test_the_log_variance_is_trained_with_the_network():
    stage = small_stage(log_variance=True, averages=Averages(stds=(0.05,)))
    z = jax.random.normal(jax.random.key(5), (64, 4, 4, 3))
    state, step = stage.init(jax.random.key(0)), jax.jit(stage.step)
    losses = []
    for number in range(60):
        state, scalars = step(state, {}, {"moments": z}, jax.random.key(number))
        losses.append(float(scalars["loss"]) - float(scalars["error"]))
    assert losses[0] == pytest.approx(0, abs=1e-6)  # u = 0: the plain loss
    u = state.params["log_variance"]["coefficients"]
    assert float(jnp.abs(u).min()) > 0
    assert state.profiles[0].keys() == state.params.keys()
    held = [{"moments": np.asarray(z), "weight": np.ones(64)}]
    figures = stage.evaluate(state, {}, held)
    assert {"loss", "error", "error/t0.75"} <= figures.keys()
    assert figures["loss"] < figures["error"]  # 1 + ln e <= e, wherever e is not 1


def test_tracking_is_refused_where_it_makes_no_sense(tmp_path):
    assert tracking.judge_of(SimpleNamespace(config=make_config()), tmp_path) is None
    config = make_config(task="layout", fd_every_steps=10)
    with pytest.raises(UserError, match="valid: 0"):
        tracking.judge_of(SimpleNamespace(config=config), tmp_path)


def make_config(task="text", fd_every_steps=0):
    config = importlib.import_module("configs.emoji").get_config("smoke").unlock()
    config.task, config.train.fd_every_steps = task, fd_every_steps
    return config


@pytest.mark.slow
def test_tracked_figures_are_those_of_the_evaluation_tool(tmp_path, capsys):
    from lDM_jax.tools import evaluate

    config = make_config(fd_every_steps=4)
    config.train.update(dict(num_steps=8, fd_images=24, batch_size=8))
    config.train.eval_every_steps = 8
    config.train.update(dict(keep_best=1, best_metric="fd_emoji"))
    config.train.checkpoint_every_steps = 8
    made = experiment_lib.make(config)
    workdir = tmp_path / "run"
    made.judge = tracking.judge_of(made, workdir)
    loop.run(made, str(workdir), mesh=make_mesh())
    seen = {
        k["step"]: k["eval_fd_emoji"] for k in metrics(workdir) if "eval_fd_emoji" in k
    }
    assert set(seen) == {4, 8} and seen[4] != seen[8]
    assert [path.name for path in (workdir / "tracking").iterdir()] == ["features"]
    arguments = [
        "generate",
        "--workdir",
        str(workdir),
        "--num",
        "24",
        "--bootstrap",
        "0",
    ]
    arguments += ["--out", str(tmp_path / "out"), "--extractor", "emoji"]
    capsys.readouterr()
    assert evaluate.main([*arguments, "--figures", "frechet"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    # The same samples and features; batches of another size round differently.
    assert found["fd_emoji"] == pytest.approx(seen[8], rel=1e-3)
