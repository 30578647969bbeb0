"""Guidance over text and over quality: what each step tells the network, and how its outputs combine."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import replace

import torch

from pipelines.sections import Told


class Guidance:
    """What a denoising run aims at and what it moves away from.

    Args:
        wanted: What the network is told of the clips as they should be.
        avoided: What it is told of them as they should not be, in one or several ways.
        scales: How far to move away from each of these; 1 leaves the output as it is.
        interval: First and last part of the steps that is guided, as fractions from 0 to 1.
        num_steps: How many steps the schedule has.
        first_step: The step of it that the run begins with.
    """

    def __init__(
        self,
        wanted: Told,
        avoided: Sequence[Told] = (),
        scales: Sequence[float] = (),
        *,
        interval: tuple[float, float] = (0.0, 1.0),
        num_steps: int,
        first_step: int = 0,
    ):
        if len(avoided) != len(scales):
            raise ValueError(f"`scales` must hold a scale for each of the {len(avoided)} `avoided`, got {scales!r}.")
        self.wanted = wanted
        self.avoided = list(avoided)
        self.scales = list(scales)
        self.first_guided, self.first_unguided = (fraction * num_steps - first_step for fraction in interval)

    def branches(self, step: int) -> list[Told]:
        """What the network is told in a step of the run, from 0: what is wanted and, if it is guided, what is avoided."""
        is_guided = self.first_guided <= step < self.first_unguided
        return [self.wanted, *self.avoided] if is_guided else [self.wanted]

    def at_frames(self, frames: torch.Tensor) -> Guidance:
        """The same for some of the latent frames, integers `(frames,)`."""
        part = copy(self)
        part.wanted = self.wanted.at_frames(frames)
        part.avoided = [told.at_frames(frames) for told in self.avoided]
        return part

    def combine(self, outputs: Sequence[torch.Tensor]) -> torch.Tensor:
        """Moves the output for what is wanted away from those for what is avoided.

        With one of the latter this is the usual `negative + scale * (conditional - negative)`.

        Args:
            outputs: One for each of the branches of a step, all of one shape.
        """
        conditional, *negatives = outputs
        guided = conditional
        for scale, negative in zip(self.scales if negatives else (), negatives, strict=True):
            guided = guided + (scale - 1) * (conditional - negative)
        return guided

    def replace_texts(self, texts: torch.Tensor) -> None:
        """Tells the network other texts `(batch, text_tokens, dim)` from here on, where it is told what is wanted."""
        self.wanted = replace(self.wanted, texts=texts)
