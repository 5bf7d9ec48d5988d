"""Averages made after the run, against averages that were tracked on the way."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lDM_jax.core.errors import UserError
from lDM_jax.core.sharding import make_mesh
from lDM_jax.tools import reconstruct_ema
from lDM_jax.training import loop
from lDM_jax.training.posthoc_ema import Profile, inner, reconstruct, solve
from lDM_jax.training.state import (
    Averages,
    TrainState,
    apply_gradients,
    averaging,
    power_exponent,
    with_profiles,
)
from lDM_jax.weights.checkpoint import (
    ALL,
    SNAPSHOTS,
    Checkpoints,
    load_snapshot,
    load_state,
)
from tests import toy_run

STDS = (0.05, 0.10)
UPDATES, EVERY, WIDTH = 480, 40, 200


def run(std):
    """Averages of width `std` of a random walk with a drift, after every update."""
    generator = np.random.default_rng(0)
    steps = generator.standard_normal((UPDATES, WIDTH)).astype(np.float32)
    walk = jnp.asarray(np.cumsum(steps + 0.05, axis=0))
    update = averaging(0.0, std)

    def one(ema, row):
        ema = update(ema, row[1], row[0])
        return ema, ema

    numbered = jnp.arange(1, UPDATES + 1), walk
    return np.asarray(jax.lax.scan(one, jnp.zeros(WIDTH), numbered)[1])


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """What the loop stores of such a run: two widths, every 40 updates."""
    folder = tmp_path_factory.mktemp("run")
    tracked = [run(std) for std in STDS]
    snapshots = Checkpoints(folder, keep=ALL, folder=SNAPSHOTS)
    for step in range(EVERY, UPDATES + 1, EVERY):
        profiles = tuple({"w": jnp.asarray(rows[step - 1])} for rows in tracked)
        snapshots.save(step, profiles, {}, {})
    snapshots.close()
    return folder


def test_a_state_tracks_every_profile_with_its_own_width():
    averages = Averages(decay=0.9, stds=STDS)
    params = {"w": jnp.array([1.0, -2.0])}
    state = with_profiles(TrainState.create(params, optax.sgd(0.1)), len(STDS))
    wanted, updates = [params["w"]] * len(STDS), [averaging(0.0, std) for std in STDS]
    for step in range(1, 8):
        grads = {"w": jnp.array([1.0, 0.3 * step])}
        state, _ = apply_gradients(state, grads, optax.sgd(0.1), averages)
        wanted = [
            update(old, state.params["w"], step)
            for update, old in zip(updates, wanted, strict=True)
        ]
    for profile, values in zip(state.profiles, wanted, strict=True):
        np.testing.assert_allclose(profile["w"], values, rtol=1e-6)
    assert abs(wanted[0] - wanted[1]).min() > 1e-3


def test_inner_products_are_integrals():
    pairs = [
        (Profile(16.97, 300), Profile(6.94, 480)),
        (Profile(3, 10), Profile(3, 10)),
    ]
    for first, second in pairs:
        t = (np.arange(400_000) + 0.5) * (second.step / 400_000)
        a, b = (
            np.where(t <= p.step, (p.exponent + 1) * t**p.exponent, 0)
            / float(p.step) ** (p.exponent + 1)
            for p in (first, second)
        )
        wanted = (a * b).sum() * second.step / 400_000
        # the midpoint rule meets the jump at first.step within a cell
        assert inner(first, second) == pytest.approx(wanted, rel=1e-3)
        assert inner(first, second) == inner(second, first)


@pytest.mark.parametrize("std", [0.06, 0.07, 0.085])
def test_an_average_between_the_stored_ones_equals_the_tracked_one(workdir, std):
    found = reconstruct(workdir, STDS, std)
    tracked, ends = run(std)[-1], [run(s)[-1] for s in STDS]
    error = np.linalg.norm(found.params["w"] - tracked)
    # relative to how far the two stored averages themselves are apart
    assert error < 0.02 * np.linalg.norm(ends[0] - ends[1])
    assert found.distance < 0.01
    assert (found.step, found.used) == (UPDATES, 2 * UPDATES // EVERY)


def test_an_earlier_step_uses_what_was_stored_until_then(workdir):
    found = reconstruct(workdir, STDS, 0.07, step=240)
    error = np.linalg.norm(found.params["w"] - run(0.07)[239])
    apart = np.linalg.norm(run(0.05)[239] - run(0.10)[239])
    assert error < 0.05 * apart and found.used == 12  # half as many as at the end


@pytest.mark.parametrize("std", STDS)
def test_a_stored_average_comes_back(workdir, std):
    found = reconstruct(workdir, STDS, std)
    np.testing.assert_allclose(found.params["w"], run(std)[-1], rtol=1e-4, atol=1e-4)
    stored = [Profile(power_exponent(s), n) for n in (240, 480) for s in STDS]
    weights, distance = solve(stored, Profile(power_exponent(std), 480))
    np.testing.assert_allclose(weights, [0, 0, std == 0.05, std == 0.10], atol=1e-6)
    assert distance < 1e-5


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (dict(std=0.01), "away from"),
        (dict(std=0.07, step=500), "not covered"),
        (dict(std=0.07, step=39), "not covered"),
        (dict(std=0.4), "ema_std"),
        (dict(std=0.07, stds=()), "no stored averages"),
    ],
)
def test_what_cannot_be_made_is_refused(workdir, change, said):
    options = {"stds": STDS, **change}
    with pytest.raises(UserError, match=said):
        reconstruct(workdir, options.pop("stds"), **options)


def test_the_loop_stores_what_the_tool_reads(tmp_path, capsys):
    """A run that was killed between checkpoint and average stores the same."""
    for name, ends in (("whole", (60,)), ("killed", (20, 60))):
        for end in ends:
            settings = toy_run.config(ema_stds=STDS, num_steps=end)
            run_ = toy_run.experiment(settings)
            loop.run(run_, str(tmp_path / name), mesh=make_mesh())
            if end == 20:
                shutil.rmtree(tmp_path / name / SNAPSHOTS / "20")
    steps = [
        sorted(int(p.name) for p in (tmp_path / name / SNAPSHOTS).iterdir())
        for name in ("whole", "killed")
    ]
    assert steps == [[10, 20, 30, 40, 50, 60]] * 2
    for step in (20, 60):
        pair = [load_snapshot(tmp_path / n, step) for n in ("whole", "killed")]
        jax.tree.map(np.testing.assert_array_equal, *pair)
    state = load_state(tmp_path / "whole")
    jax.tree.map(
        np.testing.assert_array_equal,
        state["profiles"],
        load_snapshot(tmp_path / "whole", 60),
    )
    out = tmp_path / "weights"
    arguments = [
        "--workdir",
        str(tmp_path / "whole"),
        "--std",
        "0.1",
        "--out",
        str(out),
    ]
    assert reconstruct_ema.main(arguments) == 0
    assert json.loads(capsys.readouterr().out)["step"] == 60
    assert (out / "weights.safetensors").is_file()
    config = json.loads((out / "config.json").read_text())
    assert config["train"]["ema_std"] == 0.1
    assert reconstruct_ema.main([*arguments[:-1], str(out), "--step", "1"]) == 2
    assert "not covered" in capsys.readouterr().err


def test_profiles_do_not_change_the_form_of_other_checkpoints(tmp_path):
    """A directory from before there were profiles goes on; adding them is refused."""
    here = str(tmp_path / "run")
    loop.run(toy_run.experiment(toy_run.config(num_steps=10)), here, mesh=make_mesh())
    assert "profiles" not in load_state(here)
    changed = toy_run.config(num_steps=20, ema_stds=STDS)
    with pytest.raises(UserError, match="ema_stds"):
        loop.run(toy_run.experiment(changed), here, mesh=make_mesh())


def test_the_tool_is_a_program(tmp_path):
    command = [sys.executable, "-m", "lDM_jax.tools.reconstruct_ema"]
    command += [
        "--workdir",
        str(tmp_path),
        "--std",
        "0.1",
        "--out",
        str(tmp_path / "o"),
    ]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
