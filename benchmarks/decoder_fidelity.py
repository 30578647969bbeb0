"""How much of a held-out clip survives a model's autoencoder, in numbers and as a picture.

    python -m benchmarks.decoder_fidelity --manifest corpus/manifest.jsonl --png docs/decoder_fidelity.png

Prints, for the autoencoder (with its vocoder, if it has one), for the vocoder alone, and for Griffin-Lim from the true
spectrogram: multi-resolution STFT distance to the clip, loudness difference, peak, and cost in CPU seconds.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch

from pipelines.evaluation.reconstruction import reconstruct_waveforms
from pipelines.pipeline_qamdt import QAMDTPipeline
from qamdt.audio import SAMPLING_RATE, LogMel, normalize_waveform, read_audio
from qamdt.decoders.spectral_losses import multi_resolution_stft_distance
from qamdt.decoding import mel_to_waveform
from qamdt.manifest import read_manifest, resolve_clip_path
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


def compare(clips: torch.Tensor, pipe: QAMDTPipeline) -> dict[str, tuple[torch.Tensor, float]]:
    """Clips `(batch, samples)` after each method, and the CPU seconds that it took."""
    log_mel = LogMel()
    methods = {"autoencoder": lambda: torch.cat([reconstruct_waveforms(pipe, clip[None]) for clip in clips])}
    if pipe.vocoder is not None:
        methods["vocoder"] = lambda: mel_to_waveform(pipe.vocoder, log_mel(clips))
    methods["griffin_lim_32"] = lambda: griffin_lim(log_mel(clips), log_mel)
    results = {}
    for name, method in methods.items():
        started = time.process_time()
        results[name] = method(), time.process_time() - started
    return results


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


@torch.inference_mode()
def main(argv: list[str] | None = None) -> None:
    """Command line of the measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--manifest", type=Path, required=True)
    parser.add_argument("--model", help="folder or Hub id; the embedded model when left out")
    parser.add_argument("--num-clips", type=int, default=32, help="clean clips of the test split (%(default)s)")
    parser.add_argument("--png", type=Path, help="spectrograms of the first three clips")
    arguments = parser.parse_args(argv)

    records = [r for r in read_manifest(arguments.manifest) if r.tags.get("split") == "test"]
    records = [r for r in records if not r.tags.get("degradation")][: arguments.num_clips]
    num_samples = 10 * SAMPLING_RATE // 1280 * 1280
    clips = [read_audio(resolve_clip_path(arguments.manifest, r), start_in_s=r.start_in_s) for r in records]
    clips = torch.stack([normalize_waveform(clip[None])[0, :num_samples] for clip in clips])
    results = compare(clips, QAMDTPipeline.from_pretrained(arguments.model))

    rows = {name: report(waveforms, clips, seconds) for name, (waveforms, seconds) in results.items()}
    print(json.dumps({"num_clips": len(clips)} | rows, indent=2))
    if arguments.png:
        pictures = []
        for record, clip, waveform in list(zip(records, clips, results["autoencoder"][0], strict=True))[:3]:
            pictures.append((f"as rendered: {record.captions[0]}", LogMel()(clip[None])[0, 0].T))
            pictures.append(("after the autoencoder", LogMel()(waveform[None])[0, 0].T))
        plot(arguments.png, pictures)


if __name__ == "__main__":
    main()
