"""What a training run watches: the clock, the signals that end it, what processes agree on, and its memory."""

import signal
import sys
import time

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast

from qamdt.training.config import RunConfig


def forget_earlier_runs() -> None:
    """Lets a run have a precision of its own, also behind another one in the same process, as in a notebook.

    Accelerate keeps the precision of the first `Accelerator` of a process: one that asks for another is refused, and one
    that asks for none takes it over. Called before a run makes its own.
    """
    AcceleratorState._reset_state()


class Clock:
    """Minutes of training, counted on from those of earlier runs."""

    def __init__(self, minutes_before: float):
        self._start = time.monotonic() - 60 * minutes_before

    def minutes(self) -> float:
        return (time.monotonic() - self._start) / 60


class StopSignal:
    """Notices SIGTERM and Ctrl-C, so that the loop can end after its step; a second one ends the process at once."""

    def __init__(self):
        self.is_requested = False
        self._handlers: dict[int, object] = {}

    def __enter__(self) -> "StopSignal":
        self._handlers = {number: signal.signal(number, self._request) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _request(self, number: int, frame: object) -> None:
        self.is_requested = True
        signal.signal(number, signal.SIG_DFL)


def run_progress(config: RunConfig, step: int, minutes: float) -> float:
    """Returns how much of a run is done, from 0 to 1."""
    by_steps = step / config.max_steps if config.max_steps else 0.0
    by_minutes = minutes / config.max_minutes if config.max_minutes else 0.0
    return max(by_steps, by_minutes)


def agree(accelerator: Accelerator, *values: float) -> tuple[float, ...]:
    """Returns the numbers and flags of the first process, so that all do the same although their clocks differ."""
    if accelerator.num_processes == 1:
        return values
    return tuple(broadcast(torch.tensor(values, dtype=torch.float32, device=accelerator.device)).tolist())


def peak_memory_in_gib(device: torch.device) -> float:
    """Returns the most memory this process ever had: allocated by PyTorch on a GPU, else resident."""
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
    elif sys.platform == "win32":
        import psutil  # declared for Windows alone

        peak = psutil.Process().memory_info().peak_wset
    else:
        import resource  # not on Windows

        unit = 1 if sys.platform == "darwin" else 1024
        peak = unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / 2**30, 3)
