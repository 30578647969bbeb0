"""What the scorer is given: clips that inputs name, and the windows they are heard in."""

import json

import numpy as np
import pytest
import soundfile

from whisq.scorer import find_error
from whisq.scoring.clips import list_clips, probe_durations
from whisq.windows import cut_windows, find_flags, make_window, read_window


RATE = 16_000


def write_sound(path, seconds=0.5, rate=RATE, channels=1, level=0.3):
    path.parent.mkdir(parents=True, exist_ok=True)
    times = np.arange(int(seconds * rate)) / rate
    soundfile.write(path, np.tile(level * np.sin(2 * np.pi * 220 * times)[:, None], channels), rate)
    return path


def test_a_folder_is_searched_to_the_bottom(tmp_path):
    for name in ("b.wav", "deep/a.flac", "deep/notes.txt"):
        write_sound(tmp_path / "music" / name) if name.endswith(("wav", "flac")) else (
            tmp_path / "music" / name
        ).write_text("no music")
    clips, _ = list_clips([tmp_path / "music"])
    assert [(clip.id, clip.source) for clip in clips] == [("b.wav", "music"), ("deep/a.flac", "music")]
    assert [clip.duration_in_s for clip in probe_durations(clips)] == [0.5, 0.5]


def test_patterns_and_files_keep_the_names_they_were_given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("x/1.wav", "x/2.wav", "3.wav"):
        write_sound(tmp_path / name)
    assert [clip.id for clip in list_clips(["x/*.wav", "3.wav"])[0]] == ["x/1.wav", "x/2.wav", "3.wav"]
    assert len(list_clips(["**/*.wav"])[0]) == 3
    with pytest.raises(ValueError, match=r"two clips have the id '3\.wav'"):
        list_clips(["3.wav", "3.wav"])


def test_a_list_names_files_and_prompts(tmp_path):
    (tmp_path / "list.txt").write_text("a.wav\tcalm piano\n\nsub/b.wav\r\nc.wav\t\n", encoding="utf-8")
    clips, _ = list_clips([tmp_path / "list.txt"])
    assert [(clip.id, clip.prompt) for clip in clips] == [("a.wav", "calm piano"), ("sub/b.wav", None), ("c.wav", "")]
    assert clips[1].path == tmp_path / "sub" / "b.wav"


def test_a_manifest_gives_stretches_of_files_and_captions(tmp_path):
    lines = [
        {
            "id": "one",
            "path": "a.wav",
            "start_in_s": 2,
            "duration_in_s": 3,
            "captions": ["slow", "sad"],
            "source": "s",
        },
        {"path": "b.wav", "captions": ["first"], "caption": "refined\u2028text"},
    ]
    manifest = tmp_path / "m.jsonl"
    manifest.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    (one, two), faults = list_clips([manifest])
    assert not faults
    assert (one.id, one.start_in_s, one.duration_in_s, one.prompt, one.source) == ("one", 2, 3, "slow", "s")
    assert (two.id, two.prompt, two.duration_in_s) == ("b.wav", "refined\u2028text", None)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"path": "../secret.wav"}', "must be relative and stay inside the manifest's folder"),
        ('{"path": "/etc/passwd"}', "must be relative and stay inside the manifest's folder"),
        ('{"id": "x"}', "the fields ['path'] are missing"),
        ('{"path": "a.wav", "start_in_s": -1}', "`start_in_s` >= 0"),
        ('{"path": "a.wav", "captions": "one string"}', "`captions` must be a list of strings, got a string"),
        ('{"path": "a.wav", "caption": 3}', "`caption` must be a string, got 3"),
        ('{"path": "fine.wav"}', "was used in line 1 already"),
        ("not json", "Expecting value"),
    ],
)
def test_lines_that_make_no_sense_are_named_and_passed_over(tmp_path, line, message):
    (tmp_path / "m.jsonl").write_text('{"path": "fine.wav"}\n' + line + "\n")
    clips, (fault,) = list_clips([tmp_path / "m.jsonl"])
    assert [clip.id for clip in clips] == ["fine.wav"]
    assert str(fault).startswith("m.jsonl, line 2: ")
    assert message in fault.error
    (tmp_path / "m.jsonl").write_text("not json\n")
    with pytest.raises(ValueError, match=r"nothing to score in .*m\.jsonl, line 1: Expecting value"):
        list_clips([tmp_path / "m.jsonl"])


def test_prompts_from_a_file_must_belong_to_clips(tmp_path):
    write_sound(tmp_path / "music" / "a.wav")
    (tmp_path / "p.tsv").write_text("a.wav\tbright bells\n")
    assert list_clips([tmp_path / "music"], prompts=tmp_path / "p.tsv")[0][0].prompt == "bright bells"
    (tmp_path / "p.tsv").write_text("b.wav\tbright bells\n")
    with pytest.raises(ValueError, match=r"prompts for 1 clips that are not scored, such as 'b\.wav'"):
        list_clips([tmp_path / "music"], prompts=tmp_path / "p.tsv")


def test_nothing_to_score_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="nothing to score"):
        list_clips([tmp_path])
    with pytest.raises(FileNotFoundError, match="missing"):
        list_clips([tmp_path / "missing"])


def test_windows_cover_a_clip_to_its_end():
    assert cut_windows(30.0) == [(0.0, 30.0)]
    assert cut_windows(40.0) == [(0.0, 30.0), (15.0, 25.0)]
    assert cut_windows(75.0) == [(0.0, 30.0), (15.0, 30.0), (30.0, 30.0), (45.0, 30.0)]


def test_a_window_is_a_mono_stretch_at_16_khz(tmp_path):
    path = write_sound(tmp_path / "a.wav", seconds=3, rate=8000, channels=8)
    window = read_window(path, clip_start_in_s=1.0, start_in_s=0.5, duration_in_s=1.0)
    assert (len(window.waveform), window.duration_in_s, window.missing_in_s) == (RATE, 1.0, 0.0)
    assert find_flags([window]) == ("low_sampling_rate", "multichannel")
    beyond = read_window(path, clip_start_in_s=2.5, start_in_s=0.0, duration_in_s=2.0)
    assert (beyond.duration_in_s, beyond.missing_in_s) == (0.5, 1.5)
    assert {"short", "truncated"} <= set(find_flags([beyond]))


def test_flags_are_of_what_the_encoder_hears():
    music = np.random.default_rng(0).normal(0, 0.1, (4 * RATE, 1)).astype(np.float32)
    times = np.arange(4 * RATE)[:, None]
    click = np.where(times == RATE, 0.9, 1e-5 * music).astype(np.float32)
    notes = music * (times % (2 * RATE) < RATE // 4)

    def hear(samples, rate=RATE):
        window = make_window(samples.astype(np.float32), rate)
        return find_flags([window]), find_error(find_flags([window]), [window])

    cancelled = "its channels cancel out in the mix"
    assert hear(np.concatenate([music, -music], axis=1)) == (("silent", "out_of_phase"), cancelled)
    assert hear(np.concatenate([music, -0.9 * music], axis=1)) == (("out_of_phase",), None)
    assert hear(np.concatenate([music, 0 * music], axis=1)) == ((), None)
    assert hear(np.full_like(music, 0.5)) == (("silent",), "the audio is silent")
    assert hear(np.full_like(music, 0.5), 44_100) == (("silent",), "the audio is silent")
    assert hear(music + 0.5) == ((), None)
    assert hear(click)[0] == ("mostly_silent",)
    assert "nothing is heard for 98.8% of the clip" in hear(click)[1]
    assert hear(notes) == (("mostly_silent",), None)


def test_a_constant_in_a_recording_is_not_heard():
    music = np.random.default_rng(0).normal(0, 0.1, (RATE, 1)).astype(np.float32)
    with_offset, without = make_window(music + 0.5, RATE), make_window(music, RATE)
    np.testing.assert_allclose(with_offset.waveform, without.waveform, atol=1e-5)


def test_flags_tell_what_is_wrong_with_the_samples():
    loud = np.random.default_rng(0).normal(size=(RATE, 2)).clip(-1, 1).astype(np.float32)
    quiet = 1e-4 * loud
    broken = loud.copy()
    broken[5, 1] = np.nan
    assert find_flags([make_window(0.5 * loud, RATE)]) == ()
    assert find_flags([make_window(loud, RATE)]) == ("clipped",)
    assert find_flags([make_window(quiet, RATE)]) == ("silent",)
    assert find_flags([make_window(quiet, RATE), make_window(0.5 * loud, RATE, start_in_s=15)]) == ()
    assert find_flags([make_window(broken, RATE)]) == ("nan",)


def test_unreadable_files_say_so(tmp_path):
    (tmp_path / "a.wav").write_bytes(b"this is no sound")
    with pytest.raises(ValueError, match="must be a readable wav, flac, ogg, mp3 or opus file"):
        read_window(tmp_path / "a.wav", clip_start_in_s=0, start_in_s=0, duration_in_s=None)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        read_window(tmp_path / "b.wav", clip_start_in_s=0, start_in_s=0, duration_in_s=None)


@pytest.mark.parametrize(
    "make",
    [
        lambda times: 0.3 + 0.04 * times,
        lambda times: 0.02 * times**2 - 0.2,
        lambda times: np.where(times < 2.5, 0.3, -0.3),
        lambda times: 0.5 * np.sin(2 * np.pi * 5 * times),
    ],
    ids=["drift", "curve", "step", "5 Hz"],
)
def test_what_nobody_can_hear_is_no_music(make):
    samples = make(np.arange(5 * RATE) / RATE).astype(np.float32)
    window = make_window(samples[:, None], RATE)
    assert find_error(find_flags([window]), [window]) is not None
    bass = 0.3 * np.sin(2 * np.pi * 30 * np.arange(5 * RATE) / RATE).astype(np.float32)
    for sound in (bass, bass + samples):
        window = make_window(sound[:, None], RATE)
        assert (find_flags([window]), find_error((), [window])) == ((), None)
