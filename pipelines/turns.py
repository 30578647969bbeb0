"""Calls from several threads take turns: while a clip is denoised, its scheduler is at a step of this clip alone."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakKeyDictionary

from diffusers import SchedulerMixin


_locks: WeakKeyDictionary[SchedulerMixin, threading.Lock] = WeakKeyDictionary()
_held = threading.local()  # the locks that this thread has
_locks_lock = threading.Lock()


@contextmanager
def taking_turns(scheduler: SchedulerMixin) -> Iterator[None]:
    """Waits until no other thread is within a call with this scheduler, whichever pipelines share it.

    Raises:
        RuntimeError: The call comes out of another one, by a callback, and would wait for itself.
    """
    with _locks_lock:
        lock = _locks.setdefault(scheduler, threading.Lock())
    held = _held.__dict__.setdefault("locks", set())
    if lock in held:
        raise RuntimeError(
            "`callback_on_step_end` must not call a pipeline that shares the running call's scheduler; give it a copy, "
            "`copy.deepcopy(pipe.scheduler)`."
        )
    with lock:
        held.add(lock)
        try:
            yield
        finally:
            held.discard(lock)
