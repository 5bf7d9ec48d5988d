"""The report on compiled programs: its arithmetic; a small pod if libtpu is there.

Run with libtpu in an environment of its own (pip install "jax[tpu]"); without it the
compiling test is skipped.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from lDM_jax.core.sharding import make_mesh
from lDM_jax.from_config.config_file import read_config
from lDM_jax.tools.compile_report import (
    collectives,
    compile_sampler,
    does_not_fit,
    report,
    shape_bytes,
)
from lDM_jax.training import experiment
from lDM_jax.training.build import abstract_run

ROOT = Path(__file__).parents[2]
HLO = """
  %ar = f32[128,256]{1,0} all-reduce(f32[128,256]{1,0} %x), replica_groups={}
  %pair = (bf16[8,4]{1,0}, f32[2]{0}) all-reduce(%a, %b), to_apply=%add
  %s = (f32[16]{0}, f32[64]{0:T(256)}) all-gather-start(f32[16]{0} %y), dimensions={0}
  %d = f32[64]{0} all-gather-done((f32[16]{0}, f32[64]{0}) %s)
  %rs = f32[16]{0:T(256)S(1)} reduce-scatter(f32[64]{0} %z), dimensions={0}
  %fusion = f32[4]{0} fusion(f32[4]{0} %all-reduce.7), kind=kLoop
"""


def test_collectives_are_counted_by_kind_and_size():
    assert collectives(HLO) == {
        "all-gather": (1, 4 * 64),
        "all-reduce": (2, 4 * 128 * 256 + 2 * 32 + 4 * 2),
        "reduce-scatter": (1, 4 * 16),
    }
    assert (
        shape_bytes("pred", "3"),
        shape_bytes("s4", "8,"),
        shape_bytes("u32", ""),
    ) == (
        3,
        4,
        4,
    )


def test_the_sum_of_a_split_product_is_one_all_reduce():
    """x w with the summed axis over eight devices: its result, 4 x 16 f32, summed."""
    mesh = make_mesh(1, 8)
    x, w = jnp.ones((4, 64)), jnp.ones((64, 16))
    split = jax.jit(
        lambda x, w: x @ w,
        in_shardings=(
            NamedSharding(mesh, P(None, "fsdp")),
            NamedSharding(mesh, P("fsdp")),
        ),
        out_shardings=NamedSharding(mesh, P()),
    )
    compiled = split.lower(x, w).compile()
    assert collectives(compiled.as_text()) == {"all-reduce": (1, 4 * 4 * 16)}
    lines = "\n".join(report(compiled))
    assert "memory a chip" in lines and "all-reduce" in lines


def test_what_does_not_fit_is_told_from_other_errors():
    text = "RESOURCE_EXHAUSTED: Ran out of memory in hbm. Used 20.51G of 15.75G hbm."
    assert does_not_fit(RuntimeError(text)) == "needs 20.51G of 15.75G"
    assert does_not_fit(RuntimeError("INTERNAL: something else")) is None


def call(*flags):
    kept = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    return subprocess.run(
        [sys.executable, "-m", "lDM_jax.tools.compile_report", *flags],
        cwd=ROOT,
        env=kept,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    ("config", "changes"),
    [
        ("kl_f8", ["train.ema_std=0.1"]),
        ("vq_f4", ["loss.codebook_decay=0.99", "train.ema_std=0.1"]),
        ("emoji", ["train.ema_stds=(0.05, 0.1)", "data.cache_latents=False"]),
        ("emoji_class", ["train.ema_std=0.1", "loss.log_variance=True"]),
        ("emoji_classifier", ["train.ema_std=0.1"]),
    ],
)
def test_what_is_compiled_is_what_train_runs(config, changes):
    """State, frozen networks and batch by shape; the step by its program's text."""
    config = read_config(f"configs/{config}.py:smoke", changes)
    made = experiment.make(config)
    batch = next(made.iterator)
    made.iterator.close()
    run, key = abstract_run(config), jax.random.key(0)
    state = jax.eval_shape(made.stage.init, key)
    assert shapes(run.state) == shapes(state)
    assert shapes(run.frozen) == shapes(made.frozen)
    assert shapes(run.batch) == shapes({n: v[:1] for n, v in batch.items()})
    shape = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch)
    ours, theirs = (
        jax.jit(stage.step).lower(run.state, run.frozen, shape, key).as_text()
        for stage in (run.stage, made.stage)
    )
    assert ours == theirs


def shapes(tree):
    """(structure, shapes and types) of a tree."""
    leaves, structure = jax.tree.flatten(tree)
    return structure, [(leaf.shape, leaf.dtype) for leaf in leaves]


def test_a_sampler_without_a_condition_has_rows_to_draw():
    """Of cached latents a batch has nothing else than what is not sampled from."""
    config = read_config("configs/emoji_unconditional.py:smoke", [])
    config.data.cache_latents = True
    compiled = compile_sampler(abstract_run(config), make_mesh(), 8)
    drawn = jax.tree.leaves(compiled.out_info)[0]
    assert drawn.shape[0] == 8


def test_help_tells_of_the_program_and_its_flags():
    result = call("--help")
    assert result.returncode == 0 and not result.stderr
    for word in ("Compile training and sampling", "--topology: Chips", "--effort"):
        assert word in result.stdout


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is not None, reason="libtpu is installed"
)
def test_without_the_tpu_compiler_it_says_how_to_get_it():
    result = call("--config=configs/emoji.py:smoke")
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert "jax[tpu]" in line


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs libtpu: jax[tpu]"
)
@pytest.mark.slow
def test_a_small_config_compiles_for_a_pod():
    result = call(
        "--config=configs/emoji.py:smoke",
        "--topology=v5e:4x4",
        "--batch=16",
        "--config.mesh.data=4",
        "--config.mesh.fsdp=4",
    )
    assert result.returncode == 0, result.stderr
    out = result.stdout
    assert "v5e:4x4: 16 x TPU v5 lite" in out and "fsdp=4" in out
    training, sampler = out.split("sampler, batch 16")
    assert "training step, batch 16" in training
    for part in (training, sampler):
        assert "memory a chip" in part and "FLOPs" in part and "optimal" in part
    assert "all-reduce" in training or "reduce-scatter" in training
    assert "all-gather" in training  # the pieces of the word embedding
    wrong = call("--config=configs/emoji.py:smoke", "--topology=v5e:3x5x7")
    assert wrong.returncode == 2 and "v5e:3x5x7" in wrong.stderr
