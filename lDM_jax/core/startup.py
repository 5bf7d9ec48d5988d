"""What has to be settled before anything else of a process.

Imports nothing of the package and nothing heavy; train.py and sample.py call `prepare`
first, the tools `settle`.
"""

import contextlib
import gc
import hashlib
import importlib.metadata
import os
import platform
import sys
import time
from pathlib import Path

VARIABLE = "GLIBC_TUNABLES"
HUGE_PAGES = "glibc.malloc.hugetlb=1"
KERNEL = "/sys/kernel/mm/transparent_hugepage/enabled"
XLA = "XLA_FLAGS"
FUSIONS = "--xla_cpu_experimental_ynn_fusion_type"
KNOWN_BY = "0.10."  # versions of jaxlib; others may end a program for an unknown flag
PROGRAMS = "JAX_COMPILATION_CACHE_DIR"
PROGRAMS_BYTES = 2**31
PROGRAMS_SECS = 0.2  # what took less to compile is not kept
YOUNG_SECS = 10
CPU = "/proc/cpuinfo"
GARBAGE_OBJECTS = 50_000


def prepare() -> None:
    """All of the below; may start this program over."""
    settle()
    huge_pages()


def show_help(argv: list[str], about: str | None, values) -> None:
    """Print what a program is about and its absl flags, and exit, if argv asks for it.

    absl knows --help only in its own `app.run`, where it exits with 1. values:
    `flags.FLAGS`.
    """
    if {"-h", "--help", "-help", "--helpfull"} & set(argv[1:]):
        sys.stdout.write(f"{about}\n{values.main_module_help().lstrip()}\n")
        raise SystemExit(0)


def error_line(program: str, error: object) -> str:
    """What a program writes to standard error before it exits with code 2."""
    text = error.args[0] if isinstance(error, KeyError) and error.args else error
    return f"{program}: error: {' '.join(str(text).split())}\n"


def settle() -> None:
    """What needs no new start: convolutions, programs, and garbage.

    JAX makes millions of small objects while it traces, and Python searches for cycles
    among them every 700: here every GARBAGE_OBJECTS, which `benchmarks.start` shows.
    """
    spread_convolutions()
    keep_programs()
    gc.set_threshold(GARBAGE_OBJECTS, 20, 20)


def keep_programs(cpu: str = CPU) -> None:
    """Have JAX keep what it compiles on the disk, for the next process.

    In `lDM_jax/KIND` of $XDG_CACHE_HOME (or ~/.cache), up to 2 GiB, the longest unused
    goes. KIND is made of the processor's kind, since XLA's programs for CPUs hold
    instructions that another one, of the same home directory, may not have. A
    JAX_COMPILATION_CACHE_DIR in the environment is left alone; empty keeps nothing.
    Where nothing can be written, nothing is kept. Call it before importing JAX.
    """
    if PROGRAMS in os.environ:
        return
    try:
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folder = Path(home) / "lDM_jax" / _processor(cpu)
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # no place, no permission, nobody's home
        return
    if not os.access(folder, os.W_OK):
        return
    _mend(folder)
    os.environ[PROGRAMS] = str(folder)
    os.environ.setdefault("JAX_COMPILATION_CACHE_MAX_SIZE", str(PROGRAMS_BYTES))
    name = "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"
    os.environ.setdefault(name, str(PROGRAMS_SECS))


def _mend(folder: Path) -> None:
    """Remove what killed processes left: programs without the file of their last use.

    JAX writes that file after the program: without it the program may be cut short, and
    JAX would neither replace it nor keep others. Young ones may be another's at work.
    """
    for program in folder.glob("*-cache"):
        used = program.with_name(program.name.removesuffix("-cache") + "-atime")
        with contextlib.suppress(OSError):
            young = time.time() - program.stat().st_mtime < YOUNG_SECS
            if not used.exists() and not young:
                program.unlink()


def _processor(cpu: str) -> str:
    """A name that processors of the same instructions share."""
    try:
        lines = Path(cpu).read_text().splitlines()
    except OSError:
        lines = [f"model name {platform.processor()}"]
    said = sorted({line for line in lines if line.startswith(("model name", "flags"))})
    digest = hashlib.sha256("\n".join(said).encode()).hexdigest()
    return f"{platform.machine()}-{digest[:12]}"


def spread_convolutions() -> None:
    """Have XLA compute convolutions on all of a CPU's cores, from the next program on.

    By itself XLA hands them to YNNPACK, which does a convolution of up to some hundred
    channels on one core, the others idle. What is named here leaves YNNPACK products
    and sums; convolutions go to Eigen (`python -m benchmarks.kernels` times both).
    Call it before JAX compiles anything. Sets XLA_FLAGS, unless it has that flag
    already or jaxlib is not one of the versions known to have it.
    """
    flags = os.environ.get(XLA, "")
    if FUSIONS in flags:
        return
    try:
        version = importlib.metadata.version("jaxlib")
    except importlib.metadata.PackageNotFoundError:
        return
    if version.startswith(KNOWN_BY):
        kinds = ("INDIVIDUAL_DOT", "REDUCE")
        value = ",".join(f"LIBRARY_FUSION_TYPE_{kind}" for kind in kinds)
        os.environ[XLA] = f"{flags} {FUSIONS}={value}".strip()


def huge_pages(kernel: str = KERNEL) -> None:
    """Start this program over, once, with malloc on huge pages; returns if it is.

    XLA's programs for CPUs take their intermediate arrays anew at every run. With pages
    of 4 KiB the kernel hands out tens of thousands of them each time; 2 MiB spare most
    of that (`python -m benchmarks.peers emoji --measure train` times the step, with
    GLIBC_TUNABLES= before it without them). Linux only, where huge pages are given to
    programs that ask ("madvise"), with glibc 2.35 and later; elsewhere nothing
    happens. A value of GLIBC_TUNABLES in the environment, be it empty, is left alone.
    """
    if VARIABLE in os.environ or not sys.platform.startswith("linux"):
        return
    try:
        offered = "[madvise]" in Path(kernel).read_text()
    except OSError:
        return
    if offered:
        os.environ[VARIABLE] = HUGE_PAGES
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
