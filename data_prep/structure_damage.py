"""Music whose sound is left as it was and whose structure is gone: what a scorer of quality must not take for good music.

A scorer that learnt from damage to the sound alone hears nothing wrong with a held chord, a smeared texture, one bar that
never ends, or bars in any order. The full-reference score does not hear it either, so these versions have the scores
below, set by hand: they say that such a clip is worse than the music it was made of, and no more than that.

All functions map mono float samples `(samples,)` to as many samples.
"""

import numpy as np
from scipy import signal
from scipy.ndimage import uniform_filter1d


STRUCTURE_SCORES = {"drone": 1.5, "smear": 1.5, "repeated_bar": 2.5, "shuffled_bars": 3.0}
STRUCTURE_KINDS = tuple(STRUCTURE_SCORES)
DEFAULT_BAR_IN_S = 2.0  # four beats at 120 a minute, for music whose tempo is not known
_GRAIN_IN_S = 0.25
_SMEAR_IN_S = 1.5
_JOIN_IN_S = 0.01


def break_structure(
    waveform: np.ndarray, sampling_rate: int, kind: str, *, bar_in_s: float = DEFAULT_BAR_IN_S, seed: int = 0
) -> np.ndarray:
    """Takes the structure out of a clip.

    Args:
        waveform: Mono samples within ±1.
        sampling_rate: Rate in Hz.
        kind: One of `STRUCTURE_KINDS`: a moment held over the whole clip, a texture without onsets, one bar over and over,
            or all bars in another order.
        bar_in_s: Length of a bar; where it is too long for two of them, half the clip.
        seed: Seed of what is drawn.

    Returns:
        Samples of the same length and loudness, within ±1.
    """
    if kind not in STRUCTURE_SCORES:
        raise ValueError(f"`kind` must be one of {STRUCTURE_KINDS}, got {kind!r}.")
    generator = np.random.default_rng(seed)
    samples = waveform.astype(np.float64)
    if kind == "drone":
        broken = _hold(samples, round(_GRAIN_IN_S * sampling_rate), generator)
    elif kind == "smear":
        broken = _smear(samples, sampling_rate, generator)
    else:
        bars = _cut_bars(samples, min(round(bar_in_s * sampling_rate), len(samples) // 2))
        broken = _join(_choose_bars(bars, kind, generator), round(_JOIN_IN_S * sampling_rate))
    broken = np.resize(broken, len(samples))
    loudness, broken_loudness = (np.sqrt(np.mean(np.square(x))) + 1e-9 for x in (samples, broken))
    return np.clip(broken * (loudness / broken_loudness), -1.0, 1.0).astype(np.float32)


def _hold(samples: np.ndarray, grain: int, generator: np.random.Generator) -> np.ndarray:
    """Lays windowed pieces of the loudest moment over each other, so that it sounds on, evenly loud."""
    grain = min(grain, len(samples) // 2)
    loudness = uniform_filter1d(np.square(samples), grain)[grain : len(samples) - grain]
    middle = grain + int(np.argmax(loudness)) if len(loudness) else len(samples) // 2
    window, held = np.hanning(grain), np.zeros(len(samples) + 2 * grain)
    for start in range(0, len(samples) + grain, max(grain // 4, 1)):
        first = np.clip(middle - grain // 2 + generator.integers(-grain // 4, grain // 4 + 1), 0, len(samples) - grain)
        held[start : start + grain] += window * samples[first : first + grain]
    loudness = np.sqrt(uniform_filter1d(np.square(held), grain))
    return (held / (loudness + 1e-9))[grain : grain + len(samples)]


def _smear(samples: np.ndarray, sampling_rate: int, generator: np.random.Generator) -> np.ndarray:
    """Averages the spectrum over a second and a half, and draws the phases."""
    size, hop = min(1024, len(samples)), min(256, len(samples) // 4 or 1)
    _, _, spectrum = signal.stft(samples, nperseg=size, noverlap=size - hop)
    # In silence the running mean, which is a running sum, can fall below zero by what was rounded before.
    power = uniform_filter1d(np.square(np.abs(spectrum)), max(1, round(_SMEAR_IN_S * sampling_rate / hop)), axis=1)
    phases = np.exp(2j * np.pi * generator.random(spectrum.shape))
    _, smeared = signal.istft(np.sqrt(np.maximum(power, 0.0)) * phases, nperseg=size, noverlap=size - hop)
    return smeared


def _cut_bars(samples: np.ndarray, bar: int) -> list[np.ndarray]:
    """Cuts whole bars, and what is left at the end."""
    return [samples[start : start + bar] for start in range(0, len(samples), bar)]


def _choose_bars(bars: list[np.ndarray], kind: str, generator: np.random.Generator) -> list[np.ndarray]:
    whole = [bar for bar in bars if len(bar) == len(bars[0])]
    if kind == "repeated_bar":
        return [max(whole, key=lambda bar: np.square(bar).sum())] * len(bars)
    # Another beginning each time: no bar is followed by the one that followed it before, if there are enough of them.
    order = generator.permutation(len(whole))
    for _ in range(100):
        if not any(later - earlier == 1 for earlier, later in zip(order, order[1:], strict=False)):
            break
        order = generator.permutation(len(whole))
    return [*(whole[place] for place in order), *bars[len(whole) :]]


def _join(bars: list[np.ndarray], ramp: int) -> np.ndarray:
    """Puts bars behind each other with short fades, so that no click tells where."""
    faded = []
    for bar in bars:
        length = min(ramp, len(bar) // 2)
        envelope = np.ones(len(bar))
        envelope[:length] = np.linspace(0.0, 1.0, length)
        envelope[len(bar) - length :] = np.linspace(1.0, 0.0, length)
        faded.append(bar * envelope)
    return np.concatenate(faded)
