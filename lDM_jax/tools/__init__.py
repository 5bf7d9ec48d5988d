"""Programs run as `python -m lDM_jax.tools.<name>`, each with flags and one call.

A tool has `arguments(parser)`, which declares its flags, and `run(args)`, which does
the work; `make_main` makes a program of the two.
"""

import argparse
import functools
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
    """The tool's `main(argv=None)`: `run_tool` with these."""
    return functools.partial(run_tool, name, about, arguments, run)


def run_tool(
    name: str,
    about: str | None,
    arguments: Callable[[argparse.ArgumentParser], None],
    run: Callable[[argparse.Namespace], Result],
    argv: Sequence[str] | None = None,
) -> int:
    """Parse the flags, run, print the result; returns the exit code.

    name: of the module. about: its docstring, shown by --help. A result that is a dict
    is printed as one JSON line, a text as it is, None not at all; a number is the exit
    code. UserError and OSError become one line on stderr and exit code 2.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m lDM_jax.tools.{name}",
        description=about,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    arguments(parser)
    args = parser.parse_args(argv)
    # not before the flags are parsed: it imports jax, and --help should answer at once
    from lDM_jax.weights.checkpoint import quiet_orbax

    quiet_orbax()
    try:
        result = run(args)
    except (UserError, OSError) as error:
        sys.stderr.write(error_line(name, error))
        return 2
    if isinstance(result, int):
        return result
    if isinstance(result, dict):
        result = json.dumps(result)
    if result is not None:
        sys.stdout.write(f"{result}\n")
    return 0


def log_to_stdout() -> None:
    """Show what the package logs, as plain lines; nothing of absl's."""
    logging.basicConfig(
        level=logging.INFO, format="%(message)s", stream=sys.stdout, force=True
    )
    logging.getLogger("absl").setLevel(logging.CRITICAL)
