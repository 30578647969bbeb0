"""Pictures of a clip: its waveform above its mel spectrogram, and its quality along the time."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from qamdt.audio import LogMel, read_audio


if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_clip(path: Path, score: dict[str, Any] | None = None) -> Figure:
    """Draws the waveform and the mel spectrogram of a sound file and, with a score, its quality curve below."""
    from matplotlib.figure import Figure

    waveform = read_audio(path)
    seconds = len(waveform) / 16_000
    curve = () if score is None else score["frame_overall_quality"]
    figure = Figure(figsize=(8, 4.6 if curve else 3.4), layout="constrained")
    heights = [1, 2, 1] if curve else [1, 2]
    axes = figure.subplots(len(heights), sharex=True, height_ratios=heights)
    blocks = waveform[: len(waveform) // 100 * 100].view(-1, 100)  # one stroke for 100 samples
    times = [100 * number / 16_000 for number in range(len(blocks))]
    axes[0].fill_between(times, blocks.amin(1), blocks.amax(1))
    axes[0].set(ylim=(-1, 1), yticks=[], ylabel="wave")
    mel_spectrogram = LogMel()(waveform[None])[0, 0]  # (frames, mel_bins)
    extent = (0, seconds, 0, mel_spectrogram.shape[1])
    axes[1].imshow(mel_spectrogram.T, origin="lower", aspect="auto", extent=extent, vmin=-11.5, vmax=1.5)
    axes[1].set(yticks=[], ylabel="mel")
    if curve:
        hop = score["frame_hop_in_s"]
        axes[2].plot([(number + 0.5) * hop for number in range(len(curve))], curve)
        axes[2].set(ylim=(1, 5), yticks=[1, 3, 5], ylabel="quality")
    axes[-1].set(xlim=(0, seconds), xlabel="seconds")
    return figure
