"""What is left of key, tempo, chords and loudness of rendered music after an autoencoder.

    python -m benchmarks.note_survival --manifest corpus/manifest.jsonl --num-clips 200
    python -m benchmarks.note_survival --manifest corpus/manifest.jsonl --num-clips 200 --autoencoder runs/autoencoder/autoencoder

Each clean clip of the split `test` is measured as it was rendered, after the autoencoder of a model (with its vocoder, if
it has one), and after an autoencoder of waveforms, if one is named: the ceilings of what any model on these latents can be
measured at.
"""

import argparse
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from pipelines.evaluation.control import is_tempo
from pipelines.evaluation.music_measures import chord_match
from pipelines.evaluation.reconstruction import reconstruct_waveforms
from pipelines.pipeline_qamdt import QAMDTPipeline
from qamdt import tempo_and_key
from qamdt.audio import SAMPLING_RATE, read_audio
from qamdt.decoders.spectral_losses import multi_resolution_stft_distance
from qamdt.decoding import latents_to_waveform
from qamdt.encoding import encode_waveforms
from qamdt.manifest import Record, read_manifest, resolve_clip_path
from qamdt.models.autoencoder_waveform import AutoencoderWaveform
from qamdt.training.dataset import known_music


Decode = Callable[[torch.Tensor], torch.Tensor]


def autoencoder_of(model: str | None) -> Decode:
    """Returns what sends waveforms `(batch, samples)` through the autoencoder of a model, the embedded one for `None`."""
    return partial(reconstruct_waveforms, QAMDTPipeline.from_pretrained(model))


def waveform_autoencoder(folder: Path) -> Decode:
    """Returns what sends waveforms `(batch, samples)` through an autoencoder of waveforms."""
    autoencoder = AutoencoderWaveform.from_pretrained(folder).eval()

    def reconstruct(waveforms: torch.Tensor) -> torch.Tensor:
        return latents_to_waveform(autoencoder, encode_waveforms(autoencoder, waveforms).mode())[
            :, : waveforms.shape[1]
        ]

    return reconstruct


def measure(waveform: torch.Tensor, original: torch.Tensor, record: Record) -> dict[str, float]:
    """Measures one clip `(samples,)` beside the rendered one; key and chords only where the clip has them."""
    samples = waveform.numpy()
    found_bpm = tempo_and_key.tempo_bpm(samples, SAMPLING_RATE)
    loudness = 20 * torch.log10(waveform.square().mean().sqrt() / original.square().mean().sqrt())
    values = {
        "tempo": is_tempo(found_bpm, record.tempo_bpm, 1),
        "tempo, or half or double": is_tempo(found_bpm, record.tempo_bpm, 0.5, 1, 2),
        "STFT distance": float(multi_resolution_stft_distance(waveform[None], original[None])),
        "loudness within 3 dB": abs(float(loudness)) <= 3,
    }
    if record.key is not None:
        key = tempo_and_key.key_name(samples, SAMPLING_RATE)
        values["key"] = key == tempo_and_key.normalize_key(record.key)
        match = chord_match(samples, SAMPLING_RATE, known_music(record))
        values["chord likeness above shifted"] = float(match[0] - match[1:].mean())
    return values


@torch.inference_mode()
def compare(manifest: Path, num_clips: int, systems: dict[str, Decode]) -> dict[str, dict[str, float]]:
    """Returns the mean of every measure for each system, and the seconds it took for a clip."""
    records = [r for r in read_manifest(manifest) if r.tags.get("split") == "test" and not r.tags.get("degradation")]
    values = {name: defaultdict(list) for name in systems}
    for record in tqdm(records[:num_clips], desc="clips"):
        original = read_audio(
            resolve_clip_path(manifest, record), start_in_s=record.start_in_s, duration_in_s=record.duration_in_s
        )
        for name, reconstruct in systems.items():
            start = time.perf_counter()
            waveform = reconstruct(original[None])[0]
            values[name]["seconds"].append(time.perf_counter() - start)
            for measured, value in measure(waveform, original, record).items():
                values[name][measured].append(value)
    return {name: {key: float(np.nanmean(column)) for key, column in table.items()} for name, table in values.items()}


def format_table(results: dict[str, dict[str, float]]) -> str:
    names = list(results)
    lines = [f"| | {' | '.join(names)} |", "|---|" + "---|" * len(names)]
    for measured in next(iter(results.values())):
        cells = [f"{results[name][measured]:.3f}" for name in names]
        lines.append(f"| {measured} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--manifest", type=Path, required=True, help="rendered corpus with keys and chords")
    parser.add_argument("--num-clips", type=int, default=200)
    parser.add_argument("--model", help="folder or Hub id; the embedded model when left out")
    parser.add_argument("--autoencoder", type=Path, help="folder of an AutoencoderWaveform")
    arguments = parser.parse_args(argv)
    systems = {"rendered": lambda waveforms: waveforms, "model": autoencoder_of(arguments.model)}
    if arguments.autoencoder:
        systems["autoencoder"] = waveform_autoencoder(arguments.autoencoder)
    print(format_table(compare(arguments.manifest, arguments.num_clips, systems)))


if __name__ == "__main__":
    main()
