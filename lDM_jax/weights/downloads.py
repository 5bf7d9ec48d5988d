"""Files that are fetched on first use and kept: $LDM_JAX_CACHE or ~/.cache/lDM_jax.

A file arrives whole or not at all: it is written beside its place, its SHA-256 checked,
then renamed. A file put there by hand is as good, and is checked as well.
"""

import hashlib
import http.client
import os
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

from tqdm import tqdm

from lDM_jax.core.errors import UserError
from lDM_jax.core.files import replacing

TIMEOUT_SECS = 10
CHUNK_BYTES = 2**20


def cache_folder() -> Path:
    """Where fetched files are kept; need not exist yet."""
    return Path(os.environ.get("LDM_JAX_CACHE") or "~/.cache/lDM_jax").expanduser()


def fetch(url: str, *, sha256_prefix: str, name: str = "", otherwise: str = "") -> Path:
    """The path of the file at `url`, downloaded unless the cache has it.

    sha256_prefix: the first hexadecimal digits of its SHA-256, or all 64. name: in the
    cache, by default the URL's. UserError in one line if the file cannot be had, saying
    where to put it by hand; `otherwise` ends that line with how to do without.
    """
    path = cache_folder() / (name or Path(urlsplit(url).path).name)
    if path.is_file():
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        try:
            _check(digest, sha256_prefix)
        except OSError as error:
            text = f"{path} is not the file of {url} ({error}): delete or replace it"
            raise UserError(text) from None
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _download(url, path, sha256_prefix)
    except (OSError, ValueError, http.client.HTTPException) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()  # it is the server's answer, with its socket
        reason = " ".join(str(error).split()) or type(error).__name__
        text = (
            f"cannot download {path.name} ({reason}): put the file of {url} at {path}"
        )
        raise UserError(text + (f"; or {otherwise}" if otherwise else "")) from None
    return path


def _download(url: str, path: Path, sha256_prefix: str) -> None:
    """Fetch, check and rename; OSError for what is cut short or another file."""
    digest, size = hashlib.sha256(), 0
    with replacing(path, shared=True) as partial:
        with urllib.request.urlopen(url, timeout=TIMEOUT_SECS) as reply:
            total = int(reply.headers.get("Content-Length") or 0)
            unit = dict(unit="B", unit_scale=True)
            bar = tqdm(total=total or None, desc=path.name, disable=None, **unit)
            with bar, partial.open("wb") as file:
                while chunk := reply.read(CHUNK_BYTES):
                    file.write(chunk)
                    digest.update(chunk)
                    size += len(chunk)
                    bar.update(len(chunk))
        if size < total:
            raise OSError(f"it ended after {size} of {total} bytes")
        _check(digest.hexdigest(), sha256_prefix)


def _check(digest: str, sha256_prefix: str) -> None:
    """OSError unless the digest begins with the prefix."""
    if not digest.startswith(sha256_prefix):
        begins = f"its SHA-256 begins with {digest[:8]}"
        raise OSError(f"{begins} instead of {sha256_prefix[:8]}")
