"""Trains the mel autoencoder: `accelerate launch -m qamdt.decoders.train_vae --manifest corpus/manifest.jsonl --output-dir vae`.

The network is diffusers' `AutoencoderKL`, as in AudioLDM, slimmer and with 8 instead of 4 times fewer frames and
bins. Loss: absolute error of the log-mel values and of the loudness, plus a light pull of the posterior towards the
standard normal. The loudness matters because the best guess in absolute error is a median, which is quieter than the
peaks of a spectrum.
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
from qamdt.decoders.spectral_losses import loudness_error


def build_vae(channels: list[int], latent_channels: int, mel_mean: float, mel_std: float) -> AutoencoderKL:
    """Builds an autoencoder whose first layer sees, and whose last layer makes, values of about unit variance.

    Args:
        channels: Width at each resolution; each step halves frames and bins.
        latent_channels: Channels of the latents.
        mel_mean: Mean of the log-mel values, folded into the first and last layer.
        mel_std: Their standard deviation, folded in likewise.
    """
    vae = AutoencoderKL(
        in_channels=1,
        out_channels=1,
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        block_out_channels=tuple(channels),
        layers_per_block=1,
        latent_channels=latent_channels,
        norm_num_groups=8,
        mid_block_add_attention=False,
    )
    with torch.no_grad():
        first, last = vae.encoder.conv_in, vae.decoder.conv_out
        first.weight /= mel_std
        first.bias -= first.weight.sum(dim=(1, 2, 3)) * mel_mean
        last.weight *= mel_std
        last.bias.fill_(mel_mean)
    return vae


class VAELoss(nn.Module):
    """Reconstruction errors of the log-mel spectrogram and of its loudness plus the weighted Kullback-Leibler term.

    Args:
        vae: The autoencoder to train.
        loudness_weight: Weight of the loudness error (`qamdt.decoders.spectral_losses.loudness_error`).
        kl_weight: Weight of the Kullback-Leibler divergence per latent value.
        bf16: Whether the network runs in bfloat16.
    """

    def __init__(self, vae: AutoencoderKL, loudness_weight: float, kl_weight: float, bf16: bool):
        super().__init__()
        self.vae = vae
        self.log_mel = LogMel()
        self.loudness_weight = loudness_weight
        self.kl_weight = kl_weight
        self.bf16 = bf16

    def forward(self, waveforms: torch.Tensor, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Returns `loss` and its parts for waveforms `(batch, samples)`."""
        mel_spectrogram = self.log_mel(waveforms)
        with torch.autocast(waveforms.device.type, torch.bfloat16, enabled=self.bf16):
            posterior = self.vae.encode(mel_spectrogram).latent_dist
            noise = torch.randn(posterior.mean.shape, generator=generator).to(posterior.mean)
            reconstruction = self.vae.decode(posterior.mean + posterior.std * noise).sample.float()
        mel_error = (reconstruction - mel_spectrogram).abs().mean()
        loudness = loudness_error(reconstruction, mel_spectrogram, self.log_mel.bins_per_band)
        mean, log_variance = posterior.mean.float(), posterior.logvar.float()
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        loss = mel_error + self.loudness_weight * loudness + self.kl_weight * kl
        parts = {"mel_error": mel_error, "loudness_error": loudness, "kl": kl}
        return {"loss": loss} | {name: value.detach() for name, value in parts.items()}


@torch.no_grad()
def latent_std(vae: AutoencoderKL, mel_spectrogram: torch.Tensor) -> float:
    """Standard deviation of the latents of log-mel `(batch, 1, frames, mel_bins)`; its inverse scales them."""
    return vae.encode(mel_spectrogram).latent_dist.mean.std().item()


def main(argv: list[str] | None = None) -> None:
    """Command line of the autoencoder's training."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_fit_arguments(parser, num_steps=3000, learning_rate=2e-3)
    parser.add_argument("--crop-in-s", type=float, default=1.28, help="seconds; a multiple of 0.08 (%(default)s)")
    parser.add_argument("--channels", type=int, nargs="+", default=[16, 32, 96, 192], help="width per resolution")
    parser.add_argument("--latent-channels", type=int, default=8)
    parser.add_argument("--kl-weight", type=float, default=1e-4)
    parser.add_argument("--loudness-weight", type=float, default=0.5)
    parser.add_argument("--init", type=Path, help="folder of an autoencoder to start from, instead of a new one")
    parser.add_argument("--freeze-encoder", action="store_true", help="train the decoder alone; latents stay valid")
    arguments = parser.parse_args(argv)
    keep_freed_memory()
    torch.manual_seed(arguments.seed)

    crops = RandomCrops(arguments.manifest, arguments.batch_size, arguments.crop_in_s)
    sample = LogMel()(crops.draw(torch.Generator().manual_seed(arguments.seed)))
    if arguments.init:
        vae = load_complete(AutoencoderKL, arguments.init)
    else:
        vae = build_vae(arguments.channels, arguments.latent_channels, sample.mean().item(), sample.std().item())
    if arguments.freeze_encoder:
        vae.encoder.requires_grad_(False)
        vae.quant_conv.requires_grad_(False)
    loss_module = VAELoss(vae, arguments.loudness_weight, arguments.kl_weight, arguments.bf16)

    def export(trained: nn.Module) -> None:
        if not arguments.freeze_encoder:  # or the latents that others were trained on would change their scale
            scaling_factor = 1 / latent_std(trained.vae, sample.to(trained.vae.device))
            trained.vae.register_to_config(scaling_factor=scaling_factor)
        trained.vae.save_pretrained(arguments.output_dir / "vae")

    fit(loss_module, crops, fit_options(arguments, crops), export)


if __name__ == "__main__":
    run_command(main)
