"""Measures whether the model does what the prompt says: quality, tempo, key and instrument.

    python -m benchmarks.control_metrics --num-prompts 20 --output control.json
    python -m benchmarks.control_metrics --manifest corpus/manifest.jsonl --output control_rendered.json

The first form generates each prompt at high and at low quality with the same seed, and measures the clips with the
measures of `qamdt evaluate`, which does more, keeps what it measured, and gives intervals. The second measures rendered
music instead, whose facts are known (clean clips stand for high quality, their degraded twins for low): what it reaches
is the most that the measures can show. Each hit rate for tempo and key stands beside the rate that the same clips reach
with the prompts exchanged.
"""

import argparse
import functools
import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from pipelines.evaluation.control import hit_summary, instrument_summary, music_summary, quality_summary
from pipelines.evaluation.generation import control_prompts
from pipelines.evaluation.measures import measure_music, measure_signal
from pipelines.evaluation.wanted import Wanted, wanted_of_record
from qamdt.audio import SAMPLING_RATE, read_audio
from qamdt.manifest import read_manifest, resolve_clip_path
from qamdt.music import Music
from whisq.scorer import WhisQScorer


def write_prompts(num_prompts: int) -> list[Wanted]:
    """Writes prompts that name an instrument, a key and a tempo, each for high and for low quality."""
    return [
        Wanted(pair=str(index), quality=quality, text=text, instrument=instrument, tempo_bpm=tempo_bpm, key=key)
        for index, (text, instrument, key, tempo_bpm) in enumerate(control_prompts(num_prompts))
        for quality in ("high", "low")
    ]


def generate_clips(
    model: str | None, prompts: list[Wanted], seconds: float, num_steps: int
) -> Iterator[tuple[Wanted, np.ndarray]]:
    """Generates every prompt; the two qualities of a pair start from the same noise."""
    from pipelines.pipeline_qamdt import QAMDTPipeline

    pipeline = QAMDTPipeline.from_pretrained(model) if model else QAMDTPipeline.from_pretrained()
    pipeline.set_progress_bar_config(disable=True)
    for wanted in tqdm(prompts, desc="clips"):
        generator = torch.Generator().manual_seed(int(wanted.pair))
        output = pipeline(
            wanted.text,
            quality=wanted.quality,
            audio_length_in_s=seconds,
            num_inference_steps=num_steps,
            generator=generator,
        )
        yield replace(wanted, music=output.music[0] if output.music else _as_asked(wanted)), output.audios[0]


def _as_asked(wanted: Wanted) -> Music:
    """What to hold a clip against whose model knows no music: the tempo, from the clip's beginning on."""
    return Music(tempo_bpm=wanted.tempo_bpm, first_beat_in_s=0.0, time_signature="4/4", key=wanted.key)


def read_clips(manifest: Path, split: str | None, low_below: float) -> Iterator[tuple[Wanted, np.ndarray]]:
    """Reads the rendered clips of a corpus, with what their tags say of them.

    Args:
        manifest: The corpus.
        split: Value of the tag `split` of the clips to read; all when `None`.
        low_below: Degraded clips with a quality score of at least this are passed over: they sound nearly clean.
    """
    for record in tqdm(read_manifest(manifest), desc="clips"):
        if split is not None and record.tags["split"] != split:
            continue
        if record.tags["degradation"] and record.quality_score >= low_below:
            continue
        facts = {"tempo_bpm": record.tags["tempo_bpm"], "key": record.tags["key"]}
        wanted = replace(wanted_of_record(record), quality="low" if record.tags["degradation"] else "high", **facts)
        waveform = read_audio(
            resolve_clip_path(manifest, record), start_in_s=record.start_in_s, duration_in_s=record.duration_in_s
        )
        yield wanted, waveform.numpy()


@functools.cache
def load_scorer() -> WhisQScorer:
    return WhisQScorer.from_pretrained()


def measure(waveform: np.ndarray, music: Music | None) -> dict:
    """All measures of one clip: of the signal, of the music it should be, and the embedded scorer's opinion."""
    quality = load_scorer().score(waveform, SAMPLING_RATE)[0].overall_quality
    return measure_music(waveform, music) | {"overall_quality": quality} | measure_signal(waveform)


def format_summary(summary: dict) -> str:
    lines = [
        "| quality: high against low | pairs | as expected | opposite | p | median difference |",
        "|---|---|---|---|---|---|",
    ]
    for name, values in summary["quality"].items():
        difference = f"{values['median_difference']:+.1f}" if "median_difference" in values else ""
        lines.append(
            f"| {name} | {values['pairs']} | {values['as_expected']} | {values['opposite']} "
            f"| {values['p_value']:.2g} | {difference} |"
        )
    lines += ["", "| asked for and heard | clips | share | with prompts exchanged |", "|---|---|---|---|"]
    for name, values in summary["hits"].items():
        lines.append(
            f"| {name} | {values['clips']} | {values['share']:.0%} | {values['share_with_prompts_exchanged']:.0%} |"
        )
    if values := summary["music"].get("beat_contrast"):
        lines += [
            "",
            f"Beats: contrast {values['mean']:.3f}, above 0 in {values['above_0']:.0%} of {values['clips']}.",
        ]
    if values := summary["music"].get("chords"):
        lines += [
            "",
            f"Chords: likeness {values['cosine_above_shifted']:.2f} above that of shifted ones, greater than all eleven in "
            f"{values['above_all_shifted']:.0%} of {values['clips']} clips.",
        ]
    if values := summary["instruments"]:
        lines += [
            "",
            f"Instruments: {values['recognised']:.0%} of {values['clips']} clips recognised by their timbre "
            f"(chance {values['chance']:.0%}); timbre distance {values['distance_within_db']:.1f} dB within and "
            f"{values['distance_between_db']:.1f} dB between instruments.",
        ]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder or Hub id; the embedded model when left out")
    parser.add_argument("--manifest", type=Path, help="measure these rendered clips instead of generating")
    parser.add_argument("--split", help="with --manifest: only clips whose tag `split` has this value")
    parser.add_argument(
        "--low-below", type=float, default=3.0, help="with --manifest: a clip of low quality scores less (%(default)s)"
    )
    parser.add_argument("--num-prompts", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=10.0, help="length of each generated clip")
    parser.add_argument("--steps", type=int, default=12, help="denoising steps (%(default)s)")
    parser.add_argument("--output", help="JSON file for the summary and every clip")
    arguments = parser.parse_args(argv)

    if arguments.manifest:
        sounds = read_clips(arguments.manifest, arguments.split, arguments.low_below)
    else:
        sounds = generate_clips(
            arguments.model, write_prompts(arguments.num_prompts), arguments.seconds, arguments.steps
        )
    clips = [(wanted, measure(waveform, wanted.music)) for wanted, waveform in sounds]

    summary = {
        "quality": quality_summary(clips),
        "hits": hit_summary(clips),
        "music": music_summary(clips),
        "instruments": instrument_summary(clips),
    }
    if arguments.output:
        rows = [asdict(wanted) | {"measured": measured} for wanted, measured in clips]
        with open(arguments.output, "w", encoding="utf-8") as file:
            json.dump({"settings": vars(arguments), "summary": summary, "clips": rows}, file, indent=2, default=str)
    print(format_summary(summary))


if __name__ == "__main__":
    main()
