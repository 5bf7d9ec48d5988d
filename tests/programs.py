"""Programs that tests start. Imports nothing heavy: conftest reads QUICK from here."""

import importlib.metadata
import os
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
