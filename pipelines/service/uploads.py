"""Large bodies: few of them at a time, none for ever, and the sound in one apart from the JSON around it."""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import re
import threading
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING

from pipelines.service.errors import ServiceError
from pipelines.service.settings import ServiceSettings


if TYPE_CHECKING:
    from fastapi import Request

MAX_UPLOAD_IN_S = 120.0
_SOUND = re.compile(rb'"base64"\s*:\s*"([A-Za-z0-9+/=\\]*)"')


class Uploads:
    """The places for bodies that may be large.

    Args:
        settings: The limits.
    """

    def __init__(self, settings: ServiceSettings):
        self._settings = settings
        self._places = threading.BoundedSemaphore(settings.max_uploads)

    @contextlib.contextmanager
    def place(self, request: Request) -> Iterator[None]:
        """Holds a place for a request, unless it says that its body is small.

        Raises:
            ServiceError: All places are taken.
        """
        length = request.headers.get("content-length", "")
        if length.isdecimal() and int(length) <= self._settings.max_body_bytes:
            yield
            return
        if not self._places.acquire(blocking=False):
            raise ServiceError("rate_limited", "Too many sound files are being sent. Try again later.")
        try:
            yield
        finally:
            self._places.release()

    async def read(self, request: Request) -> bytes:
        """Reads a body, which the request does not keep.

        Raises:
            ServiceError: It took too long.
        """
        body = bytearray()
        async with self.in_time():
            async for part in request.stream():
                body += part
        return bytes(body)

    @contextlib.asynccontextmanager
    async def in_time(self) -> AsyncIterator[None]:
        """Limits how long a client may take to send its body.

        Raises:
            ServiceError: It took longer.
        """
        try:
            async with asyncio.timeout(MAX_UPLOAD_IN_S):
                yield
        except TimeoutError as error:
            raise ServiceError("invalid_request", f"A body must be sent within {MAX_UPLOAD_IN_S:g} s.") from error


def detach_sound(body: bytes, max_rest: int) -> tuple[bytes, bytes | None]:
    """Takes the sound out of a body, so that what is parsed as JSON stays small.

    Args:
        body: JSON in which one string called `base64` may be a sound.
        max_rest: Most bytes of what is left.

    Returns:
        The body with an empty string in its place, and the sound; `None` if there is none.

    Raises:
        ServiceError: Too much is left, or it is no base64.
    """
    found = _SOUND.search(body)
    rest = body if found is None else body[: found.start(1)] + body[found.end(1) :]
    if len(rest) > max_rest:
        raise ServiceError("too_large", f"A body may have at most {max_rest} bytes here, a sound in it not counted.")
    if found is None:
        return rest, None
    try:
        return rest, base64.b64decode(found[1].replace(b"\\/", b"/"), validate=True)  # as some write "/" in JSON
    except binascii.Error as error:
        raise ServiceError("invalid_request", f"The sound is not base64: {error}") from error
