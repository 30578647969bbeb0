"""Keeps requests within what a server allows: requests and tokens a minute, and pauses that it asks for."""

import asyncio
import time


class RateLimiter:
    """Hands out moments to start a request, evenly spaced, in the order in which they are asked for.

    Spacing instead of a bucket: a server that counts over a sliding window never sees a minute's worth at once.

    Args:
        requests_per_minute: Most requests a minute; no limit when `None`.
        tokens_per_minute: Most tokens a minute, of prompts and answers together; no limit when `None`.
    """

    def __init__(self, requests_per_minute: float | None = None, tokens_per_minute: float | None = None):
        for name, limit in (("requests_per_minute", requests_per_minute), ("tokens_per_minute", tokens_per_minute)):
            if limit is not None and limit <= 0:
                raise ValueError(f"`{name}` must be above zero, got {limit}; leave it out for no limit.")
        self._seconds_per_request = 60.0 / requests_per_minute if requests_per_minute else 0.0
        self._seconds_per_token = 60.0 / tokens_per_minute if tokens_per_minute else 0.0
        self._next_request = 0.0
        self._next_token = 0.0
        self._paused_until = 0.0

    async def acquire(self, tokens: int) -> None:
        """Waits for the moment to start a request of about `tokens` tokens."""
        now = time.monotonic()
        start = max(now, self._next_request, self._next_token)
        self._next_request = start + self._seconds_per_request
        self._next_token = start + tokens * self._seconds_per_token
        while (wait := max(start, self._paused_until) - time.monotonic()) > 0:  # a pause may come while we wait
            await asyncio.sleep(wait)

    def settle(self, reserved: int, used: int) -> None:
        """Corrects the estimate that `acquire` was given by what the request really took."""
        self._next_token -= (reserved - used) * self._seconds_per_token

    def pause(self, seconds: float) -> None:
        """Lets no request start for so many seconds, because the server said so."""
        self._paused_until = max(self._paused_until, time.monotonic() + seconds)
