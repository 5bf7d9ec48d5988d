"""evaluate with parts of eight pictures, as a program that can be killed.

    python tests/toy_evaluate.py COMMAND FLAGS...

TOY_KILL=N ends the process, as kill -9 does, when it is about to write its part N,
drawn pictures and features counted together. With JAX_COORDINATOR_ADDRESS,
JAX_NUM_PROCESSES and JAX_PROCESS_ID it is one of several processes.
"""

import os
import signal
import sys

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from lDM_jax.evaluation import features
from lDM_jax.sampling import bulk
from lDM_jax.tools import evaluate


def main() -> int:
    kill, written = int(os.environ.get("TOY_KILL", -1)), []

    def counted(write):
        def run(*arguments):
            if len(written) == kill:
                os.kill(os.getpid(), signal.SIGKILL)
            written.append(arguments)
            return write(*arguments)

        return run

    bulk.PART = features.PART = 8
    bulk.write_part = counted(bulk.write_part)
    features.write_part = counted(features.write_part)
    return evaluate.main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
