"""What stands between the network and the page: an ASGI middleware.

Refuses bodies that are too large and the web toolkit's own routes for files, which the
page does not need (uploads come inside events and never touch a disk), and tells the
browser to fetch nothing from anywhere else.
"""

from collections.abc import Callable

from lDM_jax.studio.limits import MAX_UPLOAD

MAX_BODY = 2 * MAX_UPLOAD  # an upload as base64, and the controls
CLOSED = ("/upload", "/file=", "/file/", "/stream/", "/proxy=", "/deep_link")
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
    "font-src 'self' data:; connect-src 'self' data: blob:; worker-src 'self' blob:; "
    "object-src 'none'; base-uri 'self'"
)
HEADERS = [
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
]


class SecurityMiddleware:
    """Wraps an ASGI application."""

    def __init__(self, app: Callable):
        self._app = app

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"].removeprefix("/gradio_api")
        if path.startswith(CLOSED):
            await refuse(send, 403, b"this page takes no files here")
            return
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if not length.isdigit() or int(length) > MAX_BODY:
            await refuse(send, 413, b"too large")
            return
        taken = 0

        async def counted() -> dict:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > MAX_BODY:  # sent in pieces, without a length
                return {"type": "http.disconnect"}
            return message

        async def with_headers(message: dict) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], *HEADERS]}
            await send(message)

        await self._app(scope, counted, with_headers)


async def refuse(send: Callable, status: int, text: bytes) -> None:
    """Answer without asking the application."""
    headers = [(b"content-type", b"text/plain"), *HEADERS]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text})
