"""What a service allows, and where it keeps what it made."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path

from pipelines.input_checks import check_count, check_number


MIB = 1 << 20
LOOPBACK_NAMES = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True, kw_only=True)
class ServiceSettings:
    """Limits and places of a service.

    Args:
        folder: Where jobs and what they made are kept; belongs to one service at a time.
        model: Folder or Hub id; the default model when `None`.
        device: Where to compute; a GPU where there is one when `None`.
        max_waiting: Generations that may wait; one more is refused with status 429.
        max_seconds: Longest clip.
        max_steps: Most denoising steps.
        max_clips: Most clips of one request, candidates of `best_of` included.
        max_prompt: Most characters of a text.
        max_body_bytes: Largest body, a sound in it not counted.
        max_upload_bytes: Largest sound file that may be sent.
        max_upload_seconds: Longest one to score; what a clip begins with may last `max_seconds`.
        max_uploads: Sound files that are received, looked at or scored at the same time.
        keep_hours: How long what is finished stays.
        api_key: What clients must show; nothing when `None`.
        hosts: Names that the service may be called by, against DNS rebinding; any when empty.
    """

    folder: Path
    model: str | None = None
    device: str | None = None
    max_waiting: int = 16
    max_seconds: float = 60.0
    max_steps: int = 200
    max_clips: int = 8
    max_prompt: int = 2000
    max_body_bytes: int = 1 << 16
    max_upload_bytes: int = 32 * MIB
    max_upload_seconds: float = 600.0
    max_uploads: int = 4
    keep_hours: float = 24.0
    api_key: str | None = None
    hosts: tuple[str, ...] = ()

    def __post_init__(self):
        for name in (
            "max_waiting", "max_steps", "max_clips", "max_prompt", "max_body_bytes", "max_upload_bytes", "max_uploads"
        ):  # fmt: skip
            check_count(name, getattr(self, name))
        for name in ("max_seconds", "max_upload_seconds", "keep_hours"):
            check_number(name, getattr(self, name), is_open=True)
        if self.api_key is not None and not self.api_key.strip():
            raise ValueError("`api_key` must not be empty; leave it out for a service that asks for none.")


def allowed_hosts(host: str) -> tuple[str, ...]:
    """Names that a service may be called by: those of this machine's own, if it answers to itself alone."""
    try:
        is_loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_loopback = host == "localhost"
    return (*LOOPBACK_NAMES, host) if is_loopback else ()
