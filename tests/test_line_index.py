"""Lines by position, and names that came before: right whatever the length of the file and the lines in it."""

import os
import pickle

import numpy as np
import pytest

from qamdt import line_index
from qamdt.keyed_rows import hash_text
from qamdt.line_index import FirstPlaces, LineReader
from qamdt.manifest import scan_manifest


def test_lines_are_read_by_position_in_every_process(tmp_path):
    lines = [f"{i}".encode() * (1 + i * 997 % 3000) + b"\n" for i in range(50)]
    lines[-1] = lines[-1][:-1]
    (tmp_path / "rows").write_bytes(b"".join(lines))
    offsets = np.cumsum([0, *map(len, lines)])[:-1]
    reader = LineReader(tmp_path / "rows", offsets)
    assert [reader.read(position) for position in (49, 0, 7)] == [lines[49], lines[0], lines[7]]
    copy = pickle.loads(pickle.dumps(reader))
    assert [copy.read(position) for position in range(50)] == lines
    pid = os.fork()
    if pid == 0:  # a forked process must not move the place at which this one reads
        for position in range(50):
            reader.read(position)
        os._exit(0)
    assert [reader.read(position) for position in range(50)] == lines
    assert os.waitpid(pid, 0)[1] == 0


def test_a_file_that_was_replaced_is_not_read_at_old_places(tmp_path):
    (tmp_path / "rows").write_bytes(b"one\ntwo\n")
    reader = LineReader(tmp_path / "rows", np.array([0, 4]))
    (tmp_path / "rows").write_bytes(b"another\nfile\n")
    with pytest.raises(RuntimeError, match="has changed since it was listed"):
        reader.read(1)


def test_names_that_came_before_are_found_also_when_many_were_sorted_in(monkeypatch):
    monkeypatch.setattr(line_index, "_FEWEST_LATEST", 8)
    names = [f"name-{i}" for i in range(200)]
    places = FirstPlaces(names.__getitem__)
    assert all(places.find_or_add(name, place) is None for place, name in enumerate(names))
    assert [places.find_or_add(name, 999) for name in names] == list(range(200))


def test_names_of_equal_digest_are_told_apart(monkeypatch):
    monkeypatch.setattr(line_index, "hash_text", lambda text: hash_text(text) % 2)
    names = ["a", "b", "c", "d", "e"]
    places = FirstPlaces(names.__getitem__)
    assert [places.find_or_add(name, place) for place, name in enumerate(names)] == [None] * 5
    assert places.find_or_add("a", 7) == 0


def test_the_line_of_the_first_id_is_named(tmp_path):
    line = b'{"id": "x", "path": "x.wav", "duration_in_s": 1}\n'
    (tmp_path / "m.jsonl").write_bytes(b"\n\nbad\n" + line + b"\n" + line.replace(b'"x"', b'"y"') + line)
    faults = [line.fault for line in scan_manifest(tmp_path / "m.jsonl") if line.fault]
    assert "the id 'x' was used in line 4 already" in faults[1]
