"""How long sound files are, whatever their headers promise."""

import io
import math
import struct

import numpy as np
import pytest
import soundfile

from qamdt.audio import read_audio
from qamdt.sound_files import iterate_blocks, list_sound_files, measure_length, open_sound, read_samples


RATE = 16_000
SECONDS = 4.0


@pytest.fixture(scope="module")
def encode():
    """Returns the bytes of a sound file with four seconds of noise."""
    samples = 0.1 * np.random.default_rng(0).normal(size=int(SECONDS * RATE)).clip(-3, 3)

    def encode(file_format, subtype=None):
        file = io.BytesIO()
        soundfile.write(file, samples, RATE, format=file_format, subtype=subtype)
        return file.getvalue()

    return encode


FORMATS = ["WAV", "FLAC", "OGG", "MP3", "AIFF", "AU", "W64", "RF64"]


@pytest.mark.parametrize("file_format", FORMATS)
def test_a_whole_file_is_as_long_as_it_says(encode, tmp_path, file_format):
    (tmp_path / "a").write_bytes(encode(file_format))
    length = measure_length(tmp_path / "a")
    assert (length.duration_in_s, length.missing_in_s, length.is_cut) == (SECONDS, 0.0, False)


@pytest.mark.parametrize("file_format", FORMATS)
@pytest.mark.parametrize("share", [0.4, 0.95])
def test_a_file_that_is_cut_is_as_long_as_can_be_decoded(encode, tmp_path, file_format, share):
    content = encode(file_format)
    (tmp_path / "a").write_bytes(content[: int(share * len(content))])
    length = measure_length(tmp_path / "a")
    assert length.is_cut
    assert 0 < length.duration_in_s < SECONDS
    assert length.missing_in_s in (math.inf, pytest.approx(SECONDS - length.duration_in_s))
    samples, _ = read_samples(tmp_path / "a", duration_in_s=length.duration_in_s)
    assert len(samples) == round(length.duration_in_s * RATE)


def test_opus_that_is_cut_is_known(encode, tmp_path):
    content = encode("OGG", "OPUS")
    (tmp_path / "a").write_bytes(content)
    assert not measure_length(tmp_path / "a").is_cut
    (tmp_path / "a").write_bytes(content[: len(content) // 2])
    assert measure_length(tmp_path / "a").is_cut


def set_flac_length(content, num_samples):
    changed = bytearray(content)
    changed[18:26] = (int.from_bytes(changed[18:26], "big") >> 36 << 36 | num_samples).to_bytes(8, "big")
    return changed


def test_a_header_costs_no_memory_and_no_time(encode, tmp_path):
    (tmp_path / "a.flac").write_bytes(set_flac_length(encode("FLAC"), 2**36 - 1))
    length = measure_length(tmp_path / "a.flac")
    assert length.missing_in_s > 4e6
    assert 0.9 * SECONDS < length.duration_in_s <= SECONDS
    assert 0.9 * SECONDS < len(read_audio(tmp_path / "a.flac")) / RATE <= SECONDS
    assert len(read_samples(tmp_path / "a.flac", start_in_s=1e6, duration_in_s=30.0)[0]) == 0


@pytest.mark.parametrize(("length", "is_cut"), [(4_000_000_000, True), (2**32 - 1, False), (0x7FFFFFFF, False)])
def test_a_length_that_nobody_knew_is_no_promise(encode, tmp_path, length, is_cut):
    content = bytearray(encode("WAV"))
    content[40:44] = struct.pack("<I", length)
    (tmp_path / "a.wav").write_bytes(content)
    measured = measure_length(tmp_path / "a.wav")
    assert (measured.duration_in_s, measured.is_cut) == (SECONDS, is_cut)


def test_a_stream_of_unknown_length_is_not_cut(encode, tmp_path):
    (tmp_path / "a.flac").write_bytes(set_flac_length(encode("FLAC"), 0))
    length = measure_length(tmp_path / "a.flac")
    assert 0.9 * SECONDS < length.duration_in_s <= SECONDS
    assert not length.is_cut


@pytest.mark.parametrize("damage", ["no length", "twice the length", "cut", "noise inside"])
def test_what_can_be_decoded_is_read_wherever_the_fault_lies(encode, tmp_path, damage):
    content = bytearray(encode("FLAC"))
    (tmp_path / "whole.flac").write_bytes(content)
    whole, _ = read_samples(tmp_path / "whole.flac")
    middle = len(content) // 2
    if damage == "noise inside":
        content[middle : middle + 200] = np.random.default_rng(0).bytes(200)
    elif damage == "cut":
        del content[middle:]
    else:
        content = set_flac_length(content, 0 if damage == "no length" else 2 * len(whole))
    (tmp_path / "a.flac").write_bytes(content)
    least = 0.9 if "length" in damage else 0.4
    for start_in_s in (0.0, 0.5):
        samples, _ = read_samples(tmp_path / "a.flac", start_in_s=start_in_s)
        start = round(start_in_s * RATE)
        assert least * len(whole) < start + len(samples) <= len(whole)
        assert np.array_equal(samples, whole[start : start + len(samples)])


def test_samples_that_are_no_numbers_are_refused_for_all(tmp_path):
    for name, value in (("nan", np.nan), ("inf", -np.inf)):
        samples = 0.1 * np.ones((RATE, 2))
        samples[700, 1] = value
        soundfile.write(tmp_path / f"{name}.wav", samples, RATE, subtype="FLOAT")
        with pytest.raises(ValueError, match="samples that are not finite"):
            read_audio(tmp_path / f"{name}.wav", 8000)
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), RATE)
    with pytest.raises(ValueError, match="holds no sound"):
        read_audio(tmp_path / "empty.wav")


def test_links_are_told_of_where_they_lead_out_of_the_folder(tmp_path):
    music = tmp_path / "music"
    (music / "sub").mkdir(parents=True)
    soundfile.write(music / "sub" / "a.wav", 0.1 * np.ones(RATE), RATE)
    (tmp_path / "texts").mkdir()
    for name, target in (("loop", "."), ("again", "sub"), ("root", "/"), ("texts", "../texts")):
        (music / name).symlink_to(target)
    files, refused = list_sound_files(music)
    assert files == [music / "sub" / "a.wav"]
    assert [path.name for path, _ in refused] == ["root"]


@pytest.mark.parametrize("rate", [1, 999, 1_000_001, 2**31 - 1])
def test_a_rate_that_is_none_is_refused(encode, tmp_path, rate):
    content = bytearray(encode("WAV"))
    content[24:28] = struct.pack("<I", rate)
    (tmp_path / "a.wav").write_bytes(content)
    with pytest.raises(ValueError, match=f"sampling rate from 1000 to 1000000 Hz, got {rate}"):
        open_sound(tmp_path / "a.wav")


def test_blocks_are_bounded_and_lose_nothing(tmp_path):
    samples = np.random.default_rng(0).uniform(-1, 1, (100_000, 32)).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", samples, RATE, subtype="FLOAT")
    with open_sound(tmp_path / "a.wav") as file:
        blocks = list(iterate_blocks(file, multiple_of=1000))
        assert {len(block) for block in blocks[:-1]} == {32_000}
        assert np.array_equal(np.concatenate(blocks), samples)
