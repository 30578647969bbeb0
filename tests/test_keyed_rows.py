"""Rows of results: they survive kills, are found by key again, and belong to one writer."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from qamdt.keyed_rows import DONE, FAILED, KeyedRows, digest_weights, file_identity, make_key, make_row


ROOT = Path(__file__).resolve().parent.parent


def test_a_torn_last_line_is_cut_off_and_its_row_is_open_again(tmp_path):
    path = tmp_path / "fuse.jsonl"
    path.write_text(json.dumps(make_row(1, "a")) + "\n" + json.dumps(make_row(2, "b"))[:-9])
    rows = KeyedRows(tmp_path, "fuse")
    assert (rows.status(1), rows.status(2)) == (DONE, None)
    rows.append(make_row(2, "b"))
    rows.refresh()
    assert rows.status(2) == DONE
    assert [json.loads(line)["id"] for line in path.read_text().splitlines()] == ["a", "b"]


def test_a_done_row_outweighs_failed_ones_and_the_last_done_one_counts(tmp_path):
    rows = KeyedRows(tmp_path, "fuse")
    rows.append(make_row(7, "a", failure="first") | {"n": 0})
    rows.refresh()
    assert (rows.status(7), rows.read(7)["reason"]) == (FAILED, "first")
    for n in (1, 2):
        rows.append(make_row(7, "a") | {"n": n})
    rows.append(make_row(7, "a", failure="late") | {"n": 3})
    rows.refresh()
    assert (rows.status(7), rows.read(7)["n"], len(rows)) == (DONE, 2, 1)


def test_shards_write_files_of_their_own_and_read_all(tmp_path):
    for number in range(3):
        KeyedRows(tmp_path, "fuse", (number, 3)).append(make_row(number, f"clip-{number}"))
    rows = KeyedRows(tmp_path, "fuse")
    assert [rows.read(number)["id"] for number in range(3)] == ["clip-0", "clip-1", "clip-2"]
    assert [row["id"] for row in rows.history()] == ["clip-0", "clip-1", "clip-2"]


def test_two_processes_cannot_write_one_rows(tmp_path):
    rows = KeyedRows(tmp_path, "fuse")
    rows.open()
    with pytest.raises(RuntimeError, match="another process is writing"):
        KeyedRows(tmp_path, "fuse").open()


def test_what_another_process_wrote_before_we_could_is_seen(tmp_path):
    late = KeyedRows(tmp_path, "fuse")
    first = KeyedRows(tmp_path, "fuse")
    first.append(make_row(1, "a"))
    first.close()
    assert late.status(1) is None
    late.open()
    assert late.status(1) == DONE


def test_a_damaged_line_is_named(tmp_path):
    (tmp_path / "fuse.jsonl").write_text('{"key": "01", "id": "a", "status": "done"}\nnonsense\n')
    with pytest.raises(ValueError, match=r"fuse\.jsonl, line 2: .*line can be deleted"):
        KeyedRows(tmp_path, "fuse")


def test_text_that_utf8_cannot_hold_is_stored(tmp_path):
    rows = KeyedRows(tmp_path, "fuse")
    rows.append(make_row(1, "a") | {"text": "\ud800 é"})
    rows.refresh()
    assert rows.read(1)["text"] == "\ud800 é"


def test_keys_are_the_same_everywhere_and_differ_by_content():
    program = "from qamdt.keyed_rows import make_key; print(make_key('a', [1, 2.5], {'y': None, 'x': 'é'}))"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert int(found.stdout) == make_key("a", [1, 2.5], {"x": "é", "y": None})
    assert len({make_key("a", "b"), make_key("ab"), make_key(["a", "b"]), make_key("b", "a")}) == 4


def test_a_file_of_an_older_version_is_refused_by_name(tmp_path):
    (tmp_path / "pieces.jsonl").write_text('{"index": 0, "records": []}\n')
    with pytest.raises(ValueError, match=r"pieces\.jsonl, line 1: .*older version"):
        KeyedRows(tmp_path, "pieces")


def test_files_of_another_step_are_left_alone(tmp_path):
    for name in ("scores-old", "scores2", "scores.meta"):
        (tmp_path / f"{name}.jsonl").write_text("nonsense\n")
    assert len(KeyedRows(tmp_path, "scores")) == 0


def test_another_word_may_say_that_a_row_is_done(tmp_path):
    with KeyedRows(tmp_path, "scores", done="ok") as rows:
        rows.append(make_row(1, "a") | {"status": "ok"})
        rows.append(make_row(2, "b") | {"status": "error"})
        rows.refresh()
    assert (rows.status(1), rows.status(2)) == (DONE, FAILED)


def test_a_file_that_was_written_again_has_another_identity(tmp_path):
    path = tmp_path / "a.wav"
    path.write_bytes(b"one")
    first = file_identity(path)
    assert first == file_identity(path)
    assert first == json.loads(json.dumps(first))
    path.write_bytes(b"two")
    os.utime(path, ns=(0, first[1] + 1))
    assert file_identity(path) != first


def test_models_without_weights_have_no_digest(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no weights"):
        digest_weights(tmp_path)
    (tmp_path / "model.bin").write_bytes(b"a")
    first = digest_weights(tmp_path)
    (tmp_path / "model.bin").write_bytes(b"b")
    assert digest_weights(tmp_path) != first
