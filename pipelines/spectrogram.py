"""A picture of what was made: one mel spectrogram below the other."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch

from qamdt.audio import LogMel
from qamdt.files import write_atomically


_SOFTWARE = "qamdt"  # by which a picture says that it was drawn here


def check_matplotlib(option: str) -> None:
    """Refuses an option that asks for pictures where nothing can draw them, before the work is done."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ImportError(f"{option} needs matplotlib; install it with `pip install 'qamdt[demo]'`")


def is_our_picture(path: Path) -> bool:
    """Whether a picture was drawn here."""
    with path.open("rb") as file:
        return b"Software\0" + _SOFTWARE.encode() in file.read(4096)


def draw_spectrograms(path: Path, waveforms: torch.Tensor, sampling_rate: int) -> None:
    """Draws the log-mel spectrograms of waveforms `(batch, samples)` into a PNG file; needs the `demo` extra."""
    from matplotlib.figure import Figure

    mel_spectrograms = LogMel(sampling_rate)(waveforms)[:, 0]  # (B, frames, mel_bins)
    seconds = waveforms.shape[1] / sampling_rate
    figure = Figure(figsize=(10, 1 + 2.2 * len(waveforms)), layout="constrained")
    for axes, mel_spectrogram in zip(
        figure.subplots(len(waveforms), squeeze=False)[:, 0], mel_spectrograms, strict=True
    ):
        image = axes.imshow(
            mel_spectrogram.T, origin="lower", aspect="auto", extent=(0, seconds, 0, 64), vmin=-11.5, vmax=1.5
        )
        axes.set_ylabel("mel bin")
    axes.set_xlabel("seconds")
    figure.colorbar(image, ax=figure.axes, label="log magnitude")
    write_atomically(path, lambda file: figure.savefig(file, format="png", metadata={"Software": _SOFTWARE}))
