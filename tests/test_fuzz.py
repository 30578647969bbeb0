"""Whatever strangers write into manifests, tables, tags and score files: an error is ours, with a reason, or none."""

import json
import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_prep.build_manifest import Scan, cut, find_misfit, make_record
from data_prep.label_quality import label_record
from data_prep.latent_index import list_training_texts, make_curves
from data_prep.measure_music import fill_in
from data_prep.music_metadata import Note, describe_tags, read_sidecars, read_table, read_tempo
from data_prep.refine.clean import describe_tags as describe_tags_in_words
from data_prep.refine.llm_client import RowFailed, read_answer
from data_prep.refine.questions import read_fusion, read_suggestions
from qamdt.files import encode_json_line, parse_json
from qamdt.keyed_rows import KeyedRows
from qamdt.manifest import Record, parse_line, scan_manifest, write_manifest
from qamdt.quality import QualityStats
from whisq.scoring.rows import ScoreRows, is_of_this_sound
from whisq.scoring.stats import ScoreStats, measure_scores


fuzz = settings(
    max_examples=60, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)

TEXTS = st.text(st.characters(), max_size=20) | st.sampled_from(
    [
        "",
        "a\u2028b",
        "\ud800",
        "café",
        "../x",
        "/etc",
        "a\\b",
        "NaN",
        "120 BPM",
        "127,5",
        "3/4",
        "A minor",
        "Am7",
        "ok",
    ]
)
NUMBERS = (
    st.integers() | st.floats() | st.sampled_from([0, -1, 1, 2.5, 5, 10**400, 1e308, math.nan, math.inf, True, False])
)
VALUES = st.recursive(
    st.none() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
RECORD_FIELDS = (
    "id path duration_in_s start_in_s captions caption tags source license quality_score quality_frames "
    "quality_frame_rate quality_scorer tempo_bpm first_beat_in_s time_signature key chords music_measured"
).split()
GOOD_RECORD = {"id": "a", "path": "a.wav", "duration_in_s": 2.0, "captions": ["song"], "tags": {}}
GOOD_ROW = {
    "id": "a", "key": "0" * 16, "path": "a.wav", "source": "", "prompt": None, "status": "ok", "error": None,
    "flags": [], "duration_in_s": 2.0, "start_in_s": 0.0, "file": [1, 2], "sampling_rate": 16_000,
    "overall_quality": 3.0, "text_alignment": None, "frame_hop_in_s": 0.5, "frame_overall_quality": [3.0] * 4,
    "scorer": "tiny",
}  # fmt: skip
STATS = QualityStats(mean=3, std=1, edges=(2, 2.5, 3, 4), prefix_edges=(2.2, 3.8), scorer="tiny", num_clips=7)


def lines_of(good, names):
    """Lines of a JSONL file: good rows with some fields changed, rows of any fields, other JSON, any bytes."""
    changed = st.dictionaries(st.sampled_from(names), VALUES, max_size=2).map(lambda change: good | change)
    rows = (changed | st.dictionaries(st.sampled_from(names), VALUES, max_size=4) | VALUES).map(encode_json_line)
    return rows | st.binary(max_size=20).map(lambda line: line.replace(b"\n", b"") + b"\n")


@fuzz
@given(st.lists(lines_of(GOOD_RECORD, RECORD_FIELDS), max_size=4))
def test_manifests(tmp_path_factory, lines):
    folder = tmp_path_factory.getbasetemp()
    (folder / "m.jsonl").write_bytes(b"".join(lines))
    records = [line.record for line in scan_manifest(folder / "m.jsonl") if line.record is not None]
    for record in records:
        assert parse_line(encode_json_line(record.to_dict())) == record
        describe_tags_in_words(record.tags)
        texts = list_training_texts(record, STATS, None)
        assert all(text.encode() is not None for text in texts)
        make_curves(record, 4)
        fill_in(record, {}, min_tempo_clarity=0.5, min_key_margin=0.1)
    write_manifest(folder / "again.jsonl", records)
    assert [line.record for line in scan_manifest(folder / "again.jsonl")] == records


CELLS = TEXTS.map(lambda text: text.replace("\ud800", "")) | st.sampled_from(
    ['"', '"a,b"', "5", "[1, 2]", "[[", "nan"]
)
COLUMNS = st.sampled_from(["path", "file_name", "captions", "tags", *RECORD_FIELDS])
CSV_TABLES = st.tuples(st.lists(COLUMNS, max_size=4), st.lists(st.lists(CELLS, max_size=4), max_size=3)).map(
    lambda table: "\n".join(",".join(row) for row in [table[0], *table[1]]).encode("utf-8", "surrogatepass")
)
JSON_TABLES = st.lists(lines_of({"path": "a.wav", "caption": "song"}, [*RECORD_FIELDS, "file"]), max_size=3).map(
    b"".join
)
FILES = st.tuples(st.just(".csv"), CSV_TABLES | st.binary(max_size=50)) | st.tuples(st.just(".jsonl"), JSON_TABLES)


@fuzz
@given(FILES)
def test_tables(tmp_path_factory, file):
    suffix, content = file
    path = tmp_path_factory.getbasetemp() / f"table{suffix}"
    path.write_bytes(content)
    told = []
    try:
        notes = read_table(path, lambda place, fault: told.append(fault))
    except ValueError:
        return
    check_notes([note for some in notes.values() for note in some])


@fuzz
@given(VALUES | st.dictionaries(st.sampled_from(RECORD_FIELDS), VALUES, max_size=4), st.binary(max_size=30))
def test_files_beside_the_music(tmp_path_factory, values, content):
    folder = tmp_path_factory.getbasetemp()
    (folder / "a.json").write_bytes(encode_json_line(values))
    (folder / "a.txt").write_bytes(content)
    told = []
    check_notes(read_sidecars(folder / "a.wav", folder, lambda name, fault: told.append(fault)))


def check_notes(notes):
    """What is taken for a note makes records that a manifest can hold."""
    scan = Scan(duration_in_s=5.0, digest="", peaks=[])
    notes = [note for note in notes if find_misfit(note, scan.duration_in_s) is None]
    for start, length, own in cut(scan, notes, clip_in_s=2.0, min_in_s=0.5):
        record = make_record("a.wav", start, length, own, {"source": "", "license": ""})
        assert parse_line(encode_json_line(record.to_dict())) == record


@fuzz
@given(VALUES, st.dictionaries(st.sampled_from(["tempo_bpm", "genre", "mood", "instruments", "key"]), VALUES))
def test_tags(value, tags):
    try:
        tempo = read_tempo(value)
        assert tempo is None or 0 < tempo < 10_000
    except ValueError:
        pass
    describe_tags_in_words(tags)
    try:
        describe_tags(Note.from_dict({"tags": tags}).tags)
    except ValueError:
        pass


@fuzz
@given(st.lists(lines_of(GOOD_ROW, list(GOOD_ROW)), max_size=4))
def test_score_files(tmp_path_factory, lines):
    path = tmp_path_factory.getbasetemp() / "scores.jsonl"
    path.write_bytes(b"".join(lines))
    record = Record(**GOOD_RECORD | {"captions": ("song",)})
    try:
        stats = measure_scores([path])
        for row in ScoreRows([path]):
            is_of_this_sound(row, path, record)
            label_record(record, row, stats, STATS, per_source=True)
    except ValueError:
        pass
    try:
        KeyedRows(path.parent, path.stem, done="ok")
    except ValueError:
        pass


@fuzz
@given(VALUES, st.dictionaries(st.sampled_from([*STATS.to_dict(), "text_alignment", "sources"]), VALUES))
def test_statistics(tmp_path_factory, values, changes):
    path = tmp_path_factory.getbasetemp() / "stats.json"
    for content in (values, STATS.to_dict() | changes):
        path.write_bytes(encode_json_line(content))
        for load in (QualityStats.load, ScoreStats.load):
            try:
                load(path)
            except ValueError:
                pass


@fuzz
@given(VALUES, TEXTS)
def test_answers(values, text):
    for completion in (values, {"choices": [{"message": {"content": text}}], "usage": values}, {"choices": values}):
        try:
            read_answer(completion)
        except RowFailed:
            pass
    for content in (text, json.dumps(values), json.dumps({"captions": values})):
        for read in (read_fusion, read_suggestions):
            try:
                read(content, model="m")
            except ValueError:
                pass


@fuzz
@given(st.binary() | st.text())
def test_json(text):
    try:
        parse_json(text)
    except ValueError:
        pass


@pytest.mark.parametrize("number", [10**400, -(10**400)])
def test_numbers_beyond_floats(number):
    with pytest.raises(ValueError, match="must be a finite number"):
        parse_line(encode_json_line(GOOD_RECORD | {"start_in_s": number}))
