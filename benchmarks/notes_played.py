"""Whether a model plays notes, and not texture: what a transcriber writes down, beside what it hears in rendered music.

    pip install --no-deps basic-pitch pretty_midi mido resampy six "setuptools<81" && pip install onnxruntime mir_eval
    python -m benchmarks.notes_played --manifest corpus/manifest.jsonl --num-clips 60

Held-out clean clips are transcribed by basic-pitch (Bittner et al. 2022) as they were rendered, after the autoencoder, and
as the model plays the clip's first caption. For the autoencoder the onsets found are compared with those of the rendered
clip (same pitch, within 50 ms). For the model, notes a second, their mean length and how many sound at once are compared
with clips of the same style: a clip is like them if each lies between the style's tenth and ninetieth percentile.
"""

import argparse
import contextlib
import io
import json
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from pipelines.evaluation.reconstruction import reconstruct_waveforms
from pipelines.pipeline_qamdt import QAMDTPipeline
from qamdt.audio import SAMPLING_RATE, read_audio, write_audio
from qamdt.manifest import Record, read_manifest, resolve_clip_path


SECONDS = 10.0
ONSET_TOLERANCE_IN_S = 0.05
MEASURES = ("notes a second", "mean length in s", "notes at once")


@dataclass(frozen=True)
class Notes:
    """What was transcribed.

    Args:
        spans: Begin and end in seconds, `(notes, 2)`.
        pitches: MIDI numbers, `(notes,)`.
    """

    spans: np.ndarray
    pitches: np.ndarray

    def describe(self, seconds: float) -> list[float]:
        """The values of `MEASURES`; lengths and numbers of a clip without notes are zero."""
        if len(self.pitches) == 0:
            return [0.0, 0.0, 0.0]
        lengths = self.spans[:, 1] - self.spans[:, 0]
        times = np.arange(0, seconds, 0.02)[:, None]
        at_once = ((self.spans[:, 0] <= times) & (times < self.spans[:, 1])).sum(axis=1)
        return [len(self.pitches) / seconds, float(lengths.mean()), float(at_once[at_once > 0].mean())]


class Transcriber:
    """basic-pitch with its own thresholds."""

    def __init__(self):
        from basic_pitch import ICASSP_2022_MODEL_PATH
        from basic_pitch.inference import Model

        self._model = Model(ICASSP_2022_MODEL_PATH)

    def __call__(self, waveform: torch.Tensor) -> Notes:
        """Transcribes a waveform `(samples,)`."""
        from basic_pitch.inference import predict

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "clip.wav"
            write_audio(path, waveform, SAMPLING_RATE)
            with contextlib.redirect_stdout(io.StringIO()):  # it tells of every file
                _, _, events = predict(path, self._model)
        events = sorted(events)
        spans = np.array([event[:2] for event in events], dtype=float).reshape(-1, 2)
        return Notes(spans, np.array([event[2] for event in events], dtype=int))


def onset_f1(found: Notes, reference: Notes) -> float:
    """F-measure of the notes found, by pitch and onset; NaN where the reference has none."""
    from mir_eval.transcription import precision_recall_f1_overlap
    from mir_eval.util import midi_to_hz

    if len(reference.pitches) == 0:
        return float("nan")
    if len(found.pitches) == 0:
        return 0.0
    return precision_recall_f1_overlap(
        reference.spans,
        midi_to_hz(reference.pitches),
        found.spans,
        midi_to_hz(found.pitches),
        onset_tolerance=ONSET_TOLERANCE_IN_S,
        offset_ratio=None,
    )[2]


def read_clips(manifest: Path, *, is_held_out: bool) -> Iterator[tuple[Record, torch.Tensor]]:
    """Yields clean clips with their first ten seconds."""
    for record in read_manifest(manifest):
        if not record.tags.get("degradation") and (record.tags.get("split") == "test") == is_held_out:
            path = resolve_clip_path(manifest, record)
            yield record, read_audio(path, start_in_s=record.start_in_s, duration_in_s=SECONDS)


def describe_styles(manifest: Path, transcribe: Transcriber, clips_per_style: int) -> dict[str, np.ndarray]:
    """The measures of rendered training clips, `(clips, measures)` for each style."""
    values: dict[str, list[list[float]]] = defaultdict(list)
    with tqdm(desc="rendered clips") as progress:
        for record, waveform in read_clips(manifest, is_held_out=False):
            if len(values[record.tags["style"]]) < clips_per_style:
                values[record.tags["style"]].append(transcribe(waveform).describe(SECONDS))
                progress.update()
    return {style: np.array(rows) for style, rows in values.items()}


@torch.inference_mode()
def compare(manifest: Path, pipe: QAMDTPipeline, num_clips: int, clips_per_style: int) -> dict[str, float]:
    """Returns the means over held-out clips."""
    transcribe = Transcriber()
    ranges = {
        style: np.percentile(rows, [10, 90], axis=0)
        for style, rows in describe_styles(manifest, transcribe, clips_per_style).items()
    }
    onsets, is_like = [], {"rendered": [], "the model": []}
    clips = (pair for pair in read_clips(manifest, is_held_out=True) if pair[0].tags["style"] in ranges)
    for number, (record, waveform) in enumerate(tqdm(clips, total=num_clips, desc="held-out clips")):
        if number == num_clips:
            break
        rendered = transcribe(waveform)
        onsets.append(onset_f1(transcribe(reconstruct_waveforms(pipe, waveform[None])[0]), rendered))
        output = pipe(
            record.captions[0],
            audio_length_in_s=SECONDS,
            generator=torch.Generator().manual_seed(number),
            output_type="pt",
        )
        low, high = ranges[record.tags["style"]]
        for name, notes in (("rendered", rendered), ("the model", transcribe(output.audios[0]))):
            values = notes.describe(SECONDS)
            is_like[name].append([low[i] <= value <= high[i] for i, value in enumerate(values)])
    results = {"clips": len(onsets), "onset F1 after the autoencoder": float(np.nanmean(onsets))}
    for name, rows in is_like.items():
        table = np.array(rows)
        results |= {
            f"{name}: {measure}": float(share) for measure, share in zip(MEASURES, table.mean(axis=0), strict=True)
        }
        results |= {f"{name}: all three": float(table.all(axis=1).mean())}
    return results


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--manifest", type=Path, required=True, help="rendered corpus, whose clips have a tag `style`")
    parser.add_argument("--model", help="folder or Hub id; the embedded model when left out")
    parser.add_argument("--num-clips", type=int, default=60)
    parser.add_argument("--clips-per-style", type=int, default=20)
    arguments = parser.parse_args(argv)
    pipe = QAMDTPipeline.from_pretrained(arguments.model)
    pipe.set_progress_bar_config(disable=True)
    results = compare(arguments.manifest, pipe, arguments.num_clips, arguments.clips_per_style)
    print(json.dumps({name: round(value, 3) for name, value in results.items()}, indent=2))


if __name__ == "__main__":
    main()
