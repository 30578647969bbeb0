"""Clips longer than the network was built for, and clips that are loops: overlapping windows, denoised jointly.

In every step the network sees each window by itself, told what happens in it, and where windows overlap their outputs are
averaged. All windows share one noise level and one set of latents, so each fits its neighbours. Time grows with the
length of the clip, and memory hardly does.

Shapes: B batch, C latent channels, T latent frames of the clip, W latent frames of a window, F latent bins.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from pipelines.denoising import Predict
from pipelines.sections import Told


OVERLAP = 0.25  # of a window with the next, at least
PredictWindow = Callable[[torch.Tensor, torch.Tensor, Sequence[Told], int], Sequence[torch.Tensor]]


def place_windows(num_frames: int, window_frames: int, *, is_loop: bool = False) -> torch.Tensor:
    """Says which frames each window sees, `(windows, W)`: evenly spread, and in a loop over its seam as well.

    Args:
        num_frames: Latent frames of the clip.
        window_frames: Latent frames that the network was built for.
        is_loop: Whether the first frame follows the last.
    """
    size = min(window_frames, num_frames)
    hop = max(1, size - math.ceil(OVERLAP * size))
    if is_loop:
        count = max(2, math.ceil(num_frames / hop))
        starts = torch.arange(count) * num_frames / count
    else:
        count = math.ceil((num_frames - size) / hop) + 1
        starts = torch.linspace(0, num_frames - size, count)
    return (starts.round().long()[:, None] + torch.arange(size)) % num_frames


def predict_in_windows(predict: PredictWindow, windows: torch.Tensor) -> Predict:
    """Makes of a prediction for windows one for whole clips.

    Args:
        predict: Runs the network on a window: `predict(model_input, timestep, told, number)` with latents `(B, C, W, F)`,
            what it is told of these frames, and the number of the window.
        windows: What `place_windows` returned.
    """
    ramp = math.ceil(OVERLAP * windows.shape[1])
    distance = torch.arange(1, windows.shape[1] + 1)
    weights = torch.minimum(distance, distance.flip(0)).clamp(max=ramp).float() / ramp  # (W,), small at both edges

    def predict_clip(model_input: torch.Tensor, timestep: torch.Tensor, told: Sequence[Told]) -> list[torch.Tensor]:
        sums = [torch.zeros_like(model_input, dtype=torch.float32) for _ in told]
        weight_sum = torch.zeros(model_input.shape[2], 1, device=model_input.device)
        share = weights.to(model_input.device)[:, None]  # (W, 1)
        for number, frames in enumerate(windows.to(model_input.device)):
            seen = model_input.index_select(2, frames)
            outputs = predict(seen, timestep, [one.at_frames(frames) for one in told], number)
            for total, output in zip(sums, outputs, strict=True):
                total.index_add_(2, frames, output * share)
            weight_sum.index_add_(0, frames, share)
        return [total / weight_sum for total in sums]

    return predict_clip
