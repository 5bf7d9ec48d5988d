"""What a process settles first: huge pages, convolutions on all cores, programs."""

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lDM_jax.core.startup import KNOWN_BY

SCRIPT = """
import os, sys
from lDM_jax.core.startup import huge_pages
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
from lDM_jax.core.startup import spread_convolutions
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


@pytest.mark.skipif(
    not importlib.metadata.version("jaxlib").startswith(KNOWN_BY),
    reason="core.startup.KNOWN_BY does not name this jaxlib",
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
    environment = {**os.environ, "PYTHONPATH": os.getcwd(), "XLA_FLAGS": given}
    command = [sys.executable, "-c", CONVOLUTION, version, call]
    output = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=True
    ).stdout
    assert output.strip() == by_ynnpack


KEEP = """
import sys
from lDM_jax.core.startup import keep_programs
keep_programs(sys.argv[1])
import jax
import jax.numpy as jnp
found = []
jax.monitoring.register_event_listener(lambda name, **_: found.append(name))
jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones((4, 4)))
hit = "/jax/compilation_cache/cache_hits" in found
print(jax.config.jax_compilation_cache_dir or None, hit)
"""


def kept(cpu, *, home=None, **given) -> tuple[str, bool]:
    """(the directory of programs, whether one came from there) of a new process."""
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    environment |= {"XDG_CACHE_HOME": str(home), **given}
    output = subprocess.run(
        [sys.executable, "-c", KEEP, cpu],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert not output.stderr
    folder, hit = output.stdout.split()
    return folder, hit == "True"


def test_the_next_process_finds_the_programs_of_the_last(tmp_path):
    cpu, home = tmp_path / "cpuinfo", tmp_path / "home"
    cpu.write_text("model name : A\nflags : sse avx\n")
    folder, hit = kept(cpu, home=home)
    assert folder.startswith(f"{home}/lDM_jax/") and not hit
    assert kept(cpu, home=home) == (folder, True)
    cpu.write_text("model name : A\nflags : sse\n")  # lacks instructions of the first
    other, hit = kept(cpu, home=home)
    assert other != folder and not hit


def test_what_a_killed_process_left_half_written_is_replaced(tmp_path):
    cpu = tmp_path / "cpuinfo"
    cpu.write_text("flags : sse")
    folder, _ = kept(cpu, home=tmp_path)
    for used in Path(folder).glob("*-atime"):
        used.unlink()  # just now: another process may be about to write it
    assert kept(cpu, home=tmp_path) == (folder, True)
    for program in Path(folder).glob("*-cache"):
        program.write_bytes(program.read_bytes()[:100])
        os.utime(program, (0, 0))  # long ago
        Path(str(program).removesuffix("-cache") + "-atime").unlink()
    assert kept(cpu, home=tmp_path) == (folder, False)
    assert kept(cpu, home=tmp_path) == (folder, True)


def test_programs_are_kept_where_the_environment_says_or_nowhere(tmp_path):
    own, blocked = tmp_path / "own", tmp_path / "file"
    blocked.write_text("no directory")
    name = "JAX_COMPILATION_CACHE_DIR"
    assert kept("", home=tmp_path / "a", **{name: str(own)}) == (str(own), False)
    for options in ({"home": tmp_path / "b", name: ""}, {"home": blocked}):
        for _ in range(2):
            assert kept("", **options) == ("None", False), options
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "own"]
