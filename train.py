"""Train either stage: flags -> config -> lDM_jax.training.loop.

    python train.py --config=configs/emoji.py --workdir=runs/emoji

The same command resumes. `--config.section.key=value` overrides a value, `:smoke` after
the config's file name shrinks it to twenty CPU steps, `--dry_run` prints what would be
built. A config file is Python and runs when it is read. User errors exit with code 2.

On several hosts the same command runs once on each: TPU pods and SLURM steps are found,
others say --coordinator=host:port --num_processes=N --process_id=I. The work directory
is on a disk that all of them share.
"""

import contextlib
import logging
import os
import sys

from absl import flags
from ml_collections import config_flags

from lDM_jax.core.startup import error_line, prepare, show_help

FLAGS = flags.FLAGS
config_flags.DEFINE_config_file("config", None, "Config file, e.g. configs/emoji.py.")
flags.DEFINE_string("workdir", None, "Directory of the run.")
flags.DEFINE_string("distributed", "auto", "Several processes: auto, on or off.")
flags.DEFINE_string("coordinator", None, "host:port of process 0.")
flags.DEFINE_integer("num_processes", None, "How many processes train together.")
flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.")
flags.DEFINE_bool("dry_run", False, "Print config, parameters and memory, then exit.")


def parse(argv: list[str]):
    """Parse the flags; exit with code 2 and one line if one of them is wrong."""
    show_help(argv, __doc__, FLAGS)
    try:
        FLAGS(argv)
        if FLAGS.config is None:
            raise flags.Error("--config is required, e.g. --config=configs/emoji.py")
        if FLAGS.workdir is None and not FLAGS.dry_run:
            raise flags.Error("--workdir is required, e.g. --workdir=runs/emoji")
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
        fail(error)
    except OSError as error:
        fail(f"cannot read the config file: {error}")


def fail(error: object) -> None:
    """One line on stderr, exit code 2."""
    os.write(2, error_line("train.py", error).encode())
    raise SystemExit(2)


class Output(logging.StreamHandler):
    """Standard output for the log; if it cannot be written the program ends.

    logging itself would print a traceback for every line and go on.
    """

    def handleError(self, record) -> None:  # noqa: N802  the base class's name
        from lDM_jax.core.errors import UserError

        reason = sys.exc_info()[1]
        with contextlib.suppress(OSError):  # so that the flush at exit succeeds
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())
        raise UserError(
            f"the log cannot be written to standard output: {reason}; the last whole "
            "checkpoint is intact"
        ) from None


def start_logging() -> None:
    """Plain lines on standard output; of process 0, warnings of the others."""
    import jax

    output = Output(sys.stdout)
    output.setFormatter(logging.Formatter("%(message)s"))
    first = jax.process_index() == 0
    level = logging.INFO if first else logging.WARNING
    logging.basicConfig(level=level, handlers=[output], force=True)
    logging.getLogger("absl").setLevel(logging.CRITICAL)


def main(argv: list[str]) -> int:
    parse(argv)
    from lDM_jax.core import distributed
    from lDM_jax.core.errors import UserError
    from lDM_jax.core.sharding import make_mesh
    from lDM_jax.evaluation import tracking
    from lDM_jax.from_config import datasets
    from lDM_jax.training import experiment as experiment_lib
    from lDM_jax.training import loop
    from lDM_jax.training.summary import summary, training_flops
    from lDM_jax.weights.checkpoint import quiet_orbax

    quiet_orbax()
    try:
        if not FLAGS.dry_run:
            distributed.start(
                FLAGS.distributed,
                coordinator=FLAGS.coordinator,
                num_processes=FLAGS.num_processes,
                process_id=FLAGS.process_id,
            )
        start_logging()
        datasets.resolve(FLAGS.config)
        if FLAGS.dry_run:
            logging.getLogger(__name__).info("%s", summary(FLAGS.config))
            return 0
        mesh = make_mesh(**FLAGS.config.mesh)
        experiment = experiment_lib.make(FLAGS.config, workdir=FLAGS.workdir)
        experiment.judge = tracking.judge_of(experiment, FLAGS.workdir)
        image_flops = training_flops(FLAGS.config, mesh.devices.flat)
        return loop.run(experiment, FLAGS.workdir, mesh=mesh, image_flops=image_flops)
    except UserError as error:
        fail(error)


if __name__ == "__main__":
    prepare()
    sys.exit(main(sys.argv))
