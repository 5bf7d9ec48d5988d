"""Test session: CPU with eight fake devices, rank promotion is an error.

Programs are kept for the next session, as `lDM_jax.core.startup.keep_programs` says.
"""

import gc
import os

from tests.programs import QUICK

os.environ.setdefault("JAX_PLATFORMS", "cpu")
flags = QUICK | {"--xla_force_host_platform_device_count": "8"}
given = os.environ.get("XLA_FLAGS", "")
os.environ["XLA_FLAGS"] = " ".join(
    [given, *(f"{name}={value}" for name, value in flags.items() if name not in given)]
)

from lDM_jax.core.startup import settle  # noqa: E402

settle()

import jax  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")

import pytest  # noqa: E402

from lDM_jax.weights.checkpoint import quiet_orbax  # noqa: E402


@pytest.fixture(scope="session", autouse=True)
def programs_start_like_this():
    """As train.py does; what a failed read leaves may be collected in a later test."""
    quiet_orbax()


def pytest_runtest_teardown(item, nextitem):
    """What a file's tests have compiled goes with them: it would add up to gigabytes.

    The next file finds what it shares with this one on the disk.
    """
    if nextitem is not None and nextitem.path != item.path:
        jax.clear_caches()
        gc.collect()
