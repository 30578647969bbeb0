"""What stands in front of the routes: who may ask, from where, and how much they may send."""

from __future__ import annotations

import base64
import hmac
import json
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

from pipelines.service.errors import ServiceError
from pipelines.service.settings import ServiceSettings


Message = dict
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
OPEN_PATHS = ("/health",)
UPLOADS = ("/v1/score", "/gradio_api/upload")
UPLOADS_IN_JSON = ("/v1/generations",)  # in base64


class Guard:
    """An ASGI middleware that refuses requests before anything reads them.

    Args:
        app: What is behind it.
        settings: The limits.
    """

    def __init__(self, app, settings: ServiceSettings):
        self.app = app
        self.settings = settings

    async def __call__(self, scope: dict, receive: Receive, send: Send) -> None:
        """Answers a request, or hands it on."""
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
                return
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        limit = self._limit(scope["path"])
        has_begun = False

        async def watch(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            self._check(scope, headers, limit)
            await self.app(scope, _counted(receive, limit), watch)
        except ServiceError as error:
            if not has_begun:
                await _answer(send, error)

    def _limit(self, path: str) -> int:
        """How large a body may be."""
        if path in UPLOADS_IN_JSON:
            return self.settings.max_body_bytes + self.settings.max_upload_bytes * 4 // 3
        return self.settings.max_upload_bytes if path in UPLOADS else self.settings.max_body_bytes

    def _check(self, scope: dict, headers: dict[str, str], limit: int) -> None:
        host = headers.get("host", "")
        if self.settings.hosts and _host_name(host) not in self.settings.hosts:
            raise ServiceError("forbidden", f"This service does not answer to the name {host!r}.")
        origin = headers.get("origin")
        if origin is not None and scope["method"] not in ("GET", "HEAD") and urlsplit(origin).netloc != host:
            raise ServiceError("forbidden", f"Pages of {origin!r} may not use this service.")
        if self.settings.api_key is not None and scope["path"] not in OPEN_PATHS:
            given = _key_in(headers.get("authorization", "")) or headers.get("x-api-key", "")
            if not hmac.compare_digest(given.encode(), self.settings.api_key.encode()):
                raise ServiceError("unauthorized", "Send the service's key as `Authorization: Bearer …`.")
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > limit:
            raise ServiceError("too_large", f"A body may have at most {limit} bytes here, got {length[:40]}.")


def _key_in(authorization: str) -> str:
    """The key that a client shows: as a bearer, or as the password that a browser asked its user for."""
    scheme, _, given = authorization.partition(" ")
    if scheme.lower() != "basic":
        return given
    try:
        return base64.b64decode(given, validate=True).decode().partition(":")[2]
    except ValueError:
        return ""


def _host_name(host: str) -> str:
    """The name in a `Host` header, without the port."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _counted(receive: Receive, limit: int) -> Receive:
    """Receives at most `limit` bytes, whatever the headers say."""
    received = 0

    async def receive_counted() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > limit:
            raise ServiceError("too_large", f"A body may have at most {limit} bytes here.")
        return message

    return receive_counted


async def _answer(send: Send, error: ServiceError) -> None:
    body = json.dumps(error.to_dict()).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if error.code == "unauthorized":
        headers.append((b"www-authenticate", b'Basic realm="qamdt, any name, the key as password"'))
    # What is left of the body is not read: the connection ends with the answer.
    headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
