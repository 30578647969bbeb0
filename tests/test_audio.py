"""Sound files and the log-mel front end."""

import resource
import signal
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from qamdt.audio import LogMel, mel_filter_bank, normalize_waveform, read_audio, write_audio


GOLDEN = Path(__file__).parent / "golden" / "mel.npz"


def sine(frequency_hz: float = 440.0, seconds: float = 0.5, sampling_rate: int = 16_000) -> np.ndarray:
    time_in_s = np.arange(round(seconds * sampling_rate)) / sampling_rate
    return (0.4 * np.sin(2 * np.pi * frequency_hz * time_in_s)).astype(np.float32)


def test_mel_filters_equal_the_published_ones():
    golden = torch.from_numpy(np.load(GOLDEN)["mel_basis"])
    torch.testing.assert_close(mel_filter_bank(16_000, 1024, 64, 0.0, 8000.0), golden, atol=1e-7, rtol=0)


@pytest.mark.parametrize("name", ["", "_short"])
def test_log_mel_equals_the_published_one(name):
    golden = np.load(GOLDEN)
    waveform = torch.from_numpy(golden["wav_norm" if not name else "wav_short_norm"])
    log_mel = LogMel()(waveform)[0, 0]
    assert (log_mel - torch.from_numpy(golden[f"log_mel{name}"])).abs().max() <= 1e-4


def test_normalisation_equals_the_published_one():
    golden = np.load(GOLDEN)
    normalized = normalize_waveform(torch.from_numpy(golden["wav_in"]))
    torch.testing.assert_close(normalized, torch.from_numpy(golden["wav_norm"][0]), atol=1e-6, rtol=0)


def test_normalisation_leaves_silence_silent():
    assert normalize_waveform(torch.zeros(100)).abs().max() == 0


def test_log_mel_of_a_batch_equals_its_clips():
    waveforms = torch.randn(3, 4000, generator=torch.Generator().manual_seed(0))
    log_mel = LogMel()
    singles = torch.cat([log_mel(waveform[None]) for waveform in waveforms])
    torch.testing.assert_close(log_mel(waveforms), singles)


def test_log_mel_has_a_frame_per_hop_and_names_what_is_too_short():
    assert LogMel()(torch.zeros(1, 16_000)).shape == (1, 1, 100, 64)
    with pytest.raises(ValueError, match="more than 432 samples"):
        LogMel()(torch.zeros(1, 100))


AUDIO_SUBTYPES = {"wav": "pcm", "flac": "pcm", "ogg": "vorbis", "opus": "opus", "mp3": "mpeg"}


@pytest.mark.parametrize("extension", AUDIO_SUBTYPES)
@pytest.mark.parametrize("rate", [16_000, 48_000])
def test_written_audio_reads_back(tmp_path, extension, rate):
    path = tmp_path / f"a.{extension}"
    write_audio(path, torch.from_numpy(sine(sampling_rate=rate)), rate)
    assert soundfile.info(path).samplerate == rate
    assert soundfile.info(path).subtype.lower().startswith(AUDIO_SUBTYPES[extension])
    waveform = read_audio(path)
    spectrum = torch.fft.rfft(waveform[:8000]).abs()
    assert abs(spectrum.argmax().item() * 2 - 440) <= 4
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_rate_that_a_kind_of_file_cannot_hold_is_refused(tmp_path):
    with pytest.raises(
        ValueError, match="`sampling_rate` must be one of 8000, .* 48000 Hz for a .opus file, got 44100"
    ):
        write_audio(tmp_path / "a.opus", sine(sampling_rate=44_100), 44_100)
    assert not list(tmp_path.iterdir())


def test_stereo_is_averaged_and_resampled(tmp_path):
    path = tmp_path / "a.wav"
    left = sine(sampling_rate=44_100)
    soundfile.write(path, np.stack([left, -left], axis=1), 44_100)
    waveform = read_audio(path)
    assert len(waveform) == 8000
    assert waveform.abs().max() < 1e-4


def test_a_part_of_a_file_equals_that_part_of_the_whole(tmp_path):
    path = tmp_path / "a.wav"
    write_audio(path, sine(seconds=1.0), 16_000)
    part = read_audio(path, start_in_s=0.25, duration_in_s=0.5)
    torch.testing.assert_close(part, read_audio(path)[4000:12_000])


def test_unreadable_audio_is_named(tmp_path):
    path = tmp_path / "a.wav"
    path.write_bytes(b"no sound here")
    with pytest.raises(ValueError, match=r"`path` must be a readable wav.*a\.wav.*Convert it"):
        read_audio(path)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_audio(tmp_path / "b.wav")


def test_a_start_beyond_the_end_is_named(tmp_path):
    path = tmp_path / "a.wav"
    write_audio(path, sine(), 16_000)
    with pytest.raises(ValueError, match="`start_in_s` must lie inside"):
        read_audio(path, start_in_s=2.0)


@pytest.mark.parametrize(
    ("name", "waveform", "match"),
    [
        ("a.xyz", np.zeros(8), "`path` must end in"),
        ("a.wav", np.zeros((2, 8)), "finite mono samples"),
        ("a.wav", np.array([0.0, np.nan]), "finite mono samples"),
    ],
)
def test_what_cannot_be_written_is_refused(tmp_path, name, waveform, match):
    with pytest.raises(ValueError, match=match):
        write_audio(tmp_path / name, waveform, 16_000)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_nothing_behind(tmp_path):
    """A limit on the size of files makes the kernel refuse the write, as a full disk would."""
    path = tmp_path / "a.wav"
    path.write_bytes(b"the file before")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(OSError, match="wav"):
            write_audio(path, sine(), 16_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == b"the file before"
    assert [p.name for p in tmp_path.iterdir()] == ["a.wav"]
