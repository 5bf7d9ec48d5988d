"""Programs that tests start. Imports nothing heavy: conftest reads QUICK from here."""

import importlib.metadata
import os
import subprocess
import sys
import time
from pathlib import Path

from lDM_jax.core.startup import KNOWN_BY

ROOT = Path(__file__).parent.parent

# Toy programs run for milliseconds: compile them quickly rather than well.
QUICK = {
    "--xla_backend_optimization_level": "0",
    "--xla_llvm_disable_expensive_passes": "true",
}
if importlib.metadata.version("jaxlib").startswith(KNOWN_BY):
    # An unknown flag would end the process. Together they halve the compilation.
    QUICK |= {
        "--xla_cpu_use_fusion_emitters": "false",
        "--xla_cpu_parallel_codegen_split_count": "1",
    }


def environment(devices: int = 1, **more: str) -> dict[str, str]:
    """Of a program that runs in no particular folder: its devices, quick compilation,
    and nothing of what this process was told about JAX."""
    flags = QUICK | {"--xla_force_host_platform_device_count": str(devices)}
    kept = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    own = {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    own["XLA_FLAGS"] = " ".join(f"{name}={value}" for name, value in flags.items())
    return {**kept, **own, **more}


def call(*args) -> subprocess.CompletedProcess:
    """Run a program of the repository to its end."""
    return subprocess.run(
        [sys.executable, *args],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
    )


def outputs(*processes):
    """[(code, out, err)]; processes that hang are killed."""
    found = []
    try:
        for process in processes:
            out, err = process.communicate(timeout=120)
            found.append((process.returncode, out, err))
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.communicate()
    return found


def wait_for(condition, seconds=60):
    """Return as soon as the condition holds; an error after so many seconds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.02)
