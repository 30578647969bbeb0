"""The clips and the texts of a corpus in columns: some bytes of memory for each, what is said about them stays on disk."""

from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from qamdt.keyed_rows import make_key
from qamdt.latent_folder import Clip
from qamdt.line_index import LineReader
from qamdt.manifest import Record, parse_line, scan_manifest
from qamdt.shards import Entries, Place


class ManifestRecords(Sequence):
    """Some of the records of a manifest, each read when it is asked for.

    Args:
        lines: Their lines.
    """

    def __init__(self, lines: LineReader):
        self._lines = lines

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, position: int) -> Record:
        if not 0 <= position < len(self):
            raise IndexError(f"there are {len(self)} clips, and none has the number {position}")
        return parse_line(self._lines.read(position))


def choose_records(
    manifest: Path, split: str | None, limit: int | None
) -> tuple[ManifestRecords, list[dict[str, int | str]]]:
    """Returns the clips to encode, and the lines of the manifest that describe none, each with what is wrong with it.

    Args:
        manifest: The manifest of the corpus.
        split: Only clips whose tag `split` has this value.
        limit: Only so many of them.
    """
    offsets, bad_lines = array("Q"), []
    for line in scan_manifest(manifest):
        if line.record is None:
            bad_lines.append({"line": line.number, "error": line.fault})
        elif split is None or line.record.tags.get("split") == split:
            offsets.append(line.offset)
    chosen = np.array(offsets, np.uint64)[:limit]
    if not len(chosen):
        faults = f"; the first of {len(bad_lines)} bad lines: {bad_lines[0]}" if bad_lines else ""
        raise ValueError(
            f"no clip of {str(manifest)!r} is left to encode (`split` is {split!r}, `limit` {limit}){faults}."
        )
    return ManifestRecords(LineReader(manifest, chosen)), bad_lines


class PlacedClips(Sequence):
    """Clips with the places of their latents, without those that have none.

    Args:
        records: The records.
        keys: Key of each.
        entries: Where the latents of the keys are.
        others: Places of clips that are known by something else, by position.
    """

    def __init__(
        self, records: Sequence[Record], keys: np.ndarray, entries: Entries, others: Mapping[int, Place] | None = None
    ):
        self._records, self._keys, self._entries, self._others = records, keys, entries, others or {}
        is_there = entries.have(keys)
        is_there[list(self._others)] = True
        self.positions = np.flatnonzero(is_there)

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, number: int) -> Clip:
        position = int(self.positions[number])
        place = self._others.get(position) or self._entries[int(self._keys[position])]
        return self._records[position], place


class TextTable(Mapping):
    """The distinct texts that training can draw for some clips, shortest first, with the places of their states.

    Args:
        records: The records.
        positions: Which of them count.
        list_texts: Returns the texts of a record.
        read_by: What their states depend on.
    """

    def __init__(
        self,
        records: Sequence[Record],
        positions: Iterable[int],
        list_texts: Callable[[Record], list[str]],
        read_by: dict,
    ):
        self._records, self._list_texts, self._read_by = records, list_texts, read_by
        self.entries: Entries | None = None
        keys, lengths, owners = array("Q"), array("I"), array("q")
        for text, owner in self._list_all(positions):
            keys.append(self._make_key(text))
            lengths.append(len(text))
            owners.append(owner)
        self.keys, first = np.unique(np.array(keys, np.uint64), return_index=True)
        lengths = np.array(lengths)[first]
        order = np.lexsort((self.keys, lengths))
        self.keys, self._owners = self.keys[order], np.array(owners)[first][order]

    def _list_all(self, positions: Iterable[int]) -> Iterator[tuple[str, int]]:
        """Yields each text with the record that it belongs to; the empty one belongs to none."""
        yield "", -1
        for position in map(int, positions):
            for text in self._list_texts(self._records[position]):
                yield text, position

    def _make_key(self, text: str) -> int:
        return make_key("text", text, self._read_by)

    def read(self, number: int) -> str:
        """Returns a text by its number; `keys` has its key."""
        owner = int(self._owners[number])
        if owner < 0:
            return ""
        key = int(self.keys[number])
        texts = self._list_texts(self._records[owner])
        return next(text for text in texts if self._make_key(text) == key)

    def __len__(self) -> int:
        return len(self.keys)

    def __iter__(self) -> Iterator[str]:
        return (self.read(number) for number in range(len(self)))

    def __getitem__(self, text: str) -> Place:
        return self.entries[self._make_key(text)]
