"""How latents and sound of a pipeline belong together, as a mixin: rates, lengths, and the ways there and back.

Shapes: waveforms `(batch, samples)`, latents `(batch, channels, latent_frames, latent_bins)`.
"""

from __future__ import annotations

import math
import os

import numpy as np
import torch

from pipelines.call import Call
from pipelines.recordings import log_mel_of, read_recordings
from qamdt.decoding import decode_latents, latents_to_waveform, mel_to_waveform, samples_per_frame, vae_scale_factor
from qamdt.encoding import encode_waveforms


LOOP_CONTEXT = 32  # latent frames that a loop is decoded with beyond both ends


class SoundMixin:
    """Encodes recordings and decodes latents, with an autoencoder of spectrograms and a vocoder, or one of waveforms."""

    @property
    def sampling_rate(self) -> int:
        """Samples per second of the waveforms, in Hz."""
        return (self.vae if self.vocoder is None else self.vocoder).config.sampling_rate

    @property
    def native_audio_length_in_s(self) -> float:
        """The length of clips that the network was built for, in seconds."""
        return self.transformer.config.sample_size[0] * self._latent_frame_in_s

    @property
    def _samples_per_latent_frame(self) -> int:
        if self.vocoder is None:
            return self.vae.samples_per_latent_frame
        return vae_scale_factor(self.vae) * samples_per_frame(self.vocoder)

    @property
    def _latent_frame_in_s(self) -> float:
        return self._samples_per_latent_frame / self.sampling_rate

    def num_latent_frames(self, audio_length_in_s: float) -> int:
        """Latent frames that cover so many seconds and that whole patches cover."""
        num_samples = round(audio_length_in_s * self.sampling_rate)
        num_frames = math.ceil(num_samples / self._samples_per_latent_frame)
        patch_size, overlap = self.transformer.config.patch_size[0], self.transformer.config.patch_overlap[0]
        num_patches = max(1, math.ceil((num_frames - overlap) / (patch_size - overlap)))
        return num_patches * (patch_size - overlap) + overlap

    def loop_length(self, audio_length_in_s: float, bar_in_s: float | None = None) -> float:
        """The length of a loop, in seconds: so many of them, to the next whole bar and the next whole latent frame."""
        if bar_in_s is not None:
            audio_length_in_s = max(1, round(audio_length_in_s / bar_in_s)) * bar_in_s
        patch_size, overlap = self.transformer.config.patch_size[0], self.transformer.config.patch_overlap[0]
        hop = patch_size - overlap
        num_patches = max(1, round((audio_length_in_s / self._latent_frame_in_s - overlap) / hop))
        return (num_patches * hop + overlap) * self._latent_frame_in_s

    def prepare_recordings(
        self, audio: str | os.PathLike | np.ndarray | torch.Tensor, sampling_rate: int | None, call: Call
    ) -> torch.Tensor:
        """Reads the `audio` of a call (`pipelines.recordings.read_recordings`): `(batch, samples)` at the model's rate.

        Raises:
            ValueError: It is no sound, or neither one recording nor one for each prompt.
        """
        recordings = read_recordings(
            audio, sampling_rate, self.sampling_rate, max_length_in_s=self.config.max_audio_length_in_s
        )
        if len(recordings) not in (1, call.num_prompts):
            raise ValueError(
                f"`audio` must be one recording or one for each of the {call.num_prompts} prompts, got "
                f"{len(recordings)}; one of several channels has the shape (1, channels, samples)."
            )
        recordings = recordings.repeat_interleave(call.batch_size // len(recordings), dim=0)
        return recordings.to(self._execution_device)

    def encode(self, waveforms: torch.Tensor, num_latent_frames: int) -> torch.Tensor:
        """Turns waveforms `(batch, samples)` into latents `(batch, channels, latent_frames, latent_bins)`.

        It is the way back of `decode`, with silence for what is missing.

        Args:
            waveforms: Waveforms as loud as the autoencoder knows them (`qamdt.audio.normalize_waveform`).
            num_latent_frames: How many latent frames to return.
        """
        missing = num_latent_frames * self._samples_per_latent_frame - waveforms.shape[1]
        waveforms = torch.nn.functional.pad(waveforms, (0, missing))
        log_mel = None if self.vocoder is None else log_mel_of(self.vocoder).to(waveforms.device)
        posterior = encode_waveforms(self.vae, waveforms, log_mel, chunk_frames=256)
        return posterior.mode()[:, :, :num_latent_frames].float() * self.vae.config.scaling_factor

    def decode(self, latents: torch.Tensor, *, is_loop: bool = False) -> torch.Tensor:
        """Turns latents `(batch, channels, latent_frames, latent_bins)` into waveforms `(batch, samples)`.

        Memory hardly grows with the length: what is longer than the network was built for is decoded in pieces.

        Args:
            latents: The latents.
            is_loop: Whether the first frame follows the last.
        """
        before = min(LOOP_CONTEXT, latents.shape[2]) if is_loop else 0
        if is_loop:
            latents = torch.cat([latents[:, :, -before:], latents, latents[:, :, :before]], dim=2)
        chunk_frames = self.transformer.config.sample_size[0]
        if self.vocoder is None:
            waveforms = latents_to_waveform(self.vae, latents.to(self.vae.dtype), chunk_frames=chunk_frames)
        else:
            mel_spectrogram = decode_latents(self.vae, latents.to(self.vae.dtype), chunk_frames=chunk_frames)
            waveforms = mel_to_waveform(
                self.vocoder,
                mel_spectrogram.to(self.vocoder.dtype),
                chunk_frames=chunk_frames * vae_scale_factor(self.vae),
            ).float()
        beyond = before * self._samples_per_latent_frame
        return waveforms[:, beyond : waveforms.shape[1] - beyond]

    def frames_without(self, is_made: torch.Tensor, num_latent_frames: int) -> torch.Tensor:
        """Which latent frames hold none of the samples `(samples,)` that are made: `(latent_frames,)`."""
        missing = num_latent_frames * self._samples_per_latent_frame - len(is_made)
        is_made = torch.cat([is_made, is_made[-1:].expand(missing)])
        return ~is_made.unflatten(0, (num_latent_frames, -1)).any(dim=1)
