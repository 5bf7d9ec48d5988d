"""Programs run as `python -m lDM_jax.tools.<name>`, each with flags and one call.

A tool has `arguments(parser)`, which declares its flags, and `run(args)`, which does
the work; `make_main` makes a program of the two.
"""

import argparse
import json
import logging
import sys
from collections.abc import Callable, Sequence

from lDM_jax.core.errors import UserError
from lDM_jax.core.startup import error_line, settle

settle()

Result = dict | str | int | None


def make_main(
    name: str,
    about: str | None,
    arguments: Callable[[argparse.ArgumentParser], None],
    run: Callable[[argparse.Namespace], Result],
) -> Callable[..., int]:
    """`main(argv=None)` of a tool: parse, run, print the result, return the exit code.

    name: of the module. about: its docstring, shown by --help. A result that is a dict
    is printed as one JSON line, a text as it is, None not at all; a number is the exit
    code. UserError and OSError become one line on stderr and exit code 2.
    """

    def main(argv: Sequence[str] | None = None) -> int:
        parser = argparse.ArgumentParser(
            prog=f"python -m lDM_jax.tools.{name}",
            description=about,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        arguments(parser)
        args = parser.parse_args(argv)
        # after the flags are parsed: it imports jax, and --help should answer at once
        from lDM_jax.weights.checkpoint import quiet_orbax

        quiet_orbax()
        try:
            result = run(args)
        except (UserError, OSError) as error:
            sys.stderr.write(error_line(name, error))
            return 2
        if isinstance(result, int):
            return result
        if result is not None:
            text = json.dumps(result) if isinstance(result, dict) else result
            sys.stdout.write(f"{text}\n")
        return 0

    return main


def parse_share(flag: str, text: str) -> tuple[int, int]:
    """ "0/4" -> (0, 4). UserError, which names the flag, for anything else."""
    index, _, count = text.partition("/")
    if index.isdigit() and count.isdigit() and int(index) < int(count):
        return int(index), int(count)
    raise UserError(
        f"{flag} {text}: give INDEX/COUNT with 0 <= INDEX < COUNT, such as 0/4"
    )


def log_to_stdout() -> None:
    """Show what the package logs, as plain lines; nothing of absl's."""
    logging.basicConfig(
        level=logging.INFO, format="%(message)s", stream=sys.stdout, force=True
    )
    logging.getLogger("absl").setLevel(logging.CRITICAL)
