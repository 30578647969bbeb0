import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from data_prep import build_manifest
from data_prep.build_manifest import main
from data_prep.music_metadata import Note
from qamdt.audio import write_audio
from qamdt.manifest import read_manifest
from whisq.scoring.clips import list_clips


RATE = 8000


def write_tone(path, hertz, seconds, silent_from=None):
    waveform = 0.5 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * RATE)) / RATE).astype(np.float32)
    if silent_from is not None:
        waveform[int(silent_from * RATE) :] = 0
    path.parent.mkdir(parents=True, exist_ok=True)
    write_audio(path, waveform, RATE)


@pytest.fixture
def music(tmp_path):
    """A folder with two good files."""
    write_tone(tmp_path / "music" / "one.wav", 200, 2.0)
    write_tone(tmp_path / "music" / "sub" / "two.flac", 300, 2.0)
    return tmp_path / "music"


def run(folder, *options):
    return main([str(folder), "--clip-in-s", "2", "--min-in-s", "0.5", *map(str, options)])


def records(folder):
    return {record.id: record for record in read_manifest(folder / "manifest.jsonl")}


def left_out(folder):
    lines = (folder / "manifest.bad.jsonl").read_text().splitlines()
    return [(entry["kind"], entry["place"], entry["reason"]) for entry in map(json.loads, lines)]


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_tables_give_captions_scores_and_tags(music, kind):
    table = music / f"table.{kind}"
    if kind == "csv":
        table.write_text(
            "path,captions,quality_score,quality_scorer,genre\none.wav,a tone | a low tone,3.5,ears,noise\n"
            'sub/two.flac,"high, thin",,,\n'
        )
    else:
        rows = [
            {"path": "one.wav", "captions": ["a tone", "a low tone"], "quality_score": 3.5, "quality_scorer": "ears"},
            {"path": "sub/two.flac", "caption": "high, thin"},
        ]
        rows[0]["genre"] = "noise"
        table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert run(music, "--table", table, "--source", "tones", "--license", "CC0-1.0") == 0
    one, two = records(music).values()
    assert (one.path, one.captions, one.quality_score) == ("one.wav", ("a tone", "a low tone"), 3.5)
    assert (one.quality_scorer, one.tags, one.source, one.license) == ("ears", {"genre": "noise"}, "tones", "CC0-1.0")
    assert (two.path, two.captions, two.quality_score) == ("sub/two.flac", ("high, thin",), None)


def test_crops_of_a_long_track_keep_the_caption_and_score_of_their_part(music):
    write_tone(music / "long.wav", 100, 10.0)
    notes = [
        {"start_in_s": 0, "duration_in_s": 5, "caption": "the beginning", "quality_score": 2.0},
        {"start_in_s": 5, "caption": "the end", "quality_frames": [1, 2, 3, 4, 5], "quality_frame_rate": 1},
        {"tags": {"genre": "tone"}},
    ]
    (music / "long.json").write_text(json.dumps(notes))
    assert run(music) == 0
    clips = {name: record for name, record in records(music).items() if record.path == "long.wav"}
    described = {
        record.start_in_s: (record.duration_in_s, record.captions, record.quality_score) for record in clips.values()
    }
    assert described == {
        0.0: (2.0, ("the beginning",), 2.0),
        2.0: (2.0, ("the beginning",), 2.0),
        4.0: (1.0, ("the beginning",), 2.0),
        5.0: (2.0, ("the end",), 1.5),
        7.0: (2.0, ("the end",), 3.5),
        9.0: (1.0, ("the end",), 5.0),
    }
    assert clips["long.wav@7"].quality_frames == (3, 4)
    assert all(record.tags == {"genre": "tone"} for record in clips.values())


def test_text_files_beside_the_music_are_captions(music):
    (music / "one.txt").write_text("a tone\n\na low tone\n")
    assert run(music) == 0
    assert records(music)["one.wav@0"].captions == ("a tone", "a low tone")


@pytest.mark.parametrize("suffix", [".ogg", ".mp3"])
def test_tags_inside_files_are_read_when_asked_for(music, suffix):
    mutagen = pytest.importorskip("mutagen")
    path = music / f"tagged{suffix}"
    write_tone(path, 150, 2.0)
    file = mutagen.File(path)
    if suffix == ".mp3":
        from mutagen import id3

        file.add_tags()
        file.tags.add(id3.TCON(text=["ambient"]))
        file.tags.add(id3.TBPM(text=["90"]))
    else:
        file["genre"], file["bpm"], file["title"] = ["ambient"], ["90"], ["Secret"]
    file.save()
    assert run(music, "--reads-tags") == 0
    record = records(music)[f"tagged{suffix}@0"]
    assert record.tags == {"genre": "ambient", "tempo_bpm": 90.0}
    assert record.captions == ("ambient, 90 bpm",)


def test_what_cannot_be_used_is_counted_and_listed(music, capsys):
    samples, _ = soundfile.read(music / "one.wav", dtype="int16")
    soundfile.write(music / "again.flac", samples, RATE)
    write_tone(music / "half.wav", 250, 4.0, silent_from=2.0)
    write_tone(music / "short.wav", 260, 0.2)
    (music / "broken.wav").write_bytes(b"this is no sound")
    (music / "table.jsonl").write_text(
        '{"path": "one.wav", "quality_score": "good"}\n{"path": "gone.wav"}\nno json\n'
        '{"path": "sub/two.flac", "start_in_s": 1.5, "duration_in_s": 5}\n'
    )
    assert run(music, "--table", music / "table.jsonl") == 1
    found = {(kind, place) for kind, place, _ in left_out(music)}
    assert found == {
        ("row", f"{music / 'table.jsonl'}, line 1"),
        ("row", f"{music / 'table.jsonl'}, line 3"),
        ("row", "gone.wav"),
        ("duplicate", "one.wav"),
        ("silent", "half.wav@2"),
        ("short", "short.wav"),
        ("unreadable", "broken.wav"),
        ("wrong metadata", "sub/two.flac"),
    }
    assert set(records(music)) == {"again.flac@0", "half.wav@0", "sub/two.flac@0"}
    output = capsys.readouterr()
    assert "3 clips in" in output.out
    assert "duplicate: 1, row: 3, short: 1, silent: 1, unreadable: 1, wrong metadata: 1" in output.err


def test_a_second_run_reads_only_what_is_new(music, monkeypatch, capsys):
    run(music)
    memory = music / ".manifest.scans.jsonl"
    memory.write_bytes(memory.read_bytes() + b'{"path": "torn')
    write_tone(music / "three.wav", 400, 2.0)
    scanned = []
    scan = build_manifest.scan_audio
    monkeypatch.setattr(build_manifest, "scan_audio", lambda path: scanned.append(path.name) or scan(path))
    assert run(music) == 0
    assert scanned == ["three.wav"]
    assert "files read: 1, known from before: 2." in capsys.readouterr().out
    assert len(records(music)) == 3


def test_paths_may_not_leave_the_manifest(music, tmp_path, capsys):
    assert run(music, "--out", music / "sub" / "manifest.jsonl") == 2
    assert "`out` must lie in" in capsys.readouterr().err
    assert run(music, "--out", tmp_path / "manifest.jsonl") == 0
    assert {record.path for record in read_manifest(tmp_path / "manifest.jsonl")} == {
        "music/one.wav",
        "music/sub/two.flac",
    }


def test_it_runs_as_a_script(music):
    script = Path(build_manifest.__file__)
    assert subprocess.run([sys.executable, script, music, "--clip-in-s", "2"], check=False).returncode == 0


def test_a_bad_extra_costs_the_extra_alone(music):
    (music / "one.txt").write_bytes("caf\xe9".encode("latin-1"))
    (music / "one.wav.txt").write_bytes("a tone\u2028of one line\r\nlow".encode())
    (music / "one.json").write_text('{"genre": ' + "[" * 200_000)
    (music / "sub" / "two.txt").symlink_to("/etc/hostname")
    table = music / "table.csv"
    rows = [
        b" File_Name,captions,tempo_bpm,quality_score",
        b"one.wav," + b"x" * 200_000 + b",,",
        b"one.wav,caf\xe9,,",
        b'sub/two.flac,"two\nlines\xe2\x80\xa8of text","127,5",3',
        b"sub/two.flac,more,fast,",
        b"sub/two.flac,too good,,9",
        b"sub/two.flac,no place,,nan",
    ]
    table.write_bytes(b"\n".join(rows))
    assert run(music, "--table", table) == 1
    one, two = records(music).values()
    assert one.captions == ("a tone\u2028of one line", "low")
    assert (two.captions, two.tags, two.quality_score) == (
        ("two\nlines\u2028of text", "more"),
        {"tempo_bpm": 127.5},
        3.0,
    )
    found = left_out(music)
    assert {(kind, place.removeprefix(f"{table}, ")) for kind, place, _ in found} == {
        ("row", "line 2"), ("row", "line 3"), ("row", "line 6"), ("row", "line 7"), ("row", "line 8"),
        ("wrong metadata", "one.wav"), ("wrong metadata", "sub/two.flac"),
    }  # fmt: skip
    reasons = "\n".join(reason for *_, reason in found)
    for reason in (
        "field larger",
        "not UTF-8",
        "such as 120, got 'fast'",
        "must lie between 1 and 5",
        "finite",
        "link",
    ):
        assert reason in reasons


@pytest.mark.parametrize(
    ("tempo", "expected"),
    [("120 BPM", 120), ("127,5", 127.5), (" 90bpm ", 90), (140, 140), ("0", None), ("", None), ("0.0", None)],
)
def test_a_tempo_is_read_as_people_write_it(tempo, expected):
    note = Note.from_dict({"tempo_bpm": tempo, "genre": "techno"})
    assert (note.tags.get("tempo_bpm"), note.tags["genre"], note.faults) == (expected, "techno", ())


@pytest.mark.parametrize("tempo", ["fast", "120-125", "nan", "inf", "1e400", -5, True, [120], {"a": 1}, "９" * 5])
def test_a_tempo_that_is_none_is_left_out_and_told(tempo):
    note = Note.from_dict({"tempo_bpm": tempo, "caption": "a song"})
    assert (note.tags, note.captions, len(note.faults)) == ({}, ("a song",), 1)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", "path,caption\none.wav,a".encode("utf-16"), r"t\.csv.*UTF-16"),
        ("t.csv", b"song,caption\none.wav,a\n", r"t\.csv.*column `path`.*'song'"),
        ("t.csv", b"", r"t\.csv.*column `path`"),
        ("t.csv", b"path,caption,caption\none.wav,a,b\n", r"t\.csv.*each column once"),
        ("t.csv", b"path,caption\nnone.wav,a\n", r"t\.csv is about a file.*'one\.wav'.*'none\.wav'"),
        ("t.jsonl", b'{"caption": "a"}\n[]\n', r"no row of the table.*t\.jsonl.*can be used"),
        ("t.tsv", b"", r"must be a \.csv or \.jsonl file"),
    ],
)
def test_a_table_that_says_nothing_ends_the_job_before_anything_is_written(music, capsys, name, content, message):
    (music / name).write_bytes(content)
    assert run(music, "--table", music / name) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (music / "manifest.jsonl").exists()


def test_tags_of_any_kind_and_damage_cost_themselves_alone(music):
    id3 = pytest.importorskip("mutagen.id3")
    write_tone(music / "sub" / "three.mp3", 150, 2.0)
    tags = id3.ID3()
    tags.add(id3.TBPM(text=["120 BPM"]))
    tags.add(id3.TCON(text=["ambient"]))
    tags.save(music / "sub" / "three.mp3")
    samples, _ = soundfile.read(music / "one.wav")
    soundfile.write(music / "four.rf64", samples[::-1], RATE, format="RF64")
    soundfile.write(music / "five.wav", samples * 0.5, RATE, format="RF64")
    (music / "six.flac").write_bytes(b"ID3\x03\x00\x00\xff\xff\xff\xff" + (music / "sub" / "two.flac").read_bytes())
    run(music, "--reads-tags")
    assert {"one.wav@0", "sub/two.flac@0", "sub/three.mp3@0", "four.rf64@0", "five.wav@0"} <= set(records(music))
    assert records(music)["sub/three.mp3@0"].tags == {"genre": "ambient", "tempo_bpm": 120.0}


def test_every_sound_file_of_a_folder_is_taken_or_named(music):
    for name in ("song.m4a", "song.WMA", "sub/song.aac", ".hidden.m4a"):
        (music / name).write_bytes(b"sound")
    (music / "out.wav").symlink_to("/etc/hostname")
    (music / "loop.wav").symlink_to("loop.wav")
    os.link(music / "one.wav", os.fsencode(music) + b"/caf\xe9.wav")
    samples, _ = soundfile.read(music / "one.wav")
    for number, suffix in enumerate((".caf", ".w64", ".au"), start=2):
        soundfile.write(music / f"other{suffix}", samples / number, RATE)
    assert run(music) == 1
    assert {place for kind, place, _ in left_out(music) if kind == "unreadable"} == {
        "song.m4a", "song.WMA", "sub/song.aac", "out.wav", "loop.wav", r"caf\udce9.wav",
    }  # fmt: skip
    assert {f"other{suffix}@0" for suffix in (".caf", ".w64", ".au")} < set(records(music))
    assert [clip.id for clip in list_clips([music])[0]] == sorted(
        [
            "loop.wav",
            "one.wav",
            "other.au",
            "other.caf",
            "other.w64",
            "out.wav",
            "song.WMA",
            "song.m4a",
            "sub/song.aac",
        ]
        + ["sub/two.flac", r"caf\udce9.wav"]
    )


def test_a_file_that_is_cut_is_taken_as_far_as_it_goes_and_named(music):
    path = music / "cut.mp3"
    write_tone(path, 150, 20.0)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 4])
    assert run(music) == 1
    [(kind, place, reason)] = left_out(music)
    assert (kind, place) == ("cut", "cut.mp3")
    ends = [r.start_in_s + r.duration_in_s for r in records(music).values() if r.path == "cut.mp3"]
    assert 3 < max(ends) < 6
    assert "s can be decoded and were taken" in reason


def test_a_quote_that_nobody_closes_costs_its_own_row(music):
    table = 'path,caption\none.wav,plain\nsub/two.flac,"open\nthree.wav,x\nfour.wav,y\n'
    (music / "t.csv").write_text(table)
    assert run(music, "--table", music / "t.csv") == 1
    [(kind, place, reason)] = left_out(music)
    assert (kind, place.endswith("line 3"), "a quote is never closed" in reason) == ("row", True, True)
    assert {r.path: r.captions for r in records(music).values()} == {"one.wav": ("plain",), "sub/two.flac": ()}


def test_columns_may_be_written_as_people_write_them(music):
    (music / "t.csv").write_bytes(b"\xef\xbb\xbf Path , Caption ,QUALITY_SCORE, Label\r\n one.wav ,slow,4.5,x\r\n")
    assert run(music, "--table", music / "t.csv") == 0
    found = next(record for record in records(music).values() if record.path == "one.wav")
    assert (found.captions, found.quality_score, found.tags) == (("slow",), 4.5, {"Label": "x"})


def test_a_file_that_is_damaged_inside_is_taken_as_far_as_it_goes_and_named(music):
    path = music / "damaged.flac"
    write_tone(path, 150, 20.0)
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 500] = np.random.default_rng(0).bytes(500)
    path.write_bytes(content)
    assert run(music) == 1
    [(kind, place, _)] = left_out(music)
    assert (kind, place) == ("cut", "damaged.flac")
    assert 7 < max(r.start_in_s + r.duration_in_s for r in records(music).values() if r.path == "damaged.flac") < 12
