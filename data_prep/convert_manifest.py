"""Turns a manifest into a Parquet table, or such a table into a manifest.

    python -m data_prep.convert_manifest corpus/manifest.jsonl corpus/manifest.parquet
    python -m data_prep.convert_manifest corpus/manifest.parquet corpus/manifest.jsonl

In the table, fields of the manifest are columns; `tags` and what other steps have added (`extra`) are JSON, as each clip
may have others. A table from elsewhere may have tags as structs, and any further columns: they are kept as fields of the
same name. Rows that describe no clip are left out, counted, listed, and make the exit status 1. One row group is in memory
at a time. A folder of sound files with a `metadata.csv`, as Hugging Face has it, is read by `data_prep.build_manifest`.
"""

import argparse
import itertools
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from qamdt.files import encode_json_line, replacing, write_json_lines
from qamdt.manifest import Record, parse_line, scan_manifest
from qamdt.outputs import check_output


ROWS_PER_GROUP = 20_000
NUM_LISTED = 20
_STRINGS = ("id", "path", "source", "license", "quality_scorer", "time_signature", "key", "tags", "extra")
_NUMBERS = ("duration_in_s", "start_in_s", "quality_score", "quality_frame_rate", "tempo_bpm", "first_beat_in_s")


def write_table(manifest: Path, out: Path) -> list[str]:
    """Writes the clips of a manifest as a Parquet table, and returns what is wrong with the lines that describe none."""
    pyarrow, parquet = _import_pyarrow()
    point = pyarrow.struct([("second", pyarrow.float64()), ("symbol", pyarrow.string())])
    columns = [(name, pyarrow.string()) for name in _STRINGS] + [(name, pyarrow.float64()) for name in _NUMBERS]
    columns += [("captions", pyarrow.list_(pyarrow.string())), ("quality_frames", pyarrow.list_(pyarrow.float64()))]
    schema = pyarrow.schema([*columns, ("chords", pyarrow.list_(point))])
    faults: list[str] = []
    records = _good_records(manifest, faults)
    with replacing(out) as temporary, parquet.ParquetWriter(temporary, schema, compression="zstd") as writer:
        while rows := [_make_row(record) for record in itertools.islice(records, ROWS_PER_GROUP)]:
            writer.write_table(pyarrow.Table.from_pylist(rows, schema))
    return faults


def _good_records(manifest: Path, faults: list[str]) -> Iterator[Record]:
    for line in scan_manifest(manifest):
        if line.record is None:
            faults.append(f"line {line.number}: {line.fault}")
        else:
            yield line.record


def _make_row(record: Record) -> dict[str, Any]:
    row = record.to_dict()
    extra = {name: row.pop(name) for name in record.extra}
    if record.chords is not None:
        row["chords"] = [{"second": second, "symbol": symbol} for second, symbol in record.chords]
    return row | {"tags": json.dumps(record.tags, ensure_ascii=False), "extra": json.dumps(extra, ensure_ascii=False)}


def write_manifest_of(table: Path, out: Path) -> list[str]:
    """Writes the rows of a Parquet table as a manifest, and returns what is wrong with the rows that describe no clip."""
    _, parquet = _import_pyarrow()
    faults: list[str] = []
    with parquet.ParquetFile(table) as file:
        batches = file.iter_batches(batch_size=ROWS_PER_GROUP)
        rows = itertools.chain.from_iterable(batch.to_pylist() for batch in batches)
        write_json_lines(out, (record.to_dict() for record in _read_rows(rows, faults)))
    return faults


def _read_rows(rows: Iterable[dict[str, Any]], faults: list[str]) -> Iterator[Record]:
    for number, row in enumerate(rows, start=1):
        try:
            extra = row.pop("extra", None)
            values = {name: value for name, value in row.items() if value is not None}
            for name in ("tags", "captions"):
                if isinstance(values.get(name), str) and values[name][:1] in "[{":
                    values[name] = json.loads(values[name])
            if isinstance(values.get("captions"), str):
                values["captions"] = [values["captions"]]
            if isinstance(values.get("tags"), dict):
                values["tags"] = {name: value for name, value in values["tags"].items() if value is not None}
            if isinstance(values.get("chords"), list) and all(isinstance(point, dict) for point in values["chords"]):
                values["chords"] = [[point["second"], point["symbol"]] for point in values["chords"]]
            # Through a line, so that what no other step would read is refused here.
            yield parse_line(encode_json_line(values | (json.loads(extra) if extra else {})))
        except (ValueError, TypeError, KeyError) as error:
            faults.append(f"row {number}: {error}")


def _import_pyarrow():
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise RuntimeError("reading and writing Parquet needs pyarrow: pip install 'qamdt[labels]'.") from error
    return pyarrow, parquet


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="manifest (.jsonl) or table (.parquet)")
    parser.add_argument("out", type=Path, help="the other of the two; paths in it are relative to its folder")
    parser.add_argument("--overwrite", action="store_true", help="replace the output if it is there")
    arguments = parser.parse_args(argv)
    source, out = arguments.source, arguments.out
    try:
        if {source.suffix, out.suffix} != {".jsonl", ".parquet"}:
            raise ValueError(f"expected a .jsonl and a .parquet file, got {str(source)!r} and {str(out)!r}.")
        if source.resolve().parent != out.resolve().parent:
            raise ValueError(
                f"{str(out)!r} must lie beside {str(source)!r}, as paths in both are relative to their folder."
            )
        check_output(out, inputs=[source], is_ours=lambda path: arguments.overwrite, hint=", or pass `--overwrite`")
        faults = write_table(source, out) if out.suffix == ".parquet" else write_manifest_of(source, out)
    except (ValueError, OSError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"wrote {out}")
    for fault in faults[:NUM_LISTED]:
        print(f"  {source.name}, {fault}", file=sys.stderr)
    if faults:
        print(f"{len(faults)} rows describe no clip and were left out.", file=sys.stderr)
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
