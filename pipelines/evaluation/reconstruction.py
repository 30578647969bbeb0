"""A clip after a model's autoencoder and vocoder: the most that any music made by the model's network can be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import soxr
import torch

from qamdt.audio import LogMel, normalize_waveform
from qamdt.encoding import encode_waveforms
from qamdt.keyed_rows import digest_weights


if TYPE_CHECKING:
    from pipelines.pipeline_qamdt import QAMDTPipeline


@dataclass(frozen=True, kw_only=True)
class Reconstruction:
    """Sends clips through the autoencoder of a model.

    Args:
        model: Folder of the model.
    """

    model: Path

    def settings(self) -> dict[str, Any]:
        """All that the result depends on."""
        parts = [self.model / name for name in ("vae", "vocoder") if (self.model / name).is_dir()]
        return {part.name: digest_weights(part) for part in parts}

    def load(self) -> Callable[[np.ndarray, int], tuple[np.ndarray, int]]:
        """Returns what maps samples `(samples,)` and their rate to those that come back, and their rate."""
        from pipelines.pipeline_qamdt import QAMDTPipeline

        pipe = QAMDTPipeline.from_pretrained(str(self.model))

        def reconstruct(samples: np.ndarray, sampling_rate: int) -> tuple[np.ndarray, int]:
            if sampling_rate != pipe.sampling_rate:
                samples = soxr.resample(samples, sampling_rate, pipe.sampling_rate)
            return reconstruct_waveforms(pipe, torch.from_numpy(samples)[None])[0].numpy(), pipe.sampling_rate

        return reconstruct


@torch.inference_mode()
def reconstruct_waveforms(pipe: QAMDTPipeline, waveforms: torch.Tensor) -> torch.Tensor:
    """Encodes and decodes waveforms `(batch, samples)`, scaled to the peak that autoencoders are trained on."""
    log_mel = None if pipe.vocoder is None else LogMel(num_mel_bins=_num_mel_bins(pipe.vocoder.config))
    latents = encode_waveforms(pipe.vae, normalize_waveform(waveforms), log_mel).mode()
    return pipe.decode(latents * pipe.vae.config.scaling_factor)[:, : waveforms.shape[1]]


def _num_mel_bins(config: Any) -> int:
    """Mel bands that a vocoder takes: its own name for them, or that of `SpeechT5HifiGan`."""
    return config.num_mel_bins if hasattr(config, "num_mel_bins") else config.model_in_dim
