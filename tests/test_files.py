"""Files that are written whole or not at all, and read without a torn last line."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from qamdt.files import (
    append_json_line,
    cut_log,
    cut_torn_line,
    iterate_lines,
    parse_json,
    read_json,
    read_json_lines,
    read_text_lines,
    replace_folder,
    write_atomically,
    write_json,
    write_json_lines,
    write_text,
)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "values.json"
    write_json(path, {"a": "é"})

    def fail(file):
        file.write_text("half")
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        write_atomically(path, fail)
    with pytest.raises(TypeError):
        write_json_lines(path, [1, object()])
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": "é"}
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_written_may_be_read_by_others(tmp_path):
    write_text(tmp_path / "a.txt", "text")
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == 0o644


def test_json_lines_come_back_even_lone_surrogates(tmp_path):
    rows = [{"text": "\ud800 é"}, ["a\u2028b"], None]
    write_json_lines(tmp_path / "rows.jsonl", rows[:2])
    append_json_line(tmp_path / "rows.jsonl", rows[2])
    assert list(read_json_lines(tmp_path / "rows.jsonl")) == rows
    write_json(tmp_path / "row.json", rows[0])
    assert json.loads((tmp_path / "row.json").read_text(encoding="utf-8")) == rows[0]


@pytest.mark.parametrize("size", [0, 1, 3, 70_000, 200_000])
def test_a_torn_line_is_passed_over_and_cut(tmp_path, size):
    path = tmp_path / "rows.jsonl"
    whole = b"1\n" + b" " * size + b"2\n"
    path.write_bytes(whole + '"é'.encode()[:-1] * (size or 1))
    assert list(read_json_lines(path)) == [1, 2]
    assert [path.read_bytes()[offset:][: len(line)] == line for offset, line in iterate_lines(path)] == [True, True]
    cut_torn_line(path)
    assert path.read_bytes() == whole
    cut_torn_line(path)
    assert path.read_bytes() == whole


def test_a_file_without_a_whole_line_becomes_empty(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a"')
    assert list(read_json_lines(path)) == []
    cut_torn_line(path)
    assert path.read_bytes() == b""
    cut_torn_line(tmp_path / "none.jsonl")
    assert not (tmp_path / "none.jsonl").exists()


def test_a_damaged_line_is_named(tmp_path):
    (tmp_path / "rows.jsonl").write_text("1\nnonsense\n3\n")
    with pytest.raises(ValueError, match=r"rows\.jsonl, line 2: not JSON"):
        list(read_json_lines(tmp_path / "rows.jsonl"))


def test_a_log_is_cut_back_to_a_checkpoint(tmp_path):
    path = tmp_path / "loss.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"ste')
    cut_log(path, "step", 2)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'
    cut_log(tmp_path / "none.jsonl", "step", 2)


def test_a_folder_takes_the_place_of_another(tmp_path):
    for name, content in (("model", "old"), ("new", "new"), (".model.old", "left by a killed process")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights").write_text(content)
    replace_folder(tmp_path / "new", tmp_path / "model")
    assert (tmp_path / "model" / "weights").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


ROOT = Path(__file__).resolve().parent.parent
SOURCES = [
    path for room in ("qamdt", "whisq", "pipelines", "data_prep") for path in sorted((ROOT / room).rglob("*.py"))
]
LINES = ["café\u2028静かな", "b\u2029c", "d\x85e\x0bf\x0cg\x1ch", ""]


def test_text_is_utf_8_whatever_the_locale_says(tmp_path):
    code = f"""if True:
        from pathlib import Path
        from qamdt.files import append_json_line, read_json, write_json, write_text
        folder, values = Path({str(tmp_path)!r}), {{"prompt": {LINES!a}}}
        write_json(folder / "a.json", values)
        append_json_line(folder / "a.jsonl", values)
        write_text(folder / "a.txt", values["prompt"][0])
        assert read_json(folder / "a.json") == values
    """
    other_locale = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C", "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], env=os.environ | other_locale, check=True)
    assert read_json(tmp_path / "a.json") == {"prompt": LINES}
    assert list(read_json_lines(tmp_path / "a.jsonl")) == [{"prompt": LINES}]
    assert (tmp_path / "a.txt").read_bytes() == LINES[0].encode()


@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_lines_end_at_line_feeds_alone(tmp_path, start, end):
    (tmp_path / "a.txt").write_bytes(start + end.join(line.encode() for line in LINES))
    assert read_text_lines(tmp_path / "a.txt") == LINES


@pytest.mark.parametrize("read", [read_text_lines, read_json])
def test_a_file_in_another_encoding_is_named(tmp_path, read):
    for encoding in ("latin-1", "utf-16"):
        (tmp_path / "a.txt").write_text('"é"', encoding=encoding)
        with pytest.raises(ValueError, match=r"a\.txt.*UTF-8"):
            read(tmp_path / "a.txt")


@pytest.mark.parametrize("text", ["[" * 200_000, '{"a":' * 101 + "1" + "}" * 101, "[" * 101 + "]" * 101, "1" * 5000])
def test_json_that_nothing_could_be_done_with_is_an_error_of_its_value(text):
    with pytest.raises(ValueError, match="nested more than|Exceeds the limit"):
        parse_json(text)
    with pytest.raises(ValueError, match="nested more than|Exceeds the limit"):
        parse_json(text.encode())
    assert parse_json("[" * 100 + "]" * 100)[0][0] is not None


def test_the_sources_read_text_in_one_way():
    def is_wrong(call: ast.Call) -> bool:
        name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        if name == "splitlines":  # which cuts captions at U+2028
            return not (isinstance(call.func.value, ast.Name) and call.func.value.id == "__doc__")
        return name in ("read_text", "write_text") and isinstance(call.func, ast.Attribute) and not call.keywords

    wrong = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and is_wrong(node)
    ]
    assert not wrong, "text needs `encoding`, and lines `read_text_lines` or `iterate_lines`: " + ", ".join(wrong)
