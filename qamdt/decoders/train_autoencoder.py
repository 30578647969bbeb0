"""Trains the waveform autoencoder.

    accelerate launch -m qamdt.decoders.train_autoencoder --manifest corpus/manifest.jsonl --output-dir runs/autoencoder

Run again to continue. Losses are taken on the sound: log-mel errors and STFT distance at several windows, loudness, and
a term for the exact frequency of low notes, without which the key of the music is lost. No adversary. The latents are
kept easy for a diffusion model: their Kullback-Leibler divergence is pushed down to a target, in some crops the
upper channels are hidden, so that the lower ones carry what matters most, and a linear map must find the pitch classes
that sound in them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import nn

from qamdt.audio import LogMel
from qamdt.complete_weights import load_complete
from qamdt.cpu_memory import keep_freed_memory
from qamdt.decoders.fitting import RandomCrops, add_fit_arguments, fit, fit_options, run_command
from qamdt.decoders.spectral_losses import (
    attack_error,
    fine_frequency_error,
    multi_resolution_stft_distance,
    waveform_loudness_error,
)
from qamdt.models.autoencoder_waveform import AutoencoderWaveform


MEL_RESOLUTIONS = ((4096, 256), (2048, 192), (512, 64))  # window lengths and bands


class AutoencoderLoss(nn.Module):
    """All terms of the loss of a waveform autoencoder.

    Args:
        autoencoder: The network to train.
        kl_target: Divergence of the posterior from the standard normal, in nats per latent value, that costs nothing.
        kl_weight: Weight of what lies above.
        masked_share: Share of the crops whose upper channels are hidden.
        pitch_weight: Weight of the pitch classes that a linear map finds in the latents.
        attack_weight: Weight of how exactly notes begin.
        bf16: Whether the network runs in bfloat16.
    """

    def __init__(
        self,
        autoencoder: AutoencoderWaveform,
        *,
        kl_target: float,
        kl_weight: float,
        masked_share: float,
        pitch_weight: float,
        attack_weight: float,
        bf16: bool,
    ):
        super().__init__()
        self.autoencoder = autoencoder
        config = autoencoder.config
        self.log_mels = nn.ModuleList(
            LogMel(config.sampling_rate, n_fft, n_fft // 4, bins, max_frequency_hz=config.sampling_rate / 2)
            for n_fft, bins in MEL_RESOLUTIONS
        )
        self.pitch_head = nn.Linear(config.latent_channels, 12)
        self.register_buffer("pitch_classes", pitch_class_filters(config.sampling_rate, 4096), persistent=False)
        self.register_buffer("pitch_window", torch.hann_window(4096), persistent=False)
        self.kl_target = kl_target
        self.kl_weight = kl_weight
        self.masked_share = masked_share
        self.pitch_weight = pitch_weight
        self.attack_weight = attack_weight
        self.bf16 = bf16

    def forward(self, waveforms: torch.Tensor, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Returns `loss` and its parts for waveforms `(batch, samples)`."""
        with torch.autocast(waveforms.device.type, torch.bfloat16, enabled=self.bf16):
            posterior = self.autoencoder.encode(waveforms).latent_dist
            mean, log_variance = posterior.mean.float(), posterior.logvar.float()  # (B, C, T, 1)
            noise = torch.randn(mean.shape, generator=generator).to(mean)
            latents = (mean + (log_variance / 2).exp() * noise) * self._draw_mask(mean, generator)
            predicted = self.autoencoder.decode(latents).sample.float()[:, : waveforms.shape[1]]

        mel = torch.stack([(log_mel(predicted) - log_mel(waveforms)).abs().mean() for log_mel in self.log_mels]).mean()
        parts = {
            "mel": mel,
            "stft": multi_resolution_stft_distance(predicted, waveforms),
            "loudness": waveform_loudness_error(predicted, waveforms),
            "fine": fine_frequency_error(predicted, waveforms, self.autoencoder.config.sampling_rate),
            "attack": attack_error(predicted, waveforms),
            "pitch": self._pitch_error(mean, waveforms),
            "kl": 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean(),
            "rank": effective_rank(mean.detach().squeeze(-1).transpose(1, 2).flatten(0, 1)),
        }
        loss = (
            parts["mel"]
            + 0.5 * parts["stft"]
            + 0.3 * parts["loudness"]
            + 0.7 * parts["fine"]
            + self.attack_weight * parts["attack"]
            + self.pitch_weight * parts["pitch"]
            + self.kl_weight * (parts["kl"] - self.kl_target).relu()
        )
        return {"loss": loss} | {name: value.detach() for name, value in parts.items()}

    def _draw_mask(self, latents: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Ones, and zeros in the upper channels of some crops, `(batch, channels, 1, 1)`."""
        batch_size, num_channels = latents.shape[:2]
        num_kept = torch.randint(num_channels // 8, num_channels, (batch_size,), generator=generator)
        is_masked = torch.rand(batch_size, generator=generator) < self.masked_share
        num_kept = torch.where(is_masked, num_kept, num_channels)
        mask = torch.arange(num_channels) < num_kept[:, None]
        return mask[..., None, None].to(latents)

    def _pitch_error(self, mean: torch.Tensor, waveforms: torch.Tensor) -> torch.Tensor:
        """Cross-entropy between the pitch classes that sound and those that the linear map finds, frame by frame."""
        hop_length = self.autoencoder.samples_per_latent_frame
        spectrum = torch.stft(waveforms, 4096, hop_length, window=self.pitch_window, return_complex=True).abs()
        spectrum = (spectrum[..., 1:] + spectrum[..., :-1]) / 2  # at the middle of latent frames
        chroma = self.pitch_classes @ spectrum.square()  # (B, 12, T)
        chroma = (chroma + 1e-4) / (chroma + 1e-4).sum(dim=1, keepdim=True)
        num_frames = min(chroma.shape[2], mean.shape[2])
        found = self.pitch_head(mean.squeeze(-1).transpose(1, 2)[:, :num_frames]).transpose(1, 2)
        return nn.functional.cross_entropy(found, chroma[..., :num_frames])


def effective_rank(columns: torch.Tensor) -> torch.Tensor:
    """In how many directions latent columns `(columns, channels)` spread, a scalar (Roy and Vetterli, 2007).

    The exponential of the entropy of how their variance is shared out: the number of channels where all directions are
    alike, and far less where channels repeat each other, which no loss shows.
    """
    shares = torch.linalg.eigvalsh(torch.cov(columns.T)).clamp(min=0)
    shares = shares / shares.sum()
    return torch.special.entr(shares).sum().exp()


def pitch_class_filters(sampling_rate: int, n_fft: int) -> torch.Tensor:
    """Which bins belong to which pitch class, `(12, n_fft // 2 + 1)`; bins outside of 60 to 2000 Hz belong to none."""
    frequencies = torch.arange(n_fft // 2 + 1) * sampling_rate / n_fft
    pitches = 69 + 12 * torch.log2(frequencies.clamp(min=1.0) / 440)
    distance = (pitches - torch.arange(12)[:, None] + 6) % 12 - 6  # semitones from the nearest pitch of each class
    filters = (1 - distance.abs()).clamp(min=0)
    return filters * ((frequencies > 60) & (frequencies < 2000))


@torch.no_grad()
def measure_channels(autoencoder: AutoencoderWaveform, waveforms: torch.Tensor) -> dict[str, list[float]]:
    """Mean and standard deviation of each latent channel on music `(batch, samples)`, by their names in the config."""
    latents = autoencoder.encode(waveforms).latent_dist.sample(torch.Generator().manual_seed(0))
    return {"latents_mean": latents.mean(dim=(0, 2, 3)).tolist(), "latents_std": latents.std(dim=(0, 2, 3)).tolist()}


def export_autoencoder(autoencoder: AutoencoderWaveform, channels: dict[str, list[float]], folder: Path) -> None:
    """Writes an autoencoder whose latents have unit variance in every channel; the one that trains stays as it is.

    Args:
        autoencoder: The network, with latents as it has them itself.
        channels: What `measure_channels` found.
        folder: Where the model goes.
    """
    autoencoder.register_to_config(**channels)
    autoencoder.save_pretrained(folder)
    autoencoder.register_to_config(latents_mean=None, latents_std=None)


def main(argv: list[str] | None = None) -> None:
    """Command line of the autoencoder's training."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_fit_arguments(parser, num_steps=20_000, learning_rate=1e-3)
    parser.add_argument("--crop-in-s", type=float, default=1.28, help="seconds; a multiple of 0.08 (%(default)s)")
    parser.add_argument("--kl-target", type=float, default=3.0, help="nats per latent value (%(default)s)")
    parser.add_argument("--kl-weight", type=float, default=0.05, help="of the nats above (%(default)s)")
    parser.add_argument("--masked-share", type=float, default=0.25, help="crops with hidden channels (%(default)s)")
    parser.add_argument("--pitch-weight", type=float, default=0.1, help="of linearly readable pitch (%(default)s)")
    parser.add_argument("--attack-weight", type=float, default=0.3, help="of when notes begin (%(default)s)")
    parser.add_argument("--freeze-encoder", action="store_true", help="train the decoder alone: latents stay valid")
    parser.add_argument("--init", type=Path, help="folder of an autoencoder to start from, instead of a new one")
    arguments = parser.parse_args(argv)
    if arguments.freeze_encoder and arguments.init is None:
        parser.error("`--freeze-encoder` keeps the encoder of `--init`; give its folder.")
    keep_freed_memory()
    torch.manual_seed(arguments.seed)

    crops = RandomCrops(arguments.manifest, arguments.batch_size, arguments.crop_in_s)
    autoencoder = load_complete(AutoencoderWaveform, arguments.init) if arguments.init else AutoencoderWaveform()
    channels_of_init = {name: autoencoder.config[name] for name in ("latents_mean", "latents_std")}
    autoencoder.encoder.requires_grad_(not arguments.freeze_encoder)
    autoencoder.register_to_config(latents_mean=None, latents_std=None)  # the loss is of latents as they are
    loss_module = AutoencoderLoss(
        autoencoder,
        kl_target=arguments.kl_target,
        kl_weight=arguments.kl_weight,
        masked_share=arguments.masked_share,
        pitch_weight=arguments.pitch_weight,
        attack_weight=arguments.attack_weight,
        bf16=arguments.bf16,
    )
    generator = torch.Generator().manual_seed(arguments.seed)
    sample = torch.cat([crops.draw(generator) for _ in range(4)])

    def export(trained: AutoencoderLoss) -> None:
        channels = channels_of_init
        if not arguments.freeze_encoder:
            channels = measure_channels(trained.autoencoder, sample.to(trained.autoencoder.device))
        export_autoencoder(trained.autoencoder, channels, arguments.output_dir / "autoencoder")

    fit(loss_module, crops, fit_options(arguments, crops), export)


if __name__ == "__main__":
    run_command(main)
