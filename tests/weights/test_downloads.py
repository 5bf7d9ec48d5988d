"""Fetched files: whole and checked, or one line that says what to do."""

import hashlib
import http.server
import socket
import threading

import pytest

from lDM_jax.core.errors import UserError
from lDM_jax.weights import downloads

DATA = bytes(range(256)) * 9000  # more than two chunks
SHA256 = hashlib.sha256(DATA).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """/whole, /short (ends early), /other (another content), /silent; else 404."""

    def do_GET(self):
        self.server.requested.append(self.path)
        if self.path == "/silent":
            self.server.patience.wait(5)
            return
        bodies = {"/whole": DATA, "/short": DATA[:-1], "/other": DATA[::-1]}
        if self.path not in bodies:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(DATA)))
        self.end_headers()
        self.wfile.write(bodies[self.path])

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "127.0.0.1")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.requested, server.patience = [], threading.Event()
    thread = threading.Thread(
        target=server.serve_forever, kwargs=dict(poll_interval=0.05)
    )
    thread.start()
    yield server
    server.patience.set()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LDM_JAX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def url(server, path: str) -> str:
    return f"http://127.0.0.1:{server.server_port}{path}"


@pytest.mark.parametrize("digits", [8, 64])
def test_a_file_is_fetched_once(server, cache, digits):
    for _ in range(2):
        path = downloads.fetch(url(server, "/whole"), sha256_prefix=SHA256[:digits])
        assert path == cache / "whole" and path.read_bytes() == DATA
    assert server.requested == ["/whole"]
    assert list(cache.iterdir()) == [path]


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/short", f"ended after {len(DATA) - 1} of {len(DATA)} bytes"),
        ("/other", f"instead of {SHA256[:8]}"),
        ("/none", "404"),
        ("/silent", "timed out"),
    ],
)
def test_anything_else_leaves_nothing_and_says_what_to_do(
    server, cache, monkeypatch, path, reason
):
    monkeypatch.setattr(downloads, "TIMEOUT_SECS", 0.5)
    address = url(server, path)
    with pytest.raises(UserError) as error:
        downloads.fetch(
            address, sha256_prefix=SHA256, name="vgg.pth", otherwise="do without"
        )
    text = str(error.value)
    for part in (reason, address, str(cache / "vgg.pth"), "do without"):
        assert part in text
    assert "\n" not in text
    assert list(cache.iterdir()) == []


def test_files_of_a_disk(cache, tmp_path):
    source = tmp_path / "whole"
    source.write_bytes(DATA)
    cache.mkdir()
    path = downloads.fetch(source.as_uri(), sha256_prefix=SHA256, name="copy")
    assert path == cache / "copy" and path.read_bytes() == DATA


def test_nobody_there(cache, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with pytest.raises(UserError, match="cannot download gone .*refused"):
        downloads.fetch(f"http://127.0.0.1:{port}/gone", sha256_prefix=SHA256)


def test_a_file_put_there_by_hand_is_checked(cache):
    cache.mkdir()
    (cache / "whole").write_bytes(DATA)
    address = "http://nowhere.invalid/whole"
    assert downloads.fetch(address, sha256_prefix=SHA256) == cache / "whole"
    (cache / "whole").write_bytes(DATA[:-1])
    with pytest.raises(UserError, match="delete or replace it"):
        downloads.fetch(address, sha256_prefix=SHA256)


def test_a_cache_that_cannot_be_written_is_told(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LDM_JAX_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(UserError, match="Not a directory"):
        downloads.fetch("http://nowhere.invalid/a", sha256_prefix=SHA256)


def test_the_cache_is_in_the_home_by_default(monkeypatch, tmp_path):
    monkeypatch.delenv("LDM_JAX_CACHE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert downloads.cache_folder() == tmp_path / ".cache" / "lDM_jax"
