"""A page where people steer a model while it draws.

    python -m lDM_jax.tools.studio --model emoji

--model may be given several times: shipped names, work directories, converted ones. The
page is served to this machine only, at http://127.0.0.1:7860; --host opens it to others
and needs a password (--password, or the variable LDM_STUDIO_PASSWORD), asked for with
the name "studio". Nothing is fetched from elsewhere, and uploads never touch a disk.
What happens behind this command is `lDM_jax.studio`.
"""

import argparse
import atexit
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Sequence

from lDM_jax.core.errors import UserError
from lDM_jax.core.startup import error_line
from lDM_jax.sampling.pipeline import Pipeline
from lDM_jax.studio.player import Studio
from lDM_jax.studio.served import Served
from lDM_jax.weights.checkpoint import quiet_orbax

PASSWORD = "LDM_STUDIO_PASSWORD"
LOOPBACK = "127.0.0.1"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    main = argparse.ArgumentParser(
        prog="python -m lDM_jax.tools.studio", description=__doc__.splitlines()[0]
    )
    main.add_argument("--model", action="append", help="may be repeated; emoji if none")
    main.add_argument("--host", help="address to serve others at; needs a password")
    main.add_argument("--port", type=int, default=7860, help="0 takes a free one")
    main.add_argument("--password", help=f"of the name studio; or set {PASSWORD}")
    main.add_argument("--open", action="store_true", help="open a browser")
    return main


def password_of(args: argparse.Namespace) -> str:
    """The password, "" for none. UserError if others are served without one."""
    password = args.password or os.environ.get(PASSWORD, "")
    if args.host and len(password) < 8:
        raise UserError(
            f"--host={args.host} serves others: give --password, or set {PASSWORD}, of "
            "8 characters or more"
        )
    return password


def load(names: Sequence[str]) -> Studio:
    """The models, ready to draw: each is compiled once with its defaults."""
    models = {}
    for name in dict.fromkeys(names):
        sys.stderr.write(f"loading {name} ...\n")
        models[name] = Served(name, Pipeline.load(name))
    studio = Studio(models)
    for place, served in enumerate(models.values(), start=1):
        sys.stderr.write(f"compiling {served.name} ({place} of {len(models)}) ...\n")
        studio.warm(served)
    return studio


def serve(studio: Studio, args: argparse.Namespace, password: str):
    """Start the page; returns its gradio.Blocks, which serve until they are closed."""
    # the toolkit reads these when it is imported
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    folder = tempfile.mkdtemp(prefix="studio-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ["GRADIO_TEMP_DIR"] = folder
    from lDM_jax.studio.page import events

    page = events.build(studio)
    events.launch(
        page,
        host=args.host or LOOPBACK,
        port=args.port or None,
        auth=("studio", password) if password else None,
        open_browser=args.open,
    )
    return page


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    quiet_orbax()
    try:
        password = password_of(args)
        page = serve(load(args.model or ["emoji"]), args, password)
    except (UserError, OSError) as error:
        sys.stderr.write(error_line("studio", error))
        return 2
    sys.stderr.write(f"the studio is at {page.local_url}; Ctrl-C ends it\n")
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        page.close(verbose=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
