"""Whether beat, bar and chords sound where they were asked for: continuous measures, for which no threshold is chosen.

All take a mono waveform `(samples,)` as a numpy array, its sampling rate, and what was asked for.
"""

import math

import numpy as np

from qamdt.music import BEATS_PER_BAR, Music, parse_chord
from qamdt.tempo_and_key import chroma, onset_envelope


def beat_contrast(waveform: np.ndarray, sampling_rate: int, music: Music) -> float:
    """Correlation of the onsets with the beats: 0 by chance, 0.11 in the mean of 60 rendered clips."""
    envelope, beats = _onsets_and_beats(waveform, sampling_rate, music)
    return float(np.corrcoef(envelope, np.cos(2 * math.pi * beats))[0, 1])


def metre_contrast(waveform: np.ndarray, sampling_rate: int, music: Music) -> float:
    """How much more the onsets repeat with the bar that was asked for than with that of the other metre.

    Compared are the shares of the onsets that return every three and every four beats, whichever beat of the bar they
    fall on; above 0, the asked one is stronger.
    """
    envelope, beats = _onsets_and_beats(waveform, sampling_rate, music)
    asked = BEATS_PER_BAR[music.time_signature]
    strength = {
        number: abs(np.mean(envelope * np.exp(2j * math.pi * beats / number))) for number in BEATS_PER_BAR.values()
    }
    other = next(number for number in strength if number != asked)
    return float((strength[asked] - strength[other]) / (envelope.std() + 1e-12))


def chord_match(waveform: np.ndarray, sampling_rate: int, music: Music) -> np.ndarray:
    """Likeness of what sounds to the chords asked for, moved up by 0 to 11 semitones: cosines `(12,)`.

    The first is that of the chords themselves. Chords shorter than half a second are passed over.
    """
    ends = [second for second, _ in music.chords[1:]] + [len(waveform) / sampling_rate]
    cosines, lengths = [], []
    for (start, symbol), end in zip(music.chords, ends, strict=True):
        samples = waveform[round(start * sampling_rate) : round(end * sampling_rate)]
        if len(samples) < sampling_rate * 0.625:  # a window of the chroma and one hop
            continue
        template = np.zeros(12)
        template[list(parse_chord(symbol)[0])] = 1
        sounding = chroma(samples, sampling_rate)
        norm = np.linalg.norm(sounding) * np.linalg.norm(template) + 1e-12
        cosines.append([sounding @ np.roll(template, shift) / norm for shift in range(12)])
        lengths.append(len(samples))
    return np.average(cosines, axis=0, weights=lengths) if cosines else np.full(12, np.nan)


def _onsets_and_beats(waveform: np.ndarray, sampling_rate: int, music: Music) -> tuple[np.ndarray, np.ndarray]:
    """The onset envelope, centred, and how many beats have passed at each of its frames."""
    envelope, rate_hz = onset_envelope(waveform, sampling_rate)
    # A rise between two frames is heard half a frame after the first, whose window of four hops is centred two hops in.
    times = (np.arange(len(envelope)) + 2.5) / rate_hz
    return envelope, (times - (music.first_beat_in_s or 0.0)) * music.tempo_bpm / 60
