"""The folder of encoded music that training reads: latents, and apart from them what is said about them.

    latents-…, text-…            shards of latents and text states, which are encoded once; see `qamdt.shards`
    clips-….jsonl                the clips in order: what the manifest says about each, and the place of its latents
    texts-….jsonl                every text that training can draw, and the place of its states
    clips-….npy, texts-….npy     what is needed of all of them, as columns; see `qamdt.latent_columns`
    curves-00000-….safetensors   curves by name, such as `quality` (frames,), others (frames, dims): those of the clips
                                 whose latents lie in one shard, end to end in the order of the clips
    index.json                   which of these files belong together, shapes, counts, scaling factor; written last

All but the shards follow from the manifest and cost no encoding. Names end in a digest of the content: a new index names
new files and leaves the old ones alone, so a training that reads them goes on, and a process may be killed anywhere. The
folder may lie on a disk or behind an fsspec URL.
"""

import functools
import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from qamdt.files import iterate_lines, parse_json, read_json, write_atomically
from qamdt.keyed_rows import hash_text
from qamdt.latent_columns import CLIP, TEXT, ColumnBuilder, RecordReader, read_columns
from qamdt.manifest import Record
from qamdt.shards import UNFINISHED, Place


INDEX_NAME = "index.json"
FORMAT = 2
MOST_OPEN_FILES = 128  # of each kind, in each process
_SUFFIXES = (".safetensors", ".jsonl", ".npy")

Clip = tuple[Record, Place]


def round_score(score: float) -> float:
    """Rounds an opinion score, so that one stored in fp32 and one from JSON fall on the same side of a threshold."""
    return round(float(score), 3)


class LatentFolder:
    """A finished folder of encoded music on a disk.

    Args:
        path: The folder.
    """

    def __init__(self, path: str | Path):
        self.name = str(path)
        self._path = Path(path)

    @functools.cached_property
    def index(self) -> dict[str, Any]:
        """What `index.json` holds, which is there once every clip is encoded."""
        try:
            index = read_json(self.file(INDEX_NAME))
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{self.name!r} has no {INDEX_NAME}, so it is no finished folder of latents; "
                "make one with `python -m data_prep.encode_latents`, or run that again to finish it."
            ) from error
        found = index.get("format") if isinstance(index, dict) else None
        if found != FORMAT:
            raise ValueError(
                f"{self.name!r} has format {found}, and this version reads format {FORMAT}; run `python -m "
                "data_prep.encode_latents` on the folder with the options of before, which takes over latents of format "
                "1 without encoding them again."
            )
        return index

    def file(self, name: str) -> Path:
        """Returns where the file `name` can be read."""
        return self._path / name

    def open_tensors(self, name: str) -> safe_open:
        """Opens a file of tensors."""
        path = self.file(name)
        try:
            return safe_open(path, framework="pt")
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{path} is not there, but {INDEX_NAME} names it; run `python -m data_prep.encode_latents` again."
            ) from error
        except SafetensorError as error:
            raise RuntimeError(f"{path} is damaged ({error}); delete it and encode again.") from error

    def check(self, names: Iterable[str]) -> None:
        """Opens files of tensors, so that a damaged or missing one is found at once and not in the middle of a run."""
        for name in names:
            self.open_tensors(name)


class RemoteLatentFolder(LatentFolder):
    """A finished folder of encoded music behind an fsspec URL; files are fetched when first asked for, and kept.

    Args:
        url: The folder's URL, such as `s3://bucket/latents`.
        cache_dir: Where fetched files go.
    """

    def __init__(self, url: str, cache_dir: str | Path):
        self.name = url.rstrip("/")
        self._path = Path(cache_dir) / hashlib.sha256(self.name.encode()).hexdigest()[:16]
        self._path.mkdir(parents=True, exist_ok=True)
        self._fetch(INDEX_NAME)

    def file(self, name: str) -> Path:
        if not (self._path / name).is_file():
            self._fetch(name)
        return self._path / name

    def check(self, names: Iterable[str]) -> None:
        """Does nothing, so that a run can begin before all files have arrived."""

    def _fetch(self, name: str) -> None:
        try:
            with fsspec.open(f"{self.name}/{name}", "rb") as file:
                content = file.read()
        except ImportError as error:
            raise RuntimeError(f"reading {self.name!r} needs another package: {error}") from error
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"there is no {name} in {self.name!r}; upload a folder that `python -m data_prep.encode_latents` finished."
            ) from error
        write_atomically(self._path / name, lambda file: file.write_bytes(content))


def open_folder(folder: str | Path, cache_dir: str | Path = "data/cache") -> LatentFolder:
    """Opens a folder of encoded music by its path or its URL."""
    return RemoteLatentFolder(str(folder), cache_dir) if "://" in str(folder) else LatentFolder(folder)


def iterate_clips(folder: LatentFolder) -> Iterator[Clip]:
    """Yields the clips that the index of a folder names, in order."""
    return (clip for _, clip in _scan_clips(folder))


def _scan_clips(folder: LatentFolder) -> Iterator[tuple[int, Clip]]:
    """Yields the clips, each with where its line begins."""
    for offset, row in _scan_rows(folder, "clips", folder.index["num_clips"]):
        yield offset, (Record.from_dict(row["record"]), Place(**row["latents"]))


def read_texts(folder: LatentFolder) -> dict[str, Place]:
    """Returns the texts that the index of a folder names."""
    rows = _scan_rows(folder, "texts", folder.index["num_texts"])
    return {row["text"]: Place(**row["states"]) for _, row in rows}


def _scan_rows(folder: LatentFolder, kind: str, count: int) -> Iterator[tuple[int, dict[str, Any]]]:
    path = folder.file(folder.index["files"][kind])
    found = 0
    for offset, line in iterate_lines(path):
        yield offset, parse_json(line)
        found += 1
    if found != count:
        raise RuntimeError(
            f"{path} has {found} whole lines, but {INDEX_NAME} says {count}; delete it and encode again."
        )


def find_unnamed_files(folder: Path) -> list[Path]:
    """Returns the shards and lists in a folder that its index does not name: those of clips, texts and indices of before."""
    latents = LatentFolder(folder)
    files, columns = latents.index["files"], latents.index.get("columns", {})
    named = {files["clips"], files["texts"], *files["curves"].values(), columns.get("clips"), columns.get("texts")}
    named |= {*LatentReader(latents).names, *TextReader(latents).names}
    kinds = ("latents", "text", "clips", "texts", "curves", "records", UNFINISHED)
    found = [path for kind in kinds for path in folder.glob(f"{kind}-*") if path.suffix in _SUFFIXES]
    return sorted(path for path in found if path.name not in named)


class _OpenFiles:
    """Files of tensors that stay open while they are in use, the most recent ones."""

    def __init__(self, folder: LatentFolder):
        self._folder = folder
        self._files: OrderedDict[str, safe_open] = OrderedDict()

    def __getitem__(self, name: str) -> safe_open:
        if name not in self._files:
            self._files[name] = self._folder.open_tensors(name)
            if len(self._files) > MOST_OPEN_FILES:
                self._files.popitem(last=False)
        self._files.move_to_end(name)
        return self._files[name]

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_files": OrderedDict()}


class LatentReader:
    """Reads the clips of a folder of encoded music, any crop of any clip.

    Args:
        folder: The folder.
    """

    def __init__(self, folder: LatentFolder | str | Path):
        self._folder = folder if isinstance(folder, LatentFolder) else open_folder(folder)
        self._map()
        self._curve_files = self._folder.index["files"]["curves"]
        self._curve_shapes = self._folder.index["curves"]
        self._files = _OpenFiles(self._folder)
        self._folder.check([*self.names, *self._curve_files.values()])

    def _map(self) -> None:
        index = self._folder.index
        path = self._folder.file(index["files"]["clips"])
        if "columns" in index:
            self.names = index["columns"]["latents"]
            self.columns = read_columns(self._folder.file(index["columns"]["clips"]), CLIP, index["num_clips"])
        else:  # as earlier versions wrote it
            builder = ColumnBuilder()
            for offset, (record, place) in _scan_clips(self._folder):
                builder.add_clip(offset, record, place)
            self.columns, self.names = builder.clips()
        self.records = RecordReader(path, self.columns["offset"])
        if not self.records.has_last_line():
            raise RuntimeError(f"{path} lacks lines that {INDEX_NAME} counts; delete it and encode again.")

    @property
    def shards(self) -> np.ndarray:
        """The number of the shard of each clip, an index of `names`."""
        return self.columns["shard"]

    @property
    def lengths(self) -> np.ndarray:
        """The latent frames of each clip."""
        return self.columns["length"]

    def __len__(self) -> int:
        return len(self.records)

    def read(
        self, clip: int, start: int, num_frames: int
    ) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        """Returns mean and std `(channels, num_frames, latent_bins)` of a crop, and its curves by name, all fp32.

        Curves are `(num_frames,)` or `(num_frames, dims)`, NaN where unknown; there is one for each name that the index
        knows.
        """
        if start < 0 or start + num_frames > self.lengths[clip]:
            raise ValueError(
                f"the crop {start}+{num_frames} leaves clip {self.records[clip].id!r}, "
                f"which has {self.lengths[clip]} latent frames."
            )
        shard = self.names[self.shards[clip]]
        begin = int(self.columns["start"][clip]) + start
        mean, std = (
            self._files[shard].get_slice(name)[begin : begin + num_frames].float() for name in ("mean", "std")
        )
        if not (mean.isfinite().all() and std.isfinite().all()):
            raise ValueError(
                f"clip {self.records[clip].id!r} in {self._folder.file(shard)} has latents that are not finite; "
                "delete that shard and encode again."
            )
        return mean.permute(1, 0, 2), std.permute(1, 0, 2), self._read_curves(clip, start, num_frames)

    def _read_curves(self, clip: int, start: int, num_frames: int) -> dict[str, torch.Tensor]:
        curves = {name: torch.full((num_frames, *shape), torch.nan) for name, shape in self._curve_shapes.items()}
        shard = self.names[self.shards[clip]]
        if shard in self._curve_files:
            file, begin = self._files[self._curve_files[shard]], int(self.columns["curve_start"][clip]) + start
            curves |= {name: file.get_slice(name)[begin : begin + num_frames] for name in file.keys()}
        return curves

    def __getstate__(self) -> dict:
        return {name: value for name, value in self.__dict__.items() if name not in ("columns", "names", "records")}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._map()


class TextReader:
    """Reads cached text-encoder states by text.

    Args:
        folder: The folder of encoded music.
    """

    def __init__(self, folder: LatentFolder | str | Path):
        self._folder = folder if isinstance(folder, LatentFolder) else open_folder(folder)
        self._map()
        self._files = _OpenFiles(self._folder)

    def _map(self) -> None:
        index = self._folder.index
        if "columns" in index:
            self.names = index["columns"]["text"]
            self._columns = read_columns(self._folder.file(index["columns"]["texts"]), TEXT, index["num_texts"])
        else:
            builder = ColumnBuilder()
            for text, place in read_texts(self._folder).items():
                builder.add_text(text, place)
            self._columns, self.names = builder.texts()
        self._texts = self._columns["text"]

    def _find(self, text: str) -> int | None:
        number = hash_text(text)
        row = int(self._texts.searchsorted(np.uint64(number)))
        return row if row < len(self) and int(self._texts[row]) == number else None

    def __contains__(self, text: str) -> bool:
        return self._find(text) is not None

    def __len__(self) -> int:
        return len(self._texts)

    def read(self, text: str) -> torch.Tensor:
        """Returns the states `(text_tokens, dim)` of a text, fp32."""
        row = self._find(text)
        if row is None:
            raise ValueError(
                f"the text {text!r} has no cached states in {self._folder.name!r}; run `python -m "
                "data_prep.encode_latents` again."
            )
        _, shard, start, length = self._columns[row].tolist()
        return self._files[self.names[shard]].get_slice("hidden_states")[start : start + length].float()

    def __getstate__(self) -> dict:
        return {name: value for name, value in self.__dict__.items() if name not in ("_columns", "names", "_texts")}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._map()
