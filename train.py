"""Train either stage: flags -> config -> lDM_jax.training.loop.

    python train.py --config=configs/emoji.py --workdir=runs/emoji

The same command resumes. `--config.section.key=value` overrides a value, `:smoke` after
the config's file name shrinks it to twenty CPU steps, `--dry_run` prints what would be
built. A config file is Python and runs when it is read. User errors exit with code 2.
"""

import logging
import os
import sys

from absl import flags
from ml_collections import config_flags

FLAGS = flags.FLAGS
config_flags.DEFINE_config_file("config", None, "Config file, e.g. configs/emoji.py.")
flags.DEFINE_string("workdir", None, "Directory of the run.")
flags.DEFINE_bool("dry_run", False, "Print config, parameters and memory, then exit.")


def parse(argv: list[str]):
    """Parse the flags; exit with code 2 and one line if one of them is wrong."""
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
    text = error.args[0] if isinstance(error, KeyError) and error.args else error
    line = " ".join(str(text).split())
    os.write(2, f"train.py: error: {line}\n".encode())
    raise SystemExit(2)


def main(argv: list[str]) -> int:
    parse(argv)
    from lDM_jax import experiment as experiment_lib
    from lDM_jax.arrays import UserError
    from lDM_jax.summary import summary
    from lDM_jax.training import loop
    from lDM_jax.training.checkpoint import quiet_orbax
    from lDM_jax.training.sharding import make_mesh

    logging.basicConfig(
        level=logging.INFO, format="%(message)s", stream=sys.stdout, force=True
    )
    quiet_orbax()
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    try:
        if FLAGS.dry_run:
            logging.getLogger(__name__).info("%s", summary(FLAGS.config))
            return 0
        experiment = experiment_lib.make(FLAGS.config)
        return loop.run(experiment, FLAGS.workdir, mesh=make_mesh(**FLAGS.config.mesh))
    except UserError as error:
        fail(error)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
