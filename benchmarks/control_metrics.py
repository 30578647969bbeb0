"""Measures whether the model does what the prompt says: quality, tempo, key and instrument.

    python -m benchmarks.control_metrics --num-prompts 20 --output control.json
    python -m benchmarks.control_metrics --manifest corpus/manifest.jsonl --output control_rendered.json

The first form generates each prompt at high and at low quality with the same seed, and measures the clips with the
plain signal measures of `signal_measures.py`, `music_measures.py` and `tempo_and_key.py` and with the embedded scorer. The second measures rendered music instead, whose
facts are known (clean clips stand for high quality, their degraded twins for low): what it reaches is the most that the
measures can show. Each hit rate for tempo and key stands beside the rate that the same clips reach with the prompts exchanged.
"""

import argparse
import functools
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from scipy.stats import binomtest
from tqdm import tqdm

from benchmarks import music_measures, signal_measures
from qamdt import tempo_and_key
from qamdt.audio import SAMPLING_RATE, read_audio
from qamdt.manifest import read_manifest, resolve_clip_path
from qamdt.music import Music
from qamdt.training.dataset import known_music
from whisq.scorer import WhisQScorer


# Ten that the training music often has alone.
INSTRUMENTS = (
    "piano",
    "nylon guitar",
    "electric piano",
    "distorted guitar",
    "church organ",
    "choir",
    "strings",
    "harpsichord",
    "harp",
    "cello",
)
KEYS = ("C major", "A minor", "G major", "E minor", "D major", "F major", "D minor", "Bb major", "G minor", "A major")
TEMPI_BPM = (120, 90, 140, 75, 105, 160, 82, 130, 98, 112)
WORDINGS = (
    "{instrument} in {key} at {tempo_bpm} bpm",
    "A piece in {key} at {tempo_bpm} bpm, played by {instrument}.",
)
TEMPO_TOLERANCE = 0.04
# What high quality should do to each measure, against low quality.
EXPECTED_SIGN = {"bandwidth_hz": +1, "rolloff_hz": +1, "noise_floor_db": -1, "overall_quality": +1}


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a clip should be; `None` where nothing is asked.

    Args:
        pair: Names the pair of clips that differ in quality alone.
        quality: "high" or "low".
        text: The prompt.
        instrument: Name of the only instrument.
        tempo_bpm: Beats a minute.
        key: The key, such as "Bb major".
        music: All that the model was told to play, or that is known of a rendered clip.
    """

    pair: str
    quality: str
    text: str
    instrument: str | None
    tempo_bpm: float | None
    key: str | None
    music: Music | None = None


def write_prompts(num_prompts: int) -> list[Wanted]:
    """Writes prompts that name an instrument, a key and a tempo; after each round of instruments the others shift."""
    prompts = []
    for index in range(num_prompts):
        turn, position = divmod(index, len(INSTRUMENTS))
        facts = {
            "instrument": INSTRUMENTS[position],
            "key": KEYS[(position + 3 * turn) % len(KEYS)],
            "tempo_bpm": TEMPI_BPM[(position + 7 * turn) % len(TEMPI_BPM)],
        }
        text = WORDINGS[turn % len(WORDINGS)].format(**facts)
        prompts += [Wanted(pair=str(index), quality=quality, text=text, **facts) for quality in ("high", "low")]
    return prompts


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
        instruments = record.tags["instruments"]
        wanted = Wanted(
            pair=str(record.tags["piece_id"]),
            quality="low" if record.tags["degradation"] else "high",
            text=record.captions[0],
            instrument=instruments[0] if len(instruments) == 1 else None,
            tempo_bpm=record.tags["tempo_bpm"],
            key=record.tags["key"],
            music=known_music(record),
        )
        waveform = read_audio(
            resolve_clip_path(manifest, record), start_in_s=record.start_in_s, duration_in_s=record.duration_in_s
        )
        yield wanted, waveform.numpy()


@functools.cache
def load_scorer() -> WhisQScorer:
    return WhisQScorer.from_pretrained()


def measure(waveform: np.ndarray, music: Music | None) -> dict:
    """All measures of one clip: of the signal, of the music it should be, and the embedded scorer's opinion."""
    return measure_music(waveform, music) | {
        "overall_quality": load_scorer().score(waveform, SAMPLING_RATE)[0].overall_quality,
        "bandwidth_hz": signal_measures.bandwidth_hz(waveform, SAMPLING_RATE),
        "rolloff_hz": signal_measures.rolloff_hz(waveform, SAMPLING_RATE),
        "noise_floor_db": signal_measures.noise_floor_db(waveform, SAMPLING_RATE),
        "tempo_bpm": tempo_and_key.tempo_bpm(waveform, SAMPLING_RATE),
        "key": tempo_and_key.key_name(waveform, SAMPLING_RATE),
        "timbre": signal_measures.timbre(waveform, SAMPLING_RATE).round(3).tolist(),
    }


def measure_music(waveform: np.ndarray, music: Music | None) -> dict:
    """Where beats, bars and chords were asked for, how well they sound there."""
    measures = {}
    if music is not None and music.tempo_bpm and music.first_beat_in_s is not None:
        measures["beat_contrast"] = music_measures.beat_contrast(waveform, SAMPLING_RATE, music)
        if music.time_signature:
            measures["metre_contrast"] = music_measures.metre_contrast(waveform, SAMPLING_RATE, music)
    if music is not None and music.chords:
        measures["chord_match"] = music_measures.chord_match(waveform, SAMPLING_RATE, music).tolist()
    return measures


def music_summary(clips: list[tuple[Wanted, dict]]) -> dict:
    """Means over the high-quality clips of what is heard where it was asked for."""
    measured = [measures for wanted, measures in clips if wanted.quality == "high"]
    summary = {}
    for name in ("beat_contrast", "metre_contrast"):
        if values := [measures[name] for measures in measured if name in measures]:
            summary[name] = {
                "clips": len(values),
                "mean": float(np.mean(values)),
                "above_0": float(np.mean(np.array(values) > 0)),
            }
    matches = np.array([measures["chord_match"] for measures in measured if "chord_match" in measures])
    matches = matches[np.isfinite(matches).all(axis=1)] if len(matches) else matches
    if len(matches):
        summary["chords"] = {
            "clips": len(matches),
            "cosine_above_shifted": float((matches[:, 0] - matches[:, 1:].mean(axis=1)).mean()),
            "above_all_shifted": float((matches.argmax(axis=1) == 0).mean()),
        }
    return summary


def quality_summary(clips: list[tuple[Wanted, dict]]) -> dict:
    """In how many pairs each measure moves as expected, and two of them on balance; `p_value` is of a sign test."""
    high = {wanted.pair: measured for wanted, measured in clips if wanted.quality == "high"}
    low = {wanted.pair: measured for wanted, measured in clips if wanted.quality == "low"}
    pairs = sorted(high.keys() & low.keys())
    if not pairs:
        return {}
    signs = {
        name: [int(np.sign(sign * (high[pair][name] - low[pair][name]))) for pair in pairs]
        for name, sign in EXPECTED_SIGN.items()
    }
    # Noise raises the rolloff that a low-pass filter lowers; the other two agree on what is better.
    signs["bandwidth and noise floor"] = np.sign(np.add(signs["bandwidth_hz"], signs["noise_floor_db"])).tolist()
    summary = {}
    for name, values in signs.items():
        as_expected, opposite = values.count(1), values.count(-1)
        summary[name] = {
            "pairs": len(pairs),
            "as_expected": as_expected,
            "opposite": opposite,
            "p_value": binomtest(as_expected, max(as_expected + opposite, 1), alternative="greater").pvalue,
        }
        if name in EXPECTED_SIGN:
            summary[name]["median_difference"] = float(
                np.median([high[pair][name] - low[pair][name] for pair in pairs])
            )
    return summary


def is_tempo(found_bpm: float, wanted_bpm: float, *factors: float) -> bool:
    return any(abs(found_bpm / (factor * wanted_bpm) - 1) <= TEMPO_TOLERANCE for factor in factors)


def hit_summary(clips: list[tuple[Wanted, dict]]) -> dict:
    """Shares of the high-quality clips whose measured tempo and key are the ones asked for, and with prompts exchanged."""
    clips = [clip for clip in clips if clip[0].quality == "high"]
    tempi = [(wanted.tempo_bpm, measured["tempo_bpm"]) for wanted, measured in clips if wanted.tempo_bpm]
    keys = [(tempo_and_key.normalize_key(wanted.key), measured["key"]) for wanted, measured in clips if wanted.key]

    def share(facts: list, is_hit) -> dict:
        exchanged = [is_hit(a[0], b[1]) for a in facts for b in facts if a is not b]
        return {
            "clips": len(facts),
            "share": float(np.mean([is_hit(wanted, found) for wanted, found in facts])),
            "share_with_prompts_exchanged": float(np.mean(exchanged)),
        }

    return {
        "tempo": share(tempi, lambda wanted, found: is_tempo(found, wanted, 1)),
        "tempo, or half or double": share(tempi, lambda wanted, found: is_tempo(found, wanted, 0.5, 1, 2)),
        "key": share(keys, lambda wanted, found: found == wanted),
        "key, or its relative": share(
            keys, lambda wanted, found: found in (wanted, tempo_and_key.relative_key(wanted))
        ),
    }


def instrument_summary(clips: list[tuple[Wanted, dict]]) -> dict:
    """Timbre distances between clips of one and of different instruments, and leave-one-out recognition.

    A clip is recognised when, of the instruments' mean timbres, each taken without the clip itself, its own is nearest.
    """
    labelled = [(w.instrument, np.array(m["timbre"])) for w, m in clips if w.instrument and w.quality == "high"]
    counts = {name: sum(label == name for label, _ in labelled) for name, _ in labelled}
    labelled = [(name, features) for name, features in labelled if counts[name] > 1]
    if len({name for name, _ in labelled}) < 2:
        return {}

    distances = {True: [], False: []}
    for (name, features), (other_name, other_features) in combinations(labelled, 2):
        distances[name == other_name].append(np.abs(features - other_features).mean())

    num_recognised = 0
    for index, (name, features) in enumerate(labelled):
        others = labelled[:index] + labelled[index + 1 :]
        means = {label: np.mean([f for n, f in others if n == label], axis=0) for label, _ in others}
        num_recognised += name == min(means, key=lambda label: np.abs(means[label] - features).mean())
    return {
        "clips": len(labelled),
        "distance_within_db": float(np.mean(distances[True])),
        "distance_between_db": float(np.mean(distances[False])),
        "recognised": num_recognised / len(labelled),
        "chance": 1 / len({name for name, _ in labelled}),
    }


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
    parser.add_argument("--steps", type=int, default=25, help="denoising steps (%(default)s)")
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
