"""What the figures of `qamdt evaluate` say of music that is known to be good, damaged, cut up or wrongly described.

    python -m benchmarks.metric_sanity corpus/manifest.jsonl out --num-clips 100 --num-scored 40

Clean clips of the split `train` are left as they are, coded as mp3 at 24 kbit/s, low-passed at 2 kHz, given white noise
20 dB below them, cut into half seconds that are put in another order, and given each other's captions and facts. Every
variant is held against the clean clips of the split `test`. A figure is of use for a fault where it moves by more than
its interval; `out/table.md` has them all. Stopped and run again, it goes on.
"""

import argparse
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import soundfile
from scipy.signal import butter, sosfiltfilt

from pipelines.evaluation.report import to_json
from pipelines.evaluation.request import EvaluationRequest
from pipelines.evaluation.run import evaluate
from qamdt.audio import SAMPLING_RATE, read_audio, write_audio
from qamdt.files import write_json, write_text
from qamdt.manifest import Record, read_manifest, resolve_clip_path, write_manifest


MP3_KBIT_PER_S = 24
LOW_PASS_HZ = 2000
NOISE_DB = -20
SEGMENT_IN_S = 0.5
SPACE = ("fad", "kad", "prdc", "is", "clap")
HEARD = ("whisq", "tempo", "key", "chords")
ROWS = (
    ("FAD", "distribution"),
    ("FAD-infinity", "distribution"),
    ("KAD", "distribution"),
    ("precision", "distribution"),
    ("recall", "distribution"),
    ("density", "distribution"),
    ("coverage", "distribution"),
    ("IS", "distribution"),
    ("CLAP score", "clips"),
    ("own prompt above another", "clips"),
    ("WhisQ quality", "clips"),
    ("WhisQ alignment", "clips"),
    ("tempo, or half or double", "clips"),
    ("onsets follow the beat", "clips"),
    ("key", "clips"),
    ("likeness of chords above moved ones", "clips"),
)


def code_as_mp3(waveform: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """There and back through mp3 at a constant `MP3_KBIT_PER_S`."""
    file = io.BytesIO()
    # libsndfile spreads its compression levels evenly over the bit rates of MPEG-2, 8 to 160 kbit/s.
    level = (160 - MP3_KBIT_PER_S) / (160 - 8)
    soundfile.write(file, waveform, SAMPLING_RATE, format="MP3", bitrate_mode="CONSTANT", compression_level=level)
    file.seek(0)
    return soundfile.read(file, dtype="float32")[0][: len(waveform)]


def low_pass(waveform: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    return sosfiltfilt(butter(8, LOW_PASS_HZ, fs=SAMPLING_RATE, output="sos"), waveform)


def add_noise(waveform: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    level = np.sqrt(np.mean(waveform**2)) * 10 ** (NOISE_DB / 20)
    return waveform + level * generator.standard_normal(len(waveform))


def shuffle_segments(waveform: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    size = round(SEGMENT_IN_S * SAMPLING_RATE)
    segments = [waveform[start : start + size] for start in range(0, len(waveform), size)]
    return np.concatenate([segments[number] for number in generator.permutation(len(segments))])


CHANGES: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray] | None] = {
    "as rendered": None,
    "mp3": code_as_mp3,
    "low-pass": low_pass,
    "noise": add_noise,
    "shuffled": shuffle_segments,
    "other prompts": None,
}


def write_variant(name: str, manifest: Path, records: list[Record], folder: Path) -> Path:
    """Writes the clips of a variant and their manifest, which is returned."""
    written = folder / "manifest.jsonl"
    if written.is_file():
        return written
    (folder / "audio").mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    for record in records:
        waveform = read_audio(resolve_clip_path(manifest, record)).numpy()
        if CHANGES[name] is not None:
            waveform = CHANGES[name](waveform, generator)
        write_audio(folder / "audio" / f"{record.id}.flac", waveform, SAMPLING_RATE)
    told = records[1:] + records[:1] if name == "other prompts" else records
    facts = ("captions", "tempo_bpm", "first_beat_in_s", "time_signature", "key", "chords")
    changed = [
        replace(record, path=f"audio/{record.id}.flac", **{fact: getattr(other, fact) for fact in facts})
        for record, other in zip(records, told, strict=True)
    ]
    write_manifest(written, changed)
    return written


def measure_variants(manifest: Path, folder: Path, num_clips: int, num_scored: int) -> dict[str, dict]:
    """Returns the reports of all variants: of `num_clips` in the embedder's space, and of `num_scored` as heard."""
    train = [r for r in read_manifest(manifest) if r.tags["split"] == "train" and r.tags["degradation"] is None]
    records = [record for record in train if record.key and record.chords][:num_clips]
    reports = {}
    for metrics in (SPACE, HEARD):  # what is quick comes first
        for name in CHANGES:
            base = EvaluationRequest(
                generated=write_variant(name, manifest, records, folder / name.replace(" ", "-")),
                metrics=metrics,
                num_resamples=20,
            )
            if metrics == SPACE:
                tags = {"split": "test", "degradation": None}
                request = replace(base, reference=manifest, reference_tags=tags)
            else:
                request = replace(base, max_clips=num_scored)
            report = to_json(evaluate(request, folder / "rows"))
            for part in ("distribution", "clips"):
                tables = report[part].get("generated", {}) if part == "clips" else report[part]
                reports.setdefault(name, {}).setdefault(part, {}).update(tables)
            write_json(folder / "reports.json", reports)
            write_text(folder / "table.md", format_table(reports))
    return reports


def format_table(reports: dict[str, dict]) -> str:
    lines = [f"| | {' | '.join(reports)} |", "|---" * (len(reports) + 1) + "|"]
    for row, part in ROWS:
        cells = []
        for report in reports.values():
            figure = report.get(part, {}).get(row, {}).get("figure")
            cells.append("" if figure is None else _format(figure))
        lines.append(f"| {row} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _format(figure: dict) -> str:
    if figure["interval"] is None:
        return f"{figure['value']:.2f}"
    return f"{figure['value']:.2f} ± {(figure['interval'][1] - figure['interval'][0]) / 2:.2f}"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=Path, help="rendered corpus")
    parser.add_argument("folder", type=Path, help="where variants and reports go")
    parser.add_argument("--num-clips", type=int, default=100)
    parser.add_argument("--num-scored", type=int, default=40, help="how many of them WhisQ and the rulers hear")
    arguments = parser.parse_args(argv)
    reports = measure_variants(arguments.manifest, arguments.folder, arguments.num_clips, arguments.num_scored)
    print(format_table(json.loads(json.dumps(reports))))


if __name__ == "__main__":
    main()
