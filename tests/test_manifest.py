import itertools
import json
import os
from dataclasses import replace

import pytest

from qamdt.manifest import (
    Record,
    clip_identity,
    parse_line,
    read_manifest,
    resolve_clip_path,
    scan_manifest,
    write_manifest,
)


EMPTY = {"captions": (), "tags": {}, "source": "", "license": ""}


def make_record(**changes):
    return Record(**{"id": "a", "path": "audio/a.flac", "duration_in_s": 10.24, **changes})


def write_lines(path, *lines):
    path.write_text("".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines))
    return path


def test_what_is_written_is_read_back(tmp_path):
    records = [
        make_record(captions=("a song", "ein Stück"), tags={"tempo_bpm": 90}, quality_score=4, extra={"clap": 0.5}),
        make_record(id="b", quality_frames=(1.5, 2), quality_frame_rate=4.0, quality_scorer="whisq"),
    ]
    write_manifest(tmp_path / "manifest.jsonl", records)
    assert read_manifest(tmp_path / "manifest.jsonl") == records
    assert os.listdir(tmp_path) == ["manifest.jsonl"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{broken\n", "line 2: Expecting property name"),
        ("[1]\n", "line 2: expected a JSON object"),
        ({"id": "b", "path": "b.wav"}, r"line 2: the fields \['duration_in_s'\] are missing"),
        (
            {"id": "b", "path": "b.wav", "duration_in_s": "10"},
            "line 2: `duration_in_s` must be a finite number, got '10'",
        ),
        ({"id": "b", "path": "../b.wav", "duration_in_s": 1}, "line 2: `path` must be relative and stay inside"),
        ({"id": "b", "path": "/b.wav", "duration_in_s": 1}, "line 2: `path` must be relative and stay inside"),
        ({"id": "a", "path": "b.wav", "duration_in_s": 1}, "line 2: the id 'a' was used in line 1"),
        ({"id": "b", "path": "b.wav", "duration_in_s": 1, "quality_score": 9}, "between 1 and 5, got 9"),
        ({"id": "b", "path": "b.wav", "duration_in_s": 1, "captions": "text"}, r"write it as \['text'\]"),
        ({"id": "b", "path": "b.wav", "duration_in_s": 1, "captions": [3]}, "`captions` must be a list of strings"),
        ('{"id": "b", "path": "b.wav", "duration_in_s": NaN}\n', "`duration_in_s` must be a finite number, got nan"),
        (f'{{"id": "b", "path": "b.wav", "duration_in_s": 1, "start_in_s": {10**400}}}\n', "line 2"),
        ({"id": "b", "path": "b.wav", "duration_in_s": 1, "quality_frames": [2.0]}, "lack a `quality_frame_rate`"),
        ({"id": "b", "path": "b.wav", "duration_in_s": 0}, "must have `duration_in_s` > 0"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, message):
    path = write_lines(tmp_path / "manifest.jsonl", make_record().to_dict(), line)
    with pytest.raises(ValueError, match=message):
        read_manifest(path)


def test_bad_lines_are_told_and_the_others_read(tmp_path):
    path = write_lines(tmp_path / "manifest.jsonl", make_record().to_dict(), "{broken\n", "\n")
    with path.open("ab") as file:
        file.write(b'{"id": "\xff"}\n' + json.dumps(make_record(id="b", captions=("x",)).to_dict()).encode())
    lines = list(scan_manifest(path))
    assert [(line.number, line.record and line.record.id) for line in lines] == [
        (1, "a"),
        (2, None),
        (4, None),
        (5, "b"),
    ]
    assert "not UTF-8" in lines[2].fault
    assert b"".join(line.text for line in lines).count(b"\n") == 3


def test_fields_that_a_reader_does_not_require_have_defaults():
    record = parse_line(b'{"path": "a.wav", "id": null, "captions": null}', required=("path",))
    assert (record.id, record.duration_in_s, record.captions) == ("a.wav", None, ())
    assert record.to_dict() == {"id": "a.wav", "path": "a.wav", "start_in_s": 0.0, **EMPTY}
    with pytest.raises(ValueError, match=r"the fields \['id'\] are missing; a record needs `id`, `path`\."):
        parse_line(b'{"path": "a.wav", "id": null}', required=("id", "path"))


def test_the_identity_of_a_clip_follows_its_sound_and_span(tmp_path):
    manifest, record = tmp_path / "manifest.jsonl", make_record(path="a.wav")
    missing = clip_identity(manifest, record)
    (tmp_path / "a.wav").write_bytes(b"one")
    first = clip_identity(manifest, record)
    assert first == json.loads(json.dumps(first)) == clip_identity(manifest, replace(record, captions=("other",)))
    longer = clip_identity(manifest, replace(record, duration_in_s=11.0))
    (tmp_path / "a.wav").write_bytes(b"other")
    changed = clip_identity(manifest, record)
    assert all(a != b for a, b in itertools.combinations([missing, first, longer, changed], 2))


def test_a_missing_manifest_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no manifest at '.*nothing\.jsonl'"):
        read_manifest(tmp_path / "nothing.jsonl")


def test_a_link_that_leads_out_of_the_root_is_refused(tmp_path):
    (tmp_path / "root").mkdir()
    (tmp_path / "secret.wav").write_bytes(b"")
    (tmp_path / "root" / "a.wav").symlink_to(tmp_path / "secret.wav")
    with pytest.raises(ValueError, match="leads out of"):
        resolve_clip_path(tmp_path / "root" / "manifest.jsonl", make_record(path="a.wav"))


def test_a_failed_write_leaves_the_old_manifest(tmp_path):
    path = tmp_path / "manifest.jsonl"
    write_manifest(path, [make_record()])

    def failing_records():
        yield make_record(id="b")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_manifest(path, failing_records())
    assert [record.id for record in read_manifest(path)] == ["a"]
    assert os.listdir(tmp_path) == ["manifest.jsonl"]


def test_what_is_played_is_written_and_read(tmp_path):
    record = Record(
        id="a",
        path="a.wav",
        duration_in_s=1.0,
        tempo_bpm=97.5,
        first_beat_in_s=0.2,
        time_signature="3/4",
        key="Eb minor",
        chords=((0.0, "Ebm"), (1.5, "Bb7/D")),
    )
    write_manifest(tmp_path / "manifest.jsonl", [record])
    assert read_manifest(tmp_path / "manifest.jsonl") == [record]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tempo_bpm", 0),
        ("tempo_bpm", "fast"),
        ("time_signature", "three"),
        ("key", "H minor"),
        ("chords", "Am F"),
        ("chords", [[0.0, "Hm"]]),
        ("chords", [[1.0, "C"], [0.5, "G"]]),
    ],
)
def test_music_that_makes_no_sense_is_refused_by_name(field, value):
    with pytest.raises(ValueError, match=f"`{field}`"):
        Record.from_dict({"id": "a", "path": "a.wav", "duration_in_s": 1.0, field: value})


def test_a_byte_order_mark_is_no_part_of_the_first_line(tmp_path):
    line = b'{"id": "a", "path": "a.wav", "duration_in_s": 1}\r\n'
    (tmp_path / "m.jsonl").write_bytes(b"\xef\xbb\xbf" + line)
    assert [record.id for record in read_manifest(tmp_path / "m.jsonl")] == ["a"]


@pytest.mark.parametrize("field", ['"quality_frames": [3, true], "quality_frame_rate": 1', '"chords": [[true, "C"]]'])
def test_true_is_no_number(field):
    with pytest.raises(ValueError, match="must be a list of"):
        parse_line(b'{"id": "a", "path": "a.wav", "duration_in_s": 1, %s}' % field.encode())
