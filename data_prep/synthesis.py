"""Plays a composed piece through a General MIDI soundfont with FluidSynth."""

import ctypes
import math
from pathlib import Path

import numpy as np
import soxr
from scipy import signal

from data_prep.composer.composition import Piece, Room


DEFAULT_SOUNDFONT = Path("/usr/share/sounds/sf2/FluidR3_GM.sf2")
# FluidSynth does not band-limit the samples it plays, so it runs at twice the target rate and soxr removes the rest.
SYNTHESIS_RATE = 32_000
GAIN = 0.25
DRUM_CHANNEL = 9
_VOLUME_CONTROL = 7


def import_fluidsynth():
    """Imports the FluidSynth binding, or says how to install it."""
    try:
        import fluidsynth
    except ImportError as error:
        raise ImportError(
            "rendering needs FluidSynth: `apt-get install libfluidsynth3` (or your system's package) "
            f'and `pip install "qamdt[render]"`. Import said: {error}'
        ) from error
    return fluidsynth


def check_soundfont(path: str | Path) -> Path:
    """Returns the path of a soundfont, or raises an error that says how to get one."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"`soundfont` must be a General MIDI .sf2 or .sf3 file, got {str(path)!r}, which does not exist. "
            "On Debian and Ubuntu `apt-get install fluid-soundfont-gm` installs the default one."
        )
    with path.open("rb") as file:
        header = file.read(12)
    if header[:4] != b"RIFF" or header[8:12] != b"sfbk":
        raise ValueError(f"`soundfont` must be a General MIDI .sf2 or .sf3 file, got {str(path)!r}, which is none.")
    return path


class Synthesizer:
    """A FluidSynth synthesizer with one soundfont, loaded once and used for many pieces.

    Args:
        soundfont: Path of a General MIDI soundfont.
    """

    def __init__(self, soundfont: str | Path = DEFAULT_SOUNDFONT):
        path = check_soundfont(soundfont)
        self._fluidsynth = import_fluidsynth()
        pointer, number = ctypes.c_void_p, ctypes.c_int
        # Functions of the library that the binding leaves out: float output, which cannot clip, …
        self._write_float = self._fluidsynth.cfunc(
            "fluid_synth_write_float",
            number,
            ("synth", pointer, 1),
            ("len", number, 1),
            ("left", pointer, 1),
            ("left_offset", number, 1),
            ("left_step", number, 1),
            ("right", pointer, 1),
            ("right_offset", number, 1),
            ("right_step", number, 1),
        )
        # … and handing a loaded soundfont from one synthesizer to the next.
        soundfont_arguments = ("synth", pointer, 1), ("soundfont", pointer, 1)
        self._add_soundfont = self._fluidsynth.cfunc("fluid_synth_add_sfont", number, *soundfont_arguments)
        self._remove_soundfont = self._fluidsynth.cfunc("fluid_synth_remove_sfont", number, *soundfont_arguments)

        self._synth = self._new_synth()
        self._soundfont_id = self._synth.sfload(str(path))
        if self._soundfont_id < 0:
            raise ValueError(f"`soundfont` {str(path)!r} could not be loaded by FluidSynth; is the file complete?")
        self._soundfont = self._fluidsynth.fluid_synth_get_sfont_by_id(self._synth.synth, self._soundfont_id)

    def _new_synth(self):
        # FluidSynth's reverb is not deterministic from piece to piece; the room is added afterwards.
        switched_off = {"synth.reverb.active": 0, "synth.chorus.active": 0}
        return self._fluidsynth.Synth(gain=GAIN, samplerate=float(SYNTHESIS_RATE), channels=16, **switched_off)

    def _reset(self) -> None:
        """Replaces the synthesizer by a fresh one: a used one remembers amplitudes of its last notes."""
        used, self._synth = self._synth, self._new_synth()
        for channel in range(16):  # or it warns that their programs are gone
            used.program_unset(channel)
        self._remove_soundfont(used.synth, self._soundfont)
        self._soundfont_id = self._add_soundfont(self._synth.synth, self._soundfont)
        used.delete()

    def render(self, piece: Piece, *, duration_in_s: float, sampling_rate: int) -> np.ndarray:
        """Renders the clip of a piece as mono samples `(samples,)`, not normalised.

        The bar before the clip is played too and cut off, so that its notes ring into the clip.

        Args:
            piece: The piece.
            duration_in_s: Length of the clip.
            sampling_rate: Rate of the result in Hz.
        """
        lead_in_s = min(piece.start_in_s, piece.seconds_per_bar)
        first = piece.start_in_s - lead_in_s
        num_samples = math.ceil((lead_in_s + duration_in_s) * SYNTHESIS_RATE)
        self._prepare(piece)
        stereo = self._play(self._events(piece, first), num_samples)
        samples = soxr.resample(stereo.mean(axis=0), SYNTHESIS_RATE, sampling_rate)
        samples = add_room(samples, sampling_rate, piece.room)
        start = round(lead_in_s * sampling_rate)
        return samples[start : start + round(duration_in_s * sampling_rate)].astype(np.float32)

    def _prepare(self, piece: Piece) -> None:
        """Gives each part its channel, instrument and volume."""
        self._reset()
        for channel, part in zip(_channels(piece), piece.parts, strict=True):
            instrument = part.instrument
            bank = 128 if instrument.is_drum_kit else 0
            if self._synth.program_select(channel, self._soundfont_id, bank, instrument.program) != 0:
                raise ValueError(
                    f"the soundfont has no program {instrument.program} in bank {bank} ({instrument.name}); "
                    "use a complete General MIDI soundfont."
                )
            self._synth.cc(channel, _VOLUME_CONTROL, instrument.volume)

    def _events(self, piece: Piece, first_in_s: float) -> list[tuple[int, int, int, int, int]]:
        """Lists `(sample, is_on, channel, pitch, velocity)`, ordered so that a note ends before it is struck again."""
        events = []
        for channel, part in zip(_channels(piece), piece.parts, strict=True):
            for note in part.notes:
                start = note.start * piece.seconds_per_beat - first_in_s
                end = start + note.duration * piece.seconds_per_beat
                if end <= 0:
                    continue
                on = round(max(0.0, start) * SYNTHESIS_RATE)
                events.append((on, 1, channel, note.pitch, note.velocity))
                events.append((max(round(end * SYNTHESIS_RATE), on + 1), 0, channel, note.pitch, 0))
        return sorted(events)

    def _play(self, events: list[tuple[int, int, int, int, int]], num_samples: int) -> np.ndarray:
        """Synthesises `(2, samples)`, stopping at every event: events are never queued up."""
        stereo = np.zeros((2, num_samples), dtype=np.float32)
        position = 0
        for sample, is_on, channel, pitch, velocity in events:
            if sample >= num_samples:
                break
            self._write(stereo, position, sample)
            position = max(position, sample)
            if is_on:
                self._synth.noteon(channel, pitch, velocity)
            else:
                self._synth.noteoff(channel, pitch)
        self._write(stereo, position, num_samples)
        return stereo

    def _write(self, stereo: np.ndarray, start: int, end: int) -> None:
        if end > start:
            left, right = stereo[0].ctypes.data, stereo[1].ctypes.data
            self._write_float(self._synth.synth, end - start, left, start, 1, right, start, 1)


def add_room(waveform: np.ndarray, sampling_rate: int, room: Room) -> np.ndarray:
    """Adds the reverberation of a room: decaying noise as impulse response, duller as it decays."""
    generator = np.random.default_rng(room.seed)
    time = np.arange(round(room.decay_in_s * sampling_rate)) / sampling_rate
    response = generator.standard_normal(len(time)) * np.exp(-6.9 * time / room.decay_in_s)
    response = signal.lfilter([1.0 - room.damping], [1.0, -room.damping], response)
    response *= room.level / np.sqrt(np.sum(response**2))
    delay = round(0.012 * sampling_rate)
    wet = signal.fftconvolve(waveform, response)[: len(waveform) - delay]
    return waveform + np.pad(wet, (delay, 0))


def _channels(piece: Piece) -> list[int]:
    """Gives every part a MIDI channel; channel 9 is kept for drum kits."""
    melodic = iter([channel for channel in range(16) if channel != DRUM_CHANNEL])
    return [DRUM_CHANNEL if part.instrument.is_drum_kit else next(melodic) for part in piece.parts]
