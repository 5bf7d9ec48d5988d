"""The toy experiment of `tests.toy_run` as a program and in this process."""

import jax
import numpy as np

from lDM_jax.core.sharding import make_mesh
from lDM_jax.training import loop
from lDM_jax.weights.checkpoint import load_state
from tests import toy_run
from tests.forks import Fork
from tests.programs import ROOT

PROGRAM = ROOT / "tests" / "toy_run.py"


def start(workdir, *settings) -> Fork:
    """The program, which may be killed."""
    return Fork(PROGRAM, workdir, *settings)


def finish(workdir, *settings):
    """(code, out, err) of the whole program."""
    process = start(workdir, *settings)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def run_here(workdir, **changes):
    """The loop in this process, on all (eight fake) devices."""
    return loop.run(
        toy_run.experiment(toy_run.config(**changes)), str(workdir), mesh=make_mesh()
    )


def final_state(workdir):
    """Every leaf of the newest checkpoint as bytes by name, and its step."""
    state = load_state(workdir)
    leaves = jax.tree_util.tree_leaves_with_path(state)
    named = {jax.tree_util.keystr(p): np.asarray(x).tobytes() for p, x in leaves}
    return named, int(state["step"])
