"""A program starts over once, with the same arguments, to get huge pages."""

import os
import subprocess
import sys

import pytest

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
