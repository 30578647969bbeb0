"""Captioners that are always there: what can be measured in the audio, and what the tags say.

Tempo and key are measured by `tempo_and_key.py`; loudness, brightness and how much of the sound is drums and other
strokes by librosa. A word for the sound is used only where a clip stands out, so that it is true.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import soxr

from data_prep.refine.clean import describe_tags
from data_prep.refine.outcomes import MEASURED, TAGS, Candidate
from qamdt.manifest import Record
from qamdt.tempo_and_key import key_and_margin, tempo_and_clarity


SAMPLING_RATE = 16_000  # everything is measured at this rate, as brightness depends on it
SHORTEST_IN_S = 3.0  # less has neither tempo nor key
SILENCE_DB = -60.0
# What is less clear is not said. Of 250 rendered clips 91 % of the keys were right above this margin, which 70 % reach,
# and 77 % of all; of the tempi 81 % (95 % with halves and doubles) above this clarity, which 90 % reach.
MIN_KEY_MARGIN, MIN_TEMPO_CLARITY = 0.08, 0.18
# Beyond these a clip stands out. Of 120 rendered clips 17 were darker, 17 brighter and 26 smoother; 36 were more
# percussive, all of them among the 58 with drums.
QUIET_DB, LOUD_DB = -30.0, -14.0
DARK_HZ, BRIGHT_HZ = 775.0, 1900.0
SMOOTH_SHARE, PERCUSSIVE_SHARE = 0.03, 0.2
_PREPOSITIONS = {"instruments": "with", "key": "in", "tempo": "at"}
_FLATS = {"A# ": "Bb ", "D# ": "Eb ", "G# major": "Ab major", "C# major": "Db major"}


@dataclass(frozen=True, kw_only=True)
class Measurements:
    """What is measured in a clip.

    Args:
        tempo_bpm: Beats a minute.
        tempo_clarity: How alike the onsets are a beat apart, at most 1.
        key: The key, such as "Bb major".
        key_margin: How much better the key fits than the next best.
        loudness_db: Root mean square level against full scale.
        brightness_hz: Centre of gravity of the spectrum, loud moments counting more.
        percussive_share: Share of the energy in strokes rather than in held tones, 0 to 1.
    """

    tempo_bpm: float
    tempo_clarity: float
    key: str
    key_margin: float
    loudness_db: float
    brightness_hz: float
    percussive_share: float


def measure(waveform: np.ndarray, sampling_rate: int) -> Measurements | None:
    """Measures a clip; `None` when it is silent or shorter than three seconds.

    Args:
        waveform: Mono samples `(samples,)`.
        sampling_rate: Their rate in Hz.
    """
    librosa = import_librosa()
    if sampling_rate != SAMPLING_RATE:
        waveform, sampling_rate = soxr.resample(waveform, sampling_rate, SAMPLING_RATE), SAMPLING_RATE
    loudness_db = 20 * np.log10(np.sqrt(np.mean(np.square(waveform, dtype=np.float64))) + 1e-12)
    if len(waveform) < SHORTEST_IN_S * sampling_rate or loudness_db < SILENCE_DB:
        return None
    spectrum = np.abs(librosa.stft(waveform, n_fft=1024, hop_length=512))  # (bins, frames)
    power_of_frames = np.square(spectrum).sum(axis=0)
    centroid = librosa.feature.spectral_centroid(S=spectrum, sr=sampling_rate)[0]
    harmonic, percussive = (np.square(part).sum() for part in librosa.decompose.hpss(spectrum))
    bpm, clarity = tempo_and_clarity(waveform, sampling_rate)
    key, margin = key_and_margin(waveform, sampling_rate)
    return Measurements(
        tempo_bpm=bpm,
        tempo_clarity=clarity,
        key=_usual_spelling(key),
        key_margin=margin,
        loudness_db=float(loudness_db),
        brightness_hz=float(np.average(centroid, weights=power_of_frames)),
        percussive_share=float(percussive / (harmonic + percussive)),
    )


def import_librosa():
    """Imports librosa, which takes seconds and which only this captioner needs."""
    try:
        import librosa
    except ImportError as error:
        raise ImportError(
            'measuring clips needs librosa; install it with `pip install "qamdt[refine]"` or leave this captioner out.'
        ) from error
    return librosa


def describe_measurements(measurements: Measurements) -> list[str]:
    """Says the measurements in short captions: key and tempo, if clear, in one; the sound, if it stands out, in another."""
    facts = [f"in {measurements.key}"] if measurements.key_margin >= MIN_KEY_MARGIN else []
    if measurements.tempo_clarity >= MIN_TEMPO_CLARITY:
        facts.append(f"at {round(measurements.tempo_bpm)} bpm")
    captions = [" ".join(["music", *facts])] if facts else []
    words = [
        word
        for word, is_true in (
            ("quiet", measurements.loudness_db < QUIET_DB),
            ("loud", measurements.loudness_db > LOUD_DB),
            ("dark", measurements.brightness_hz < DARK_HZ),
            ("bright", measurements.brightness_hz > BRIGHT_HZ),
            ("smooth", measurements.percussive_share < SMOOTH_SHARE),
            ("percussive", measurements.percussive_share > PERCUSSIVE_SHARE),
        )
        if is_true
    ]
    return captions + ([f"music with a {', '.join(words)} sound"] if words else [])


def caption_by_measuring(record: Record, waveform: np.ndarray, sampling_rate: int) -> list[Candidate]:
    """The captioner that says what is measured in the audio."""
    measurements = measure(waveform, sampling_rate)
    return [Candidate(text, MEASURED) for text in describe_measurements(measurements)] if measurements else []


def caption_by_tags(record: Record, waveform: np.ndarray, sampling_rate: int) -> list[Candidate]:
    """The captioner that makes a sentence of the tags."""
    text = describe_in_one_phrase(record.tags)
    return [Candidate(text, TAGS)] if text else []


def describe_in_one_phrase(tags: Mapping[str, Any]) -> str:
    """Says tags in one phrase: "sad baroque music with oboe and cello in A minor at 80 bpm"; empty without any."""
    words = describe_tags(tags)
    head = " ".join([*(words[name] for name in ("mood", "style") if name in words), "music"])
    parts = [f"{preposition} {words[name]}" for name, preposition in _PREPOSITIONS.items() if name in words]
    return " ".join([head, *parts]) if words else ""


def _usual_spelling(key: str) -> str:
    """Spells a key as musicians do: "A# major" becomes "Bb major"."""
    return next((key.replace(sharp, flat) for sharp, flat in _FLATS.items() if key.startswith(sharp)), key)
