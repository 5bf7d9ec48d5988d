"""What a process settles first: huge pages, and convolutions on all cores."""

import importlib.metadata
import os
import subprocess
import sys

import pytest

from lDM_jax.startup import KNOWN_BY

SCRIPT = """
import os, sys
from lDM_jax.startup import huge_pages
huge_pages(sys.argv[1])
print(os.getpid(), os.environ.get("GLIBC_TUNABLES"), sys.argv[2:], sys.flags.utf8_mode)
"""


@pytest.mark.parametrize(
    ("kernel", "given", "expected"),
    [
        ("always [madvise] never", None, "glibc.malloc.hugetlb=1"),
        ("[always] madvise never", None, "None"),  # given to everybody anyway
        ("always [madvise] never", "", ""),
        ("always [madvise] never", "glibc.malloc.check=0", "glibc.malloc.check=0"),
        (None, None, "None"),
    ],
)
def test_huge_pages_are_asked_for_once(tmp_path, kernel, given, expected):
    script, offer = tmp_path / "script.py", tmp_path / "enabled"
    script.write_text(SCRIPT)
    if kernel is not None:
        offer.write_text(kernel)
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    environment.pop("GLIBC_TUNABLES", None)
    if given is not None:
        environment["GLIBC_TUNABLES"] = given
    command = [sys.executable, "-X", "utf8=1", script, offer, "two words", "--flag"]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        output = process.communicate()[0]
    assert process.returncode == 0
    assert output == f"{process.pid} {expected} ['two words', '--flag'] 1\n"


CONVOLUTION = """
import sys
import importlib.metadata
from lDM_jax.startup import spread_convolutions
if sys.argv[1]:
    importlib.metadata.version = lambda name: sys.argv[1]
if sys.argv[2] == "spread":
    spread_convolutions()
import jax, jax.numpy as jnp
x, kernel = jnp.ones((32, 8, 8, 64)), jnp.ones((3, 3, 64, 64))
convolve = lambda x, k: jax.lax.conv_general_dilated(
    x, k, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
print("ynn_fusion" in jax.jit(convolve).lower(x, kernel).compile().as_text())
"""
OWN = (
    "--xla_cpu_experimental_ynn_fusion_type=LIBRARY_FUSION_TYPE_INDIVIDUAL_CONVOLUTION"
)


@pytest.mark.parametrize(
    ("version", "call", "given", "by_ynnpack"),
    [
        ("", "not", "", "True"),  # else this module has nothing to do
        ("", "spread", "", "False"),
        ("", "spread", "--xla_backend_optimization_level=0", "False"),
        ("", "spread", OWN, "True"),
        ("0.11.0", "spread", "", "True"),  # an unknown flag would end the program
    ],
)
def test_convolutions_leave_ynnpack_where_the_flag_is_known(
    version, call, given, by_ynnpack
):
    if importlib.metadata.version("jaxlib").startswith(KNOWN_BY):
        environment = {**os.environ, "PYTHONPATH": os.getcwd(), "XLA_FLAGS": given}
        command = [sys.executable, "-c", CONVOLUTION, version, call]
        output = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=True
        ).stdout
        assert output.strip() == by_ynnpack
    else:
        pytest.skip("startup.KNOWN_BY does not name this jaxlib")
