"""Programs of the repository in forks of one process that has imported what they need.

A fork is a process of its own, with its arguments, environment, streams and exit code,
but costs no imports, which take longer than most of what is tested here. What is
claimed about the start of a process needs `programs.call`.
"""

import multiprocessing
import os
import runpy
import shutil
import subprocess
import sys
import tempfile
import weakref
from pathlib import Path

from tests.programs import ROOT, environment

# None of them starts JAX's backend, whose threads a fork would lack.
IMPORTED = [
    "lDM_jax.evaluation.tracking",
    "lDM_jax.from_config.datasets",
    "lDM_jax.sampling.pipeline",
    "lDM_jax.training.experiment",
    "lDM_jax.training.loop",
    "lDM_jax.training.summary",
]
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(IMPORTED)


class Fork:
    """A running program, with the methods of subprocess.Popen that the tests use."""

    def __init__(self, *args, devices: int = 1, **more: str):
        """Start the program args[0]; devices and more as in `environment`."""
        # a value for glibc, or the program would start over for huge pages
        settings = environment(devices, GLIBC_TUNABLES="", **more)
        self.args = [str(arg) for arg in args]
        folder = tempfile.mkdtemp()
        weakref.finalize(self, shutil.rmtree, folder)
        self._streams = [Path(folder) / name for name in ("out", "err")]
        target = self.args, settings, *self._streams
        self._process = CONTEXT.Process(target=become, args=target)
        self._process.start()
        self.pid, self.kill = self._process.pid, self._process.kill

    def poll(self) -> int | None:
        """The exit code, None while it runs."""
        return self._process.exitcode

    returncode = property(poll)

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self, timeout: float = 300) -> int:
        """The exit code; a program that takes longer is killed."""
        self._process.join(timeout)
        if self.poll() is None:
            self.kill()
            self._process.join()
            raise subprocess.TimeoutExpired(self.args, timeout)
        return self.poll()

    def communicate(self, timeout: float = 300) -> tuple[str, str]:
        """(out, err) of the whole program."""
        self.wait(timeout)
        return tuple(path.read_text() for path in self._streams)


def call(*args) -> subprocess.CompletedProcess:
    """`programs.call`, in a fork."""
    fork = Fork(*args)
    out, err = fork.communicate()
    return subprocess.CompletedProcess(fork.args, fork.returncode, out, err)


def become(argv: list[str], settings: dict[str, str], out: Path, err: Path) -> None:
    """Run the program argv[0]; in the fork."""
    for stream, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), stream)
    os.environ.clear()
    os.environ.update(settings)
    os.chdir(ROOT)
    sys.argv, sys.path[0] = argv, str(ROOT)
    runpy.run_path(argv[0], run_name="__main__")
