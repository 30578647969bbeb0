"""What goes wrong, by the codes of the Generative Media Spec."""

from __future__ import annotations

from typing import Any


STATUS = {
    "invalid_request": 400,
    "unauthorized": 401,
    "forbidden": 403,
    "not_found": 404,
    "too_large": 413,
    "rate_limited": 429,
    "internal": 500,
    "not_implemented": 501,
    "unavailable": 503,
}


class ServiceError(Exception):
    """Something that a client is told.

    Args:
        code: One of `STATUS`.
        message: What is wrong, and how to put it right.
        details: More about it.
    """

    def __init__(self, code: str, message: str, **details: Any):
        super().__init__(message)
        self.code = code
        self.message = message
        self.details = details

    @property
    def status(self) -> int:
        """The HTTP status."""
        return STATUS[self.code]

    def to_dict(self) -> dict[str, Any]:
        """The body of the answer."""
        return {"error": {"code": self.code, "message": self.message, **self.details}}
