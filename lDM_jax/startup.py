"""What has to be settled before anything else of a process, on CPUs.

Imports nothing of the package and nothing heavy; train.py and sample.py call `prepare`
first.
"""

import importlib.metadata
import os
import sys
from pathlib import Path

VARIABLE = "GLIBC_TUNABLES"
WANTED = "glibc.malloc.hugetlb=1"
KERNEL = "/sys/kernel/mm/transparent_hugepage/enabled"
XLA = "XLA_FLAGS"
FUSIONS = "--xla_cpu_experimental_ynn_fusion_type"
KNOWN_BY = "0.10."  # versions of jaxlib; others may end a program for an unknown flag


def prepare() -> None:
    """Both of the below."""
    spread_convolutions()
    huge_pages()


def spread_convolutions() -> None:
    """Have XLA compute convolutions on all of a CPU's cores, from the next program on.

    By itself XLA hands them to YNNPACK, which does a convolution of up to some hundred
    channels on one core, the others idle. What is named here leaves YNNPACK products
    and sums; convolutions go to Eigen (`python -m benchmarks.kernels` times both).
    Call it before JAX compiles anything. Sets XLA_FLAGS, unless it has that flag
    already or jaxlib is not one of the versions known to have it.
    """
    given = os.environ.get(XLA, "")
    if FUSIONS in given:
        return
    try:
        version = importlib.metadata.version("jaxlib")
    except importlib.metadata.PackageNotFoundError:
        return
    if version.startswith(KNOWN_BY):
        kinds = ("INDIVIDUAL_DOT", "REDUCE")
        value = ",".join(f"LIBRARY_FUSION_TYPE_{kind}" for kind in kinds)
        os.environ[XLA] = f"{given} {FUSIONS}={value}".strip()


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
        os.environ[VARIABLE] = WANTED
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
