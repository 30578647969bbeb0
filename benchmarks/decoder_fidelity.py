"""How much of a held-out clip survives the autoencoder and the vocoder, in numbers and as a picture.

    python -m benchmarks.decoder_fidelity --manifest corpus/manifest.jsonl --png docs/decoder_fidelity.png

Prints, for the vocoder alone, for autoencoder and vocoder together, and for Griffin-Lim from the true spectrogram:
multi-resolution STFT distance to the clip, loudness difference, peak, and cost in CPU seconds.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from diffusers import AutoencoderKL

from qamdt.audio import SAMPLING_RATE, LogMel, read_audio
from qamdt.decoders.spectral_losses import multi_resolution_stft_distance
from qamdt.decoding import decode_latents, mel_to_waveform
from qamdt.manifest import read_manifest
from qamdt.models.vocoder_istft import ISTFTVocoder, inverse_stft


def griffin_lim(mel_spectrogram: torch.Tensor, log_mel: LogMel, num_iterations: int = 32) -> torch.Tensor:
    """Waveforms `(batch, samples)` from log-mel `(batch, 1, frames, mel_bins)`: least squares, then phase search."""
    inverse_filters = torch.linalg.pinv(log_mel.filters)
    magnitude = (inverse_filters @ mel_spectrogram[:, 0].exp().transpose(1, 2)).clamp(min=1e-5)
    vocoder = ISTFTVocoder(n_fft=log_mel.n_fft, hop_length=log_mel.hop_length, dim=8, num_layers=1)
    padding = (log_mel.n_fft - log_mel.hop_length) // 2
    phase = torch.rand(magnitude.shape, generator=torch.Generator().manual_seed(0)) * 2 * torch.pi
    for _ in range(num_iterations):
        waveforms = inverse_stft(torch.polar(magnitude, phase), vocoder.window, vocoder.config.hop_length)
        padded = torch.nn.functional.pad(waveforms[:, None], (padding, padding), mode="reflect")[:, 0]
        spectrum = torch.stft(
            padded, log_mel.n_fft, log_mel.hop_length, window=log_mel.window, center=False, return_complex=True
        )
        phase = spectrum.angle()
    return inverse_stft(torch.polar(magnitude, phase), vocoder.window, vocoder.config.hop_length)


def loudness_db(waveforms: torch.Tensor) -> torch.Tensor:
    """Root-mean-square level of waveforms `(batch, samples)` in dB."""
    return 10 * waveforms.square().mean(dim=1).clamp(min=1e-10).log10()


def report(waveforms: torch.Tensor, references: torch.Tensor, seconds: float) -> dict[str, float]:
    """The row of one method; `seconds` is what it took for all clips."""
    difference_db = (loudness_db(waveforms) - loudness_db(references)).abs()
    return {
        "stft_distance": round(multi_resolution_stft_distance(waveforms, references).item(), 4),
        "median_loudness_difference_db": round(difference_db.median().item(), 2),
        "largest_loudness_difference_db": round(difference_db.max().item(), 2),
        "share_within_3_db": round((difference_db <= 3).float().mean().item(), 3),
        "peak": round(waveforms.abs().max().item(), 3),
        "cpu_seconds_per_clip": round(seconds / len(waveforms), 3),
    }


def plot(path: Path, rows: list[tuple[str, torch.Tensor]]) -> None:
    """Saves log-mel spectrograms `(mel_bins, frames)` one above the other."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(len(rows), 1, figsize=(12, 2.2 * len(rows)), constrained_layout=True)
    for axis, (title, mel_spectrogram) in zip(axes, rows, strict=True):
        axis.imshow(mel_spectrogram, origin="lower", aspect="auto", vmin=-11, vmax=2, cmap="magma")
        axis.set_title(title, loc="left", fontsize=9)
        axis.set_ylabel("mel bin")
    axes[-1].set_xlabel("frame (10 ms)")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)


@torch.no_grad()
def main(argv: list[str] | None = None) -> None:
    """Command line of the measurement."""
    default_model = Path(__file__).resolve().parent.parent / "qamdt" / "weights" / "qamdt-mini"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--manifest", type=Path, required=True)
    parser.add_argument("--vae", type=Path, default=default_model / "vae")
    parser.add_argument("--vocoder", type=Path, default=default_model / "vocoder")
    parser.add_argument("--num-clips", type=int, default=32, help="clean clips of the test split (%(default)s)")
    parser.add_argument("--png", type=Path, help="spectrograms of the first two clips")
    arguments = parser.parse_args(argv)

    records = [r for r in read_manifest(arguments.manifest) if r.tags.get("split") == "test"]
    records = [r for r in records if not r.tags.get("degradation")][: arguments.num_clips]
    root = arguments.manifest.parent
    num_samples = 10 * SAMPLING_RATE // 1280 * 1280
    clips = torch.stack([read_audio(root / r.path, start_in_s=r.start_in_s)[:num_samples] for r in records])
    vae = AutoencoderKL.from_pretrained(arguments.vae)
    vocoder = ISTFTVocoder.from_pretrained(arguments.vocoder)
    log_mel = LogMel()
    mel_spectrogram = log_mel(clips)

    started = time.process_time()
    latents = vae.encode(mel_spectrogram).latent_dist.mean * vae.config.scaling_factor
    encoded = time.process_time()
    reconstruction = decode_latents(vae, latents)
    decoded = time.process_time()
    from_reconstruction = mel_to_waveform(vocoder, reconstruction)
    vocoded = time.process_time()
    from_clip = mel_to_waveform(vocoder, mel_spectrogram)
    searched = time.process_time()
    phase_search = griffin_lim(mel_spectrogram, log_mel)
    finished = time.process_time()

    result = {
        "num_clips": len(clips),
        "mel_error_of_autoencoder": round((reconstruction - mel_spectrogram).abs().mean().item(), 4),
        "encode_cpu_seconds_per_clip": round((encoded - started) / len(clips), 3),
        "autoencoder_and_vocoder": report(from_reconstruction, clips, vocoded - encoded),
        "vocoder": report(from_clip, clips, searched - vocoded),
        "griffin_lim_32": report(phase_search, clips, finished - searched),
        "decode_cpu_seconds_per_clip": round((decoded - encoded) / len(clips), 3),
    }
    print(json.dumps(result, indent=2))
    if arguments.png:
        rows = []
        for index in range(min(2, len(clips))):
            rows.append((f"{records[index].captions[0]}", mel_spectrogram[index, 0].T))
            rows.append(("after the autoencoder and the vocoder", log_mel(from_reconstruction)[index, 0].T))
        plot(arguments.png, rows)


if __name__ == "__main__":
    main()
