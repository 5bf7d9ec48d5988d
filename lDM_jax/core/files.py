"""Files: where the package keeps its own, and writing that leaves nothing half done."""

import contextlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

ASSETS = Path(__file__).parents[1] / "assets"


@contextlib.contextmanager
def replacing(path: Path, *, shared: bool = False) -> Iterator[Path]:
    """A path beside `path` to write to; when the block ends well, it becomes `path`.

    Readers see the old file or the whole new one. After an error, the partial file is
    removed and `path` is as it was. The partial name starts with a dot and keeps the
    suffix, so that libraries which choose a format by it choose the same one. The block
    may also make a folder of that name. shared: several processes may write `path` at
    once; each has a partial file of its own.
    """
    path = Path(path)
    own = f".{secrets.token_hex(4)}" * shared
    partial = path.with_name(f".{path.stem}{own}.partial{path.suffix}")
    _remove(partial)  # what a killed process left
    try:
        yield partial
        os.replace(partial, path)
    finally:
        _remove(partial)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)


def write_json(file: Path, value: dict) -> None:
    """Write atomically."""
    with replacing(file) as partial:
        partial.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n")
