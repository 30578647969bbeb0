"""Trains the vocoder: `accelerate launch -m qamdt.decoders.train_vocoder --manifest corpus/manifest.jsonl --output-dir vocoder`.

Spectral losses only: the multi-resolution STFT distance and the absolute errors of the log-mel spectrogram and of the
loudness. With `--vae`, half of each batch is vocoded from reconstructed spectrograms, which is what
generation will feed it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import nn

from qamdt.audio import LogMel
from qamdt.complete_weights import load_complete
from qamdt.cpu_memory import keep_freed_memory
from qamdt.decoders.fitting import RandomCrops, add_fit_arguments, fit, fit_options, run_command
from qamdt.decoders.spectral_losses import multi_resolution_stft_distance, waveform_loudness_error
from qamdt.models.vocoder_istft import ISTFTVocoder


class VocoderLoss(nn.Module):
    """Distance between clips and their resynthesis from log-mel spectrograms.

    Args:
        vocoder: The vocoder to train.
        vae: Frozen autoencoder through which half of the spectrograms pass, or `None`.
        loudness_weight: Weight of the loudness error (`qamdt.decoders.spectral_losses.waveform_loudness_error`).
        bf16: Whether the networks run in bfloat16.
    """

    def __init__(self, vocoder: ISTFTVocoder, vae: AutoencoderKL | None, loudness_weight: float, bf16: bool):
        super().__init__()
        self.vocoder = vocoder
        self.vae = vae.requires_grad_(False) if vae is not None else None
        self.log_mel = LogMel()
        self.loudness_weight = loudness_weight
        self.bf16 = bf16

    def forward(self, waveforms: torch.Tensor, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Returns `loss` and its parts for waveforms `(batch, samples)`; `generator` is not drawn from."""
        target_mel = self.log_mel(waveforms)  # (B, 1, frames, mel_bins)
        with torch.autocast(waveforms.device.type, torch.bfloat16, enabled=self.bf16):
            prediction = self.vocoder(self._degrade(target_mel)[:, 0])
        stft_distance = multi_resolution_stft_distance(prediction, waveforms)
        mel_spectrogram = self.log_mel(prediction)
        mel_error = (mel_spectrogram - target_mel).abs().mean()
        loudness = waveform_loudness_error(prediction, waveforms)
        parts = {"stft_distance": stft_distance, "mel_error": mel_error, "loudness_error": loudness}
        loss = stft_distance + mel_error + self.loudness_weight * loudness
        return {"loss": loss} | {name: value.detach() for name, value in parts.items()}

    @torch.no_grad()
    def _degrade(self, mel_spectrogram: torch.Tensor) -> torch.Tensor:
        """Replaces the first half of the batch by its reconstruction."""
        if self.vae is None:
            return mel_spectrogram
        half = len(mel_spectrogram) // 2
        latents = self.vae.encode(mel_spectrogram[:half]).latent_dist.mean
        return torch.cat([self.vae.decode(latents).sample.float(), mel_spectrogram[half:]])


def main(argv: list[str] | None = None) -> None:
    """Command line of the vocoder's training."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_fit_arguments(parser, num_steps=4000, learning_rate=1e-3)
    parser.add_argument("--crop-in-s", type=float, default=1.28, help="length of a crop in seconds (%(default)s)")
    parser.add_argument("--vae", type=Path, help="folder of an autoencoder to train behind")
    parser.add_argument("--dim", type=int, default=320, help="width of the network (%(default)s)")
    parser.add_argument("--num-layers", type=int, default=6, help="number of ConvNeXt blocks (%(default)s)")
    parser.add_argument("--loudness-weight", type=float, default=0.5)
    parser.add_argument("--init", type=Path, help="folder of a vocoder to start from, instead of a new one")
    arguments = parser.parse_args(argv)
    keep_freed_memory()
    torch.manual_seed(arguments.seed)

    crops = RandomCrops(arguments.manifest, arguments.batch_size, arguments.crop_in_s)
    sample = LogMel()(crops.draw(torch.Generator().manual_seed(arguments.seed)))
    vae = load_complete(AutoencoderKL, arguments.vae) if arguments.vae else None
    if arguments.init:
        vocoder = load_complete(ISTFTVocoder, arguments.init)
    else:
        vocoder = ISTFTVocoder(
            dim=arguments.dim,
            num_layers=arguments.num_layers,
            mel_mean=round(sample.mean().item(), 4),
            mel_std=round(sample.std().item(), 4),
        )
    loss_module = VocoderLoss(vocoder, vae, arguments.loudness_weight, arguments.bf16)

    def export(trained: nn.Module) -> None:
        trained.vocoder.save_pretrained(arguments.output_dir / "vocoder")

    fit(loss_module, crops, fit_options(arguments, crops), export)


if __name__ == "__main__":
    run_command(main)
