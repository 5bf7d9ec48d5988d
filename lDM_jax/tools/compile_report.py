"""Compile training and sampling for a TPU pod without a TPU, and say what it takes.

    python -m lDM_jax.tools.compile_report --config configs/celebahq_ldm4.py \\
        --topology v5e:4x4 [--batch 48,96] [--config.mesh.fsdp=16]

XLA's own TPU compiler, which comes with the package `libtpu`, compiles the whole
training step (with its guard, as the loop runs it) and the whole sampler for the chips
of the topology. Nothing is allocated. Printed are, for one chip: memory, FLOPs and
bytes moved, the collectives in the program by kind and size, and the compiler's own
estimate of the time where it makes one. With several batch sizes the report goes on
until one does not fit. The compiler's FLOPs leave out what it turns into calls of its
own; beside them stands our count, of the program's jaxpr (`training.flops`), with the
time it would take at the chips' bf16 peak. Collectives count as they stand in the text:
one in a loop counts once.

A large network takes the compiler long on few cores. --effort=-1 asks for quick
compilation (slower programs, and memory only about right); --xla NAME=VALUE,... passes
options to the compiler.
"""

import os
import sys
from collections.abc import Sequence

# No TPU is looked for: only the compiler is needed. Must be set before jax starts.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-16")

import logging
import re
import time
from typing import Any

import jax
import numpy as np
from absl import flags
from jax.experimental import topologies
from jax.sharding import Mesh
from ml_collections import ConfigDict, config_flags

from lDM_jax.core.errors import UserError
from lDM_jax.core.sharding import (
    batch_sharding,
    check_batch_size,
    make_mesh,
    replicated,
    sharding_table,
    state_sharding,
)
from lDM_jax.core.startup import error_line, show_help
from lDM_jax.from_config import datasets
from lDM_jax.from_config.abstract import random_key
from lDM_jax.models import cpu_kernels
from lDM_jax.tools import log_to_stdout
from lDM_jax.training import flops as flop_counts
from lDM_jax.training.build import AbstractRun, abstract_run
from lDM_jax.training.settings import loop_settings
from lDM_jax.training.update_guard import Guard, jit_update

log = logging.getLogger(__name__)

COLLECTIVES = "all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter"
DTYPE_BITS = {"pred": 8, "bf16": 16, "f16": 16}


def placed(tree: Any, shardings: Any) -> Any:
    """Abstract arrays with shardings: one for all, or a tree of them."""
    if not isinstance(shardings, type(tree)):
        shardings = jax.tree.map(lambda _: shardings, tree)
    return jax.tree.map(
        lambda leaf, at: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=at),
        tree,
        shardings,
    )


def batch_of(row: dict, rows: int, mesh: Mesh | None = None) -> dict:
    """The abstract batch of `rows` such rows, split over the mesh if there is one."""
    where = None if mesh is None else batch_sharding(mesh)
    return {
        name: jax.ShapeDtypeStruct((rows, *leaf.shape[1:]), leaf.dtype, sharding=where)
        for name, leaf in row.items()
    }


def count_work(what: AbstractRun, name: str, rows: int, devices: Sequence[Any]) -> str:
    """FLOPs of a program's jaxpr for one chip, and the least time that they take it."""
    batch, key, stage = batch_of(what.batch, rows), random_key(), what.stage
    if name == "training step":
        work = flop_counts.count(stage.step, what.state, what.frozen, batch, key)
    else:
        keys = jax.eval_shape(lambda key: jax.random.split(key, rows), key)
        work = flop_counts.count(stage.sample, what.state.ema, what.frozen, batch, keys)
    peak = flop_counts.peak_of(devices)
    line = f"  counted a chip and call: {work / len(devices) / 1e12:.4g} TFLOP"
    return f"{line}, {1e3 * work / peak:.4g} ms at the bf16 peak" if peak else line


def compile_training(
    config: ConfigDict,
    what: AbstractRun,
    mesh: Mesh,
    rows: int,
    options: dict[str, str] | None = None,
):
    """The compiled update of the loop for a global batch of `rows`."""
    check_batch_size(mesh, rows, config.train.accumulate_steps)
    root, limits = jax.random.key(0), loop_settings(config).limits
    shardings, whole = state_sharding(mesh, what.state), replicated(mesh)
    update = jit_update(what.stage, mesh, shardings, root=root, limits=limits)
    return update.lower(
        placed(what.state, shardings),
        placed(jax.eval_shape(Guard.start), whole),
        placed(what.frozen, whole),
        batch_of(what.batch, rows, mesh),
    ).compile(compiler_options=options or None)


def compile_sampler(
    what: AbstractRun, mesh: Mesh, rows: int, options: dict[str, str] | None = None
):
    """The compiled sampler, rows over the chips, parameters as in training."""
    where = batch_sharding(mesh)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), rows))
    sampler = jax.jit(what.stage.sample, out_shardings=where)
    return sampler.lower(
        placed(what.state.ema, state_sharding(mesh, what.state).ema),
        placed(what.frozen, replicated(mesh)),
        batch_of(what.batch, rows, mesh),
        placed(keys, where),
    ).compile(compiler_options=options or None)


def report(compiled: Any) -> list[str]:
    """Memory, work and collectives of a compiled program, for one chip."""
    memory = compiled.memory_analysis()
    arguments = memory.argument_size_in_bytes
    fresh = memory.output_size_in_bytes - memory.alias_size_in_bytes
    temporary, code = memory.temp_size_in_bytes, memory.generated_code_size_in_bytes
    total = arguments + fresh + temporary + code
    lines = [
        f"  memory a chip {gib(total)}: arguments {gib(arguments)}, new outputs "
        f"{gib(fresh)}, temporary {gib(temporary)}, code {gib(code)}"
    ]
    cost = compiled.cost_analysis() or {}
    estimates = [
        f"{name} {cost[key] / scale:.4g} {unit}"
        for key, name, unit, scale in (
            ("flops", "FLOPs", "T", 1e12),
            ("bytes accessed", "bytes moved", "GB", 1e9),
            ("optimal_seconds", "optimal", "ms", 1e-3),
        )
        if cost.get(key, 0) > 0
    ]
    lines.append(f"  a chip and call: {', '.join(estimates) or 'no estimate'}")
    kinds = collectives(compiled.as_text())
    for kind, (count, size) in kinds.items():
        lines.append(f"  {kind:<20}{count:>6} x, {size / 2**20:>10.1f} MiB of results")
    if not kinds:
        lines.append("  no collectives")
    return lines


def collectives(text: str) -> dict[str, tuple[int, int]]:
    """{kind: (how many, bytes of their results)} of HLO text; async pairs count once.

    The result of an asynchronous start is a tuple (operands, results, ...): its largest
    member stands for it.
    """
    pattern = re.compile(rf"= (.+?) ({COLLECTIVES})(-start)?\(")
    totals: dict[str, tuple[int, int]] = {}
    for line in text.splitlines():
        match = pattern.search(line)
        if match is None:
            continue
        sizes = [shape_bytes(*shape) for shape in SHAPE.findall(match[1])]
        size = max(sizes, default=0) if match[3] else sum(sizes)
        count, total = totals.get(match[2], (0, 0))
        totals[match[2]] = count + 1, total + size
    return dict(sorted(totals.items()))


SHAPE = re.compile(r"([a-z]+\d*)\[([\d,]*)\]")


def shape_bytes(dtype: str, sides: str) -> int:
    """Bytes of "f32", "8,128"; of other words, such as those of a layout, 0."""
    bits = DTYPE_BITS.get(dtype, int(re.sub(r"\D", "", dtype) or 0))
    return int(np.prod([int(side) for side in sides.split(",") if side])) * bits // 8


def gib(count: int) -> str:
    """Bytes in GiB."""
    return f"{count / 2**30:.2f} GiB"


def does_not_fit(error: Exception) -> str | None:
    """What the compiler says of memory that does not suffice; None for other errors."""
    text = str(error)
    if "RESOURCE_EXHAUSTED" not in text and "Ran out of memory" not in text:
        return None
    used = re.search(r"Used ([\d.]+\w) of ([\d.]+\w)", text)
    return f"needs {used[1]} of {used[2]}" if used else "out of memory"


def devices_of(topology: str) -> Sequence[Any]:
    """The chips of "v5e:4x4" as devices to compile for.

    UserError without libtpu, and for a topology it does not know.
    """
    try:
        import libtpu  # noqa: F401
    except ImportError:
        raise UserError(
            "compile_report needs the TPU compiler: pip install 'jax[tpu]', best in an "
            "environment of its own (with libtpu installed JAX looks for a TPU)"
        ) from None
    try:
        target = topologies.get_topology_desc(platform="tpu", topology_name=topology)
    except Exception as error:  # XLA's errors share no class
        line = " ".join(str(error).split())[:200]
        raise UserError(
            f"--topology={topology}: {line}; e.g. v5e:4x4, v5p:2x2x2"
        ) from None
    return target.devices


def run(
    config: ConfigDict,
    topology: str,
    batches: Sequence[int],
    parts: str,
    options: dict[str, str] | None = None,
) -> None:
    """Print the report of one config on one topology. options: the compiler's."""
    devices = devices_of(topology)
    mesh = make_mesh(**config.mesh, devices=devices)
    what = abstract_run(datasets.resolve(config))
    log.info("%s: %d x %s", topology, len(devices), devices[0].device_kind)
    log.info("%s", "\n".join(sharding_table(mesh, what.state)))
    programs = {
        "training step": lambda n: compile_training(config, what, mesh, n, options)
    }
    if config.stage == "diffusion":
        programs["sampler"] = lambda n: compile_sampler(what, mesh, n, options)
    if parts != "both":
        programs = {n: make for n, make in programs.items() if n.startswith(parts)}
    for name, make in programs.items():
        for rows in batches:
            begin = time.perf_counter()
            try:
                lines = report(make(rows))
            except Exception as error:  # XLA's errors share no class
                reason = does_not_fit(error)
                if reason is None:
                    raise
                log.info("%s, batch %d: does not fit, %s", name, rows, reason)
                break
            spent = time.perf_counter() - begin
            log.info("%s, batch %d (compiled in %.0f s)", name, rows, spent)
            lines.insert(2, count_work(what, name, rows, devices))
            log.info("%s", "\n".join(lines))


def main(argv: Sequence[str]) -> int:
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, "Config file.", flag_values=values)
    flags.DEFINE_string("topology", "v5e:4x4", "Chips, e.g. v5e:4x4.", values)
    flags.DEFINE_list("batch", [], "Global batch sizes.", flag_values=values)
    flags.DEFINE_enum(
        "program", "both", ["both", "training", "sampler"], "What to compile.", values
    )
    flags.DEFINE_float("effort", 0.0, "-1 (quick) to 1 (thorough).", flag_values=values)
    flags.DEFINE_list("xla", [], "NAME=VALUE of the compiler.", flag_values=values)
    log_to_stdout()
    show_help(argv, __doc__, values)
    try:
        values(list(argv))
        jax.config.update("jax_exec_time_optimization_effort", values.effort)
        jax.config.update("jax_memory_fitting_effort", values.effort)
        options = dict(text.split("=", 1) for text in values.xla)
        config = values.config
        if config is None:
            raise UserError("--config is required, e.g. --config=configs/emoji.py")
        batches = [int(rows) for rows in values.batch] or [config.train.batch_size]
        with cpu_kernels.plain():  # a TPU does not do what this machine does better
            run(config, values.topology, batches, values.program, options)
    except (flags.Error, UserError, ValueError, KeyError, AttributeError) as error:
        sys.stderr.write(error_line("compile_report", error))
        return 2
    return 0


if __name__ == "__main__":
    # programs for chips that are not here are compiled anew, not read from a disk
    jax.config.update("jax_enable_compilation_cache", False)
    sys.exit(main(sys.argv))
