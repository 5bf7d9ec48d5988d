"""What the studio refuses: hostile files and fields, the server's routes; bounds."""

import asyncio
import base64
import json
import threading
import time
import zlib

import numpy as np
import pytest

from lDM_jax.core.errors import UserError
from lDM_jax.sampling import pixels as pixels_lib
from lDM_jax.studio import files, fragments, limits, session
from lDM_jax.studio.middleware import MAX_BODY, SecurityMiddleware
from lDM_jax.studio.player import FairLock, View
from lDM_jax.studio.session import Sessions
from tests.toys import EMPTY, PICTURE, chunk, png, png_header

BOMB = chunk(b"zTXt", b"lDM_jax\0\0" + zlib.compress(b" " * 2**28, 1))
DEEP = b"[" * 100_000
HOSTILE = {
    "empty": b"",
    "text": b"hello",
    "script": b"<svg onload=alert(1) xmlns='http://www.w3.org/2000/svg'/>",
    "html": b"<script>alert(1)</script>",
    "pdf": b"%PDF-1.7 1 0 obj",
    "zip": b"PK\x03\x04" + bytes(100),
    "elf": b"\x7fELF" + bytes(100),
    "pickle": b"\x80\x04cos\nsystem\n",
    "zeros": bytes(1000),
    "cut png": png()[:300],
    "head only": png_header(64, 64),
    "huge extent": png_header(60_000, 60_000, EMPTY),
    "no extent": png_header(0, 0),
    "text bomb": png_header(8, 8, BOMB, chunk(b"IDAT", zlib.compress(bytes(200)))),
    "cut jpeg": b"\xff\xd8\xff\xe0\x00\x10JFIF" + bytes(40),
    "cut gif": b"GIF89a\xff\xff\xff\xff\x00\x00\x00",
    "cut webp": b"RIFF\x10\x00\x00\x00WEBPVP8 " + bytes(8),
    "bad bmp": b"BM" + b"\xff" * 60,
    "tiff": b"II*\x00" + bytes(40),
    "too many bytes": b"\x89PNG" + bytes(limits.MAX_UPLOAD),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_picture_is_refused_in_one_line(name):
    with pytest.raises(UserError, match=name) as refused:
        limits.decode_image(HOSTILE[name], name)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 300


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_record_is_refused_in_one_line(name):
    with pytest.raises(UserError, match=name):
        limits.record(HOSTILE[name], name)


RECORDS = {
    "a file name": ({"image": "/etc/passwd"}, "no file name"),
    "a relative one": ({"mask": "../secret.png"}, "no file name"),
    "in a region": ({"regions": [["a", "/etc/passwd"]]}, "no file name"),
    "in an edit": ({"edits": [{"step": 1, "image": "/etc/passwd"}]}, "no file name"),
    "an address": ({"image": "http://localhost/x.png"}, "no file name"),
    "no base64": ({"image": "data:image/png;base64,?"}, "base64"),
    "unknown": ({"colour": 1}, "has no colour"),
    "steps": ({"steps": 10**9}, "steps is 1000000000"),
    "part of a step": ({"steps": 2.5}, "steps is 2.5"),
    "nan": ({"guidance": float("nan")}, "guidance is nan"),
    "list": ({"prompt": ["a"]}, "prompt is"),
    "long": ({"prompt": "a" * 10_000}, "prompt is"),
    "seed": ({"seeds": [2**40]}, "seed is"),
    "no seeds": ({"seeds": []}, "seeds is"),
    "size": ({"size_px": [10**6, 64]}, "size_px is 1000000"),
    "boxes": ({"layout": [[1, [0, 0, 9, 1]]]}, "a box is 9"),
    "many boxes": ({"layout": [[1, [0, 0, 1, 1]]] * 1000}, "layout is"),
    "weight": ({"regions": [["a", [0, 0, 1, 1], 7]]}, "weight is 7"),
    "bool": ({"steps": True}, "steps is True"),
    "edits": ({"edits": [{"step": 0}] * 501}, "501 edits"),
    "sampler": ({"sampler": {"a": 1}}, "sampler is"),
}


@pytest.mark.parametrize("name", RECORDS)
def test_fields_out_of_bounds_are_refused(name):
    fields, words = RECORDS[name]
    data = png(request={"prompt": "x", **fields})
    with pytest.raises(UserError, match=words) as refused:
        limits.checked_trajectory(limits.record(data))
    assert len(str(refused.value)) < 300


def test_json_that_is_none_is_refused():
    for data in (DEEP, b"{", b"[1]", b"\xff\xfe", b"null"):
        with pytest.raises(UserError):
            limits.record(data)


def test_a_file_in_an_event():
    data = {"name": "a.png", "size": 3, "data": base64.b64encode(b"abc").decode()}
    assert files.received(data) == ("a.png", b"abc")
    for bad in (
        {**data, "size": 10**9, "data": ""},
        {**data, "data": "a" * (2 * limits.MAX_UPLOAD)},
        {**data, "data": "?"},
        {**data, "data": 3},
        {**data, "data": ""},
        {},
    ):
        with pytest.raises(UserError):
            files.received(bad)


def test_a_record_of_ours_passes_with_its_pixels():
    mask = np.eye(32, dtype=np.int32)
    uri = pixels_lib.to_uri(mask)
    stored = {"prompt": "a", "seeds": [5, 6], "edits": [{"step": 2, "mask": uri}]}
    edited = limits.checked_trajectory(json.loads(json.dumps(stored)))
    assert edited.request.seeds == (5,)
    np.testing.assert_array_equal(edited.edits[0].changes["mask"], mask)


def test_fitted_keeps_the_middle_and_the_proportions():
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = 200
    assert (limits.fit(wide, (10, 10)) == 200).all()
    assert limits.fit(wide, (20, 60)).shape == (20, 60, 3)


def test_texts_of_people_are_escaped():
    evil = "<img src=x onerror=alert(1)>\"'"
    for html in (fragments.message(evil), fragments.stage(View("paused", note=evil))):
        assert "<img src=x" not in html and "&lt;img" in html


def test_the_lock_goes_in_the_order_of_arrival_and_round():
    lock, order, ready = FairLock(), [], threading.Barrier(3)

    def person(name: str) -> None:
        ready.wait()
        for _ in range(20):
            with lock:
                order.append(name)
                time.sleep(0.002)

    people = [threading.Thread(target=person, args=(name,)) for name in "abc"]
    for each in people:
        each.start()
    for each in people:
        each.join()
    assert lock.waiting == 0
    # whoever has had a turn waits for both others, but for the beginning
    assert all(len(set(order[i : i + 3])) == 3 for i in range(6, 50))


def test_a_turn_that_fails_lets_the_next_one_in():
    lock = FairLock()
    with pytest.raises(RuntimeError), lock:
        raise RuntimeError
    with lock:
        assert lock.waiting == 1


def test_sessions_are_bounded_and_the_idle_ones_go(monkeypatch):
    now = [0.0]
    sessions = Sessions(lambda: now[0])
    first = sessions.get("a")
    assert sessions.get("a") is first and sessions.get("b") is not first
    first.keep(PICTURE, {}, "x")
    now[0] = session.IDLE_SECS + 1
    sessions.get("c")
    assert len(sessions) == 1 and first.closed and first.gallery == []
    for number in range(2 * session.MAX_SESSIONS):
        sessions.get(str(number))
    assert len(sessions) == session.MAX_SESSIONS
    sessions.drop("nobody")


def test_the_gallery_is_bounded_by_number_and_by_bytes(monkeypatch):
    own = Sessions().get("a")
    for _ in range(session.MAX_DRAWINGS + 5):
        own.keep(PICTURE, {}, "x")
    assert len(own.gallery) == session.MAX_DRAWINGS
    assert own.gallery[-1].number == session.MAX_DRAWINGS + 5
    monkeypatch.setattr(session, "GALLERY_BYTES", 3 * (PICTURE.nbytes + 2))
    own.keep(PICTURE, {}, "x")
    assert len(own.gallery) == 3


def answer(path: str, *, headers=(), body=b"") -> list[dict]:
    """What the middleware sends for a request; the application behind it says 200."""
    sent = []

    async def app(scope, receive, send):
        taken = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            taken += len(message.get("body", b""))
            if not message.get("more_body"):
                break
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"%d" % taken})

    pieces = [body[i : i + 2**20] for i in range(0, len(body), 2**20)] or [b""]

    async def receive():
        piece = pieces.pop(0)
        return {"type": "http.request", "body": piece, "more_body": bool(pieces)}

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "path": path, "headers": list(headers)}
    asyncio.run(SecurityMiddleware(app)(scope, receive, send))
    return sent


def test_the_middleware_closes_the_routes_of_files_and_bounds_bodies():
    for path in ("/gradio_api/upload", "/gradio_api/file=/etc/passwd", "/upload"):
        assert answer(path)[0]["status"] == 403
    ok = answer("/gradio_api/queue/join", body=b"abc")
    assert ok[0]["status"] == 200 and ok[1]["body"] == b"3"
    assert b"default-src 'self'" in dict(ok[0]["headers"])[b"content-security-policy"]
    for length in (b"99999999999", b"-1", b"x"):
        sent = answer("/x", headers=[(b"content-length", length)])
        assert sent[0]["status"] == 413
    assert answer("/x", body=bytes(MAX_BODY + 1)) == []  # in pieces, cut off
