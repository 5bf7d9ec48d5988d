"""What has to be settled before anything else of a process: `huge_pages`.

Imports nothing of the package and nothing heavy; train.py and sample.py call it first.
"""

import os
import sys
from pathlib import Path

VARIABLE = "GLIBC_TUNABLES"
WANTED = "glibc.malloc.hugetlb=1"
KERNEL = "/sys/kernel/mm/transparent_hugepage/enabled"


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
