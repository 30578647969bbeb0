"""Makes a manifest of a folder of music, with what tables, files beside the music and its own tags say about it.

    python data_prep/build_manifest.py music --table music/captions.csv

Long files are cut into clips. Where something is said about a part of a file (a caption or a score with `start_in_s`), the
cuts keep to that part, so that each clip has the caption and the score of its own music. Silent clips, files that sound
the same as another, files, rows and tags that cannot be read are left out: they are counted, listed with the reason in
`manifest.bad.jsonl`, and make the exit status 1. So are files that are cut off, of which what can be decoded is taken.
The command may be killed; again, it reads only what it had not read.
`data_prep.music_metadata` says what tables and files may hold.
"""

import argparse
import dataclasses
import hashlib
import importlib.util
import math
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from data_prep.music_metadata import Note, describe_tags, read_embedded_tags, read_sidecars, read_table
from qamdt.files import printable, write_json_lines
from qamdt.keyed_rows import DONE, KeyedRows, file_identity, make_key, make_row
from qamdt.manifest import Record, write_manifest
from qamdt.outputs import check_output
from qamdt.sound_files import SoundLength, iterate_blocks, list_sound_files, measure_length, open_sound


LEVEL_FRAME_IN_S = 0.1
SCAN_VERSION = 3  # raise it when a scan finds something else in the same file
SILENCE = 1e-3  # a clip whose peak stays below is silent
DEFAULT_CLIP_IN_S = 10.24  # what the presets crop


@dataclass(frozen=True, kw_only=True)
class Scan:
    """What one pass over a sound file finds.

    Args:
        duration_in_s: Its length, as far as it can be decoded.
        digest: Of its samples, whatever the file is called and however it is compressed without loss.
        peaks: Peak of every `LEVEL_FRAME_IN_S`.
        missing_in_s: How much more its header promises; `None` where it is cut and does not say how much.
    """

    duration_in_s: float
    digest: str
    peaks: list[float]
    missing_in_s: float | None = 0.0


def scan_audio(path: Path) -> Scan:
    """Decodes a file from end to end."""
    length = measure_length(path)
    digest, peaks, num_samples = hashlib.sha256(), [], 0
    with open_sound(path) as file:
        rate = file.samplerate
        frame = round(LEVEL_FRAME_IN_S * rate)
        for block in iterate_blocks(file, round(length.duration_in_s * rate), multiple_of=frame):
            mono = block.mean(axis=1)
            if not np.isfinite(mono).all():
                raise ValueError("it holds samples that are not finite.")
            digest.update((mono * 32767).clip(-32768, 32767).astype(np.int16).tobytes())
            num_samples += len(mono)
            padded = np.pad(np.abs(mono), (0, -len(mono) % frame))
            peaks += padded.reshape(-1, frame).max(axis=1).round(5).tolist()
    if num_samples == 0:
        raise ValueError("it holds no sound.")
    length = SoundLength(
        duration_in_s=num_samples / rate,
        missing_in_s=length.missing_in_s
        + max(length.duration_in_s - num_samples / rate, 0.0),  # damaged in the middle
    )
    missing_in_s = 0.0 if not length.is_cut else None if math.isinf(length.missing_in_s) else length.missing_in_s
    return Scan(
        duration_in_s=length.duration_in_s,
        digest=f"{rate}-{digest.hexdigest()}",
        peaks=peaks,
        missing_in_s=missing_in_s,
    )


def cut(scan: Scan, notes: list[Note], *, clip_in_s: float, min_in_s: float) -> list[tuple[float, float, list[Note]]]:
    """Cuts a file into clips; returns start, length and the notes that hold for each.

    Parts that notes are about are cut one by one; a file without such notes is one part. What is left of a part after
    its whole clips makes a shorter clip if it is long enough.
    """
    general = [note for note in notes if note.start_in_s is None]
    parts: dict[tuple[float, float], list[Note]] = {}
    for note in notes:
        if note.start_in_s is not None:
            end = scan.duration_in_s if note.duration_in_s is None else note.start_in_s + note.duration_in_s
            parts.setdefault((note.start_in_s, min(end, scan.duration_in_s)), []).append(note)
    clips = []
    for (start, end), own in sorted(parts.items()) if parts else [((0.0, scan.duration_in_s), [])]:
        while end - start >= min_in_s:
            length = min(clip_in_s, end - start)
            clips.append((round(start, 4), round(length, 4), [*own, *general]))
            start += clip_in_s
    return clips


def make_record(path: str, start: float, length: float, notes: list[Note], defaults: dict[str, str]) -> Record:
    """Makes the record of a clip; where notes disagree, the first one holds."""
    tags: dict[str, Any] = {}
    fields: dict[str, Any] = dict(defaults)
    for note in reversed(notes):
        tags |= note.tags
        fields |= note.fields
        if note.fields.get("quality_frames"):
            fields |= _slice_curve(note, start, length)
    captions = tuple(dict.fromkeys(caption for note in notes for caption in note.captions))
    if not captions and (description := describe_tags(tags)):
        captions = (description,)
    return Record(
        id=f"{path}@{start:g}",
        path=path,
        start_in_s=start,
        duration_in_s=length,
        captions=captions,
        tags=tags,
        **fields,
    )


def find_misfit(note: Note, duration_in_s: float) -> str | None:
    """Says why a note cannot be about a part of a file of this length; `None` where it can, or is about the whole."""
    if note.start_in_s is None:
        return None
    start = note.start_in_s
    end = duration_in_s if note.duration_in_s is None else start + note.duration_in_s
    if 0 <= start < min(end, duration_in_s) and end <= duration_in_s + 0.1:
        return None
    return f"a note is about {start:g} s to {end:g} s of it, but it lasts {duration_in_s:.2f} s."


def _slice_curve(note: Note, start: float, length: float) -> dict[str, Any]:
    """Returns the part of a curve of scores that belongs to a clip, and its mean as the clip's score."""
    rate = note.fields["quality_frame_rate"]
    offset = start - (note.start_in_s or 0.0)
    first = min(round(offset * rate), len(note.fields["quality_frames"]) - 1)
    frames = note.fields["quality_frames"][first : max(first + 1, round((offset + length) * rate))]
    return {"quality_frames": tuple(frames), "quality_score": round(float(np.mean(frames)), 3)}


class ManifestBuilder:
    """Builds the manifest of one folder.

    Args:
        folder: The music.
        out: Manifest to write; must lie in `folder` or above it.
        clip_in_s: Longest clip.
        min_in_s: Shortest clip.
        reads_tags: Whether tags inside the files are read.
        source: Name of the collection, for clips whose notes name none.
        license: Licence, likewise.
    """

    def __init__(
        self,
        folder: str | Path,
        out: str | Path | None = None,
        *,
        clip_in_s: float = DEFAULT_CLIP_IN_S,
        min_in_s: float = 1.0,
        reads_tags: bool = False,
        source: str = "",
        license: str = "",
    ):
        self.folder = Path(folder)
        self.out = self.folder / "manifest.jsonl" if out is None else Path(out)
        if not self.folder.is_dir():
            raise FileNotFoundError(f"`folder` must be a folder of music, got {str(folder)!r}.")
        if not self.folder.resolve().is_relative_to(self.out.resolve().parent):
            raise ValueError(
                f"`out` must lie in {str(self.folder)!r} or above it, as paths in a manifest may not leave its folder, "
                f"got {str(self.out)!r}."
            )
        if self.out.suffix.lower() != ".jsonl":
            raise ValueError(f"`out` must be a .jsonl file, got {str(self.out)!r}.")
        if not 0 < min_in_s <= clip_in_s:
            raise ValueError(
                f"`min_in_s` and `clip_in_s` must satisfy 0 < min <= clip, got {min_in_s} and {clip_in_s}."
            )
        if reads_tags and importlib.util.find_spec("mutagen") is None:
            raise ImportError("reading tags needs the package mutagen; install it with `pip install mutagen`.")
        self.clip_in_s, self.min_in_s, self.reads_tags = clip_in_s, min_in_s, reads_tags
        self.defaults = {"source": source, "license": license}
        self.bad: list[dict[str, str]] = []
        self.counts: Counter[str] = Counter()

    def build(self, tables: list[str | Path] = (), *, num_workers: int = 4) -> Path:
        """Writes the manifest and the list of what was left out, and returns the manifest's path."""
        for path in (self.out, self.bad_path):
            check_output(path, inputs=tables, is_ours=lambda path: self._scans_path.is_file())
        noted: dict[str, list[Note]] = {}
        for table in tables:
            for path, notes in read_table(
                Path(table), lambda place, fault: self._leave_out("row", place, fault)
            ).items():
                noted.setdefault(path, []).extend(notes)
        files, refused = list_sound_files(self.folder)
        names = {file.relative_to(self.folder).as_posix(): file for file in files}
        for file, reason in refused:
            self._leave_out("unreadable", printable(file.relative_to(self.folder).as_posix()), reason)
        if noted and not noted.keys() & names.keys():
            raise ValueError(
                f"no row of {', '.join(map(str, tables))} is about a file of {str(self.folder)!r}, such as "
                f"{next(iter(names), 'none')!r}; `path` must be relative to that folder, got {next(iter(noted))!r}."
            )
        for path in sorted(noted.keys() - names.keys()):
            self._leave_out("row", path, "a row is about this file, which is not there.")

        records: list[Record] = []
        first_with: dict[str, str] = {}
        for name, scan in tqdm(self._scan_all(names, num_workers), total=len(names), unit="file", disable=None):
            if isinstance(scan, str):
                self._leave_out("unreadable", name, scan)
            elif scan.digest in first_with:
                self._leave_out("duplicate", name, f"it sounds the same as {first_with[scan.digest]}.")
            else:
                first_with[scan.digest] = name
                if scan.missing_in_s != 0.0:
                    lacks = "an unknown part" if scan.missing_in_s is None else f"{scan.missing_in_s:.2f} s"
                    reason = f"its end is missing, {lacks}; {scan.duration_in_s:.2f} s can be decoded and were taken."
                    self._leave_out("cut", name, reason)
                records += self._make_records(name, names[name], scan, noted.get(name, []))
        if not records:
            self._write_bad()
            raise ValueError(f"no clip of {str(self.folder)!r} can be used; see {self.bad_path}.")
        write_manifest(self.out, records)
        self._write_bad()
        self.counts["clips"] = len(records)
        self.counts["without caption"] = sum(not record.captions for record in records)
        return self.out

    @property
    def bad_path(self) -> Path:
        return self.out.with_suffix(".bad.jsonl")

    @property
    def _scans_path(self) -> Path:
        return self.out.with_name(f".{self.out.stem}.scans.jsonl")

    def _make_records(self, name: str, file: Path, scan: Scan, notes: list[Note]) -> list[Record]:
        """Makes the records of one file's clips; a fault leaves out the file."""
        path = (self.folder.resolve() / name).relative_to(self.out.resolve().parent).as_posix()
        records = []
        try:
            clips = cut(
                scan, self._find_notes(name, file, scan, notes), clip_in_s=self.clip_in_s, min_in_s=self.min_in_s
            )
            for start, length, own in clips:
                first = int(start / LEVEL_FRAME_IN_S)
                if max(scan.peaks[first : int((start + length) / LEVEL_FRAME_IN_S) + 1]) < SILENCE:
                    self._leave_out("silent", f"{name}@{start:g}", f"{length:g} s of silence.")
                else:
                    records.append(make_record(path, start, length, own, self.defaults))
        except ValueError as error:
            self._leave_out("wrong metadata", name, str(error))
            return []
        if not clips:
            self._leave_out("short", name, f"it lasts {scan.duration_in_s:.2f} s, less than {self.min_in_s:g} s.")
        return records

    def _find_notes(self, name: str, file: Path, scan: Scan, notes: list[Note]) -> list[Note]:
        """Returns what is said about a file, beside what tables say; what cannot be used is left out by itself."""
        report = partial(self._leave_out, "wrong metadata")
        sidecars = read_sidecars(
            file, self.folder, lambda sidecar, fault: report(name, f"{sidecar} beside it: {fault}")
        )
        found = [*notes, *sidecars]
        if self.reads_tags:
            try:
                tagged = read_embedded_tags(file)
                for fault in tagged.faults:
                    report(name, fault)
                found.append(tagged)
            except ValueError as error:
                report(name, str(error))
        fitting = []
        for note in found:
            misfit = find_misfit(note, scan.duration_in_s)
            if misfit is None:
                fitting.append(note)
            else:
                report(name, misfit)
        return fitting

    def _scan_all(self, names: dict[str, Path], num_workers: int):
        """Yields each file's name with its scan, or with what is wrong with it, in order; remembers scans on disk."""
        rows = KeyedRows(self._scans_path.parent, self._scans_path.stem)

        def scan(name: str) -> tuple[str, int, Scan | str]:
            try:
                key = make_key(SCAN_VERSION, name, file_identity(names[name]))
                if rows.status(key) == DONE:
                    return name, key, Scan(**rows.read(key)["scan"])
                return name, key, scan_audio(names[name])
            except (ValueError, OSError, RuntimeError) as error:
                return name, 0, str(error)

        # libsndfile decodes without holding the interpreter, so threads are enough.
        with rows, ThreadPoolExecutor(num_workers) as executor:
            for name, key, result in executor.map(scan, names):
                if isinstance(result, Scan) and rows.status(key) is None:
                    rows.append(make_row(key, name) | {"scan": dataclasses.asdict(result)})
                    self.counts["read"] += 1
                elif isinstance(result, Scan):
                    self.counts["known"] += 1
                yield name, result

    def _leave_out(self, kind: str, place: str, reason: str) -> None:
        self.bad.append({"kind": kind, "place": place, "reason": reason})
        self.counts[kind] += 1

    def _write_bad(self) -> None:
        write_json_lines(self.bad_path, self.bad)


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="the music")
    parser.add_argument("--table", action="append", default=[], help="CSV or JSONL file about it; may be repeated")
    parser.add_argument("--out", help="manifest to write (default: manifest.jsonl in the folder)")
    parser.add_argument(
        "--clip-in-s", type=float, default=DEFAULT_CLIP_IN_S, help="longest clip (default %(default)s)"
    )
    parser.add_argument("--min-in-s", type=float, default=1.0, help="shortest clip (default %(default)s)")
    parser.add_argument("--reads-tags", action="store_true", help="read tags inside the files (needs mutagen)")
    parser.add_argument("--source", default="", help="name of the collection")
    parser.add_argument("--license", default="", help="licence of the music")
    parser.add_argument("--num-workers", type=int, default=4, help="files read at once (default %(default)s)")
    arguments = vars(parser.parse_args(argv))
    tables, num_workers = arguments.pop("table"), arguments.pop("num_workers")
    try:
        builder = ManifestBuilder(**arguments)
        manifest = builder.build(tables, num_workers=num_workers)
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(
        f"{builder.counts['clips']} clips in {printable(str(manifest))}, {builder.counts['without caption']} of them without caption; "
        f"files read: {builder.counts['read']}, known from before: {builder.counts['known']}."
    )
    if builder.bad:
        kinds = ", ".join(
            f"{kind}: {builder.counts[kind]}" for kind in sorted({entry["kind"] for entry in builder.bad})
        )
        print(f"left out, listed in {builder.bad_path}: {kinds}", file=sys.stderr)
    return int(bool(builder.bad))


if __name__ == "__main__":
    sys.exit(main())
