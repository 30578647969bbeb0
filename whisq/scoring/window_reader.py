"""Reads the windows of many clips, batch by batch, in worker processes if wanted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch.utils.data import Dataset

from whisq.scoring.clip_table import Clip
from whisq.windows import Window, read_window


@dataclass(frozen=True, kw_only=True)
class WindowRequest:
    """One window to read: of clip number `clip`, from `start_in_s` in the clip."""

    clip: int
    start_in_s: float
    duration_in_s: float | None


class WindowReader(Dataset):
    """Reads windows; `DataLoader` runs it in worker processes.

    Args:
        clips: The clips of the job.
    """

    def __init__(self, clips: Sequence[Clip]):
        self.clips = clips

    def __getitem__(self, request: WindowRequest) -> tuple[WindowRequest, Window | str]:
        """Returns what was asked for, and the window, or an error message instead."""
        return request, self._read(request)

    def _read(self, request: WindowRequest) -> Window | str:
        clip = self.clips[request.clip]
        if clip.fault is not None:
            return clip.fault
        try:
            return read_window(
                clip.path,
                clip_start_in_s=clip.start_in_s,
                start_in_s=request.start_in_s,
                duration_in_s=request.duration_in_s,
            )
        except (ValueError, OSError) as error:
            return str(error)
