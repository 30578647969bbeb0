"""What the network is told where it changes over a clip: sections with texts of their own, one crossing into the next.

Shapes: B batch, S sections, T latent frames.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from qamdt.conditions import Conditions


CROSSING_IN_S = 2.0  # from one section to the next, where no bar says how long


@dataclass(frozen=True)
class Sections:
    """What the network is told of a clip whose sections differ; takes the place of one `Conditions`.

    Args:
        parts: What it is told in each section, for all clips of the batch and all of their frames.
        shares: How much each section counts at each frame, `(B, S, T)`, summing to one over the sections.
    """

    parts: tuple[Conditions, ...]
    shares: torch.Tensor

    @property
    def texts(self) -> torch.Tensor:
        """Text states of the first section."""
        return self.parts[0].texts

    def at_frames(self, frames: torch.Tensor) -> Sections:
        """The same for some of the frames, without the sections that do not count there."""
        shares = self.shares.index_select(2, frames)
        counting = [number for number in range(len(self.parts)) if shares[:, number].any()]
        parts = tuple(self.parts[number].at_frames(frames) for number in counting)
        return Sections(parts, shares[:, counting])


Told = Conditions | Sections


def predict_in_sections(predict: Callable[..., Sequence[torch.Tensor]]) -> Callable[..., Sequence[torch.Tensor]]:
    """Makes of a prediction for `Conditions` one for `Sections` as well, whose outputs are mixed by their shares."""

    def predict_mixed(
        model_input: torch.Tensor, timestep: torch.Tensor, told: Sequence[Told], *window: Any
    ) -> list[torch.Tensor]:
        parts = [one.parts if isinstance(one, Sections) else (one,) for one in told]
        outputs = list(predict(model_input, timestep, [part for some in parts for part in some], *window))
        mixed = []
        for one, some in zip(told, parts, strict=True):
            own, outputs = outputs[: len(some)], outputs[len(some) :]
            if len(own) == 1:
                mixed += own
            else:
                shares = one.shares[:, :, None, :, None]  # (B, S, 1, T, 1)
                mixed.append((torch.stack(own, dim=1) * shares).sum(dim=1))
        return mixed

    return predict_mixed


def shares_of_sections(seconds: Sequence[float], times_in_s: np.ndarray, crossing_in_s: float) -> np.ndarray:
    """How much each section counts at each moment, `(sections, times)`.

    Args:
        seconds: Where each section begins, rising; it counts half there, and for nothing or all of it half a crossing
            before and after.
        times_in_s: The moments.
        crossing_in_s: How long one section takes to become the next.
    """
    begun = [np.ones_like(times_in_s)]
    begun += [np.clip((times_in_s - second) / crossing_in_s + 0.5, 0, 1) for second in seconds[1:]]
    return np.stack([this - later for this, later in zip(begun, [*begun[1:], np.zeros_like(times_in_s)], strict=True)])


def is_constant(sections: Sequence[Any]) -> bool:
    """Whether all sections are told the same."""
    return all(section == sections[0] for section in sections)
