"""The folder of encoded music that training reads: latents, and apart from them what is said about them.

    latents-…, text-…            shards of latents and text states, which are encoded once; see `qamdt.shards`
    clips-….jsonl                the clips in order: what the manifest says about each, and the place of its latents
    texts-….jsonl                every text that training can draw, and the place of its states
    curves-00000-….safetensors   curves by name, such as `quality` (frames,), others (frames, dims): those of the clips
                                 whose latents lie in one shard, end to end in the order of the clips
    index.json                   which of these files belong together, shapes, counts, scaling factor; written last

All but the shards follow from the manifest and cost no encoding. Names end in a digest of the content: a new index names
new files and leaves the old ones alone, so a training that reads them goes on, and a process may be killed anywhere. The
folder may lie on a disk or behind an fsspec URL.
"""

import functools
import hashlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as save_to_bytes

from qamdt.files import encode_json_line, read_json, read_json_lines, write_atomically, write_json
from qamdt.manifest import Record
from qamdt.shards import Place, measure_scaling_factor, read_shape


INDEX_NAME = "index.json"
FORMAT = 2

Clip = tuple[Record, Place]


def round_score(score: float) -> float:
    """Rounds an opinion score, so that one stored in fp32 and one from JSON fall on the same side of a threshold."""
    return round(float(score), 3)


def write_index(
    folder: Path,
    clips: list[Clip],
    texts: Mapping[str, Place],
    make_curves: Callable[[Record, int], dict[str, torch.Tensor]],
    description: dict[str, Any],
) -> dict[str, Any]:
    """Writes what is said about the latents in a folder, and returns what `index.json` holds.

    Args:
        folder: The folder of shards.
        clips: The clips in order, with the places of their latents.
        texts: The places of the states of every text that training can draw, the empty one among them.
        make_curves: Returns the curves of a clip by name, given how many latent frames it has, each `(frames,)` or
            `(frames, dims)`; a name that it leaves out is unknown, NaN.
        description: What else the index holds.
    """
    lengths = [place.length for _, place in clips]
    first_clip, first_text = clips[0][1].shard, texts[""].shard
    _, channels, bins = read_shape(folder / first_clip, "mean")
    curve_files, curve_shapes = _write_curves(folder, clips, make_curves)
    clip_rows = [{"record": record.to_dict(), "latents": vars(place)} for record, place in clips]
    text_rows = [{"text": text, "states": vars(place)} for text, place in texts.items()]
    index = {
        "format": FORMAT,
        "num_clips": len(clips),
        "num_latent_frames": sum(lengths),
        "shortest_clip_in_frames": min(lengths),
        "longest_clip_in_frames": max(lengths),
        "latent_channels": channels,
        "latent_bins": bins,
        "scaling_factor": measure_scaling_factor(folder, (place for _, place in clips)),
        "num_texts": len(texts),
        "text_dim": read_shape(folder / first_text, "hidden_states")[1],
        "curves": curve_shapes,
        "records_digest": _digest(b"".join(encode_json_line(row["record"]) for row in clip_rows)),
        **description,
        "files": {
            "clips": _write_lines(folder, "clips", clip_rows),
            "texts": _write_lines(folder, "texts", text_rows),
            "curves": curve_files,
        },
    }
    write_json(folder / INDEX_NAME, index)
    return index


def _write_curves(
    folder: Path, clips: list[Clip], make_curves: Callable[[Record, int], dict[str, torch.Tensor]]
) -> tuple[dict[str, str], dict[str, list[int]]]:
    """Writes the curves of the clips in each shard; returns the file of each shard, and what follows the frames."""
    by_shard: dict[str, list[Clip]] = {}
    for record, place in clips:
        by_shard.setdefault(place.shard, []).append((record, place))
    files, shapes = {}, {}
    for number, (shard, some) in enumerate(sorted(by_shard.items())):
        curves = [make_curves(record, place.length) for record, place in some]
        found = {name: curve.shape[1:] for curves_of_clip in curves for name, curve in curves_of_clip.items()}
        joined = {}
        for name, shape in found.items():
            parts = [
                curves_of_clip.get(name, torch.full((place.length, *shape), torch.nan))
                for curves_of_clip, (_, place) in zip(curves, some, strict=True)
            ]
            joined[name] = torch.cat(parts).float().contiguous()
        if joined:
            files[shard] = _write_named(folder, f"curves-{number:05d}", ".safetensors", save_to_bytes(joined))
        shapes |= {name: list(shape) for name, shape in found.items()}
    return files, dict(sorted(shapes.items()))


def _write_lines(folder: Path, stem: str, rows: Iterable[Any]) -> str:
    return _write_named(folder, stem, ".jsonl", b"".join(map(encode_json_line, rows)))


def _write_named(folder: Path, stem: str, suffix: str, content: bytes) -> str:
    """Writes a file whose name says what is in it, and returns the name."""
    name = f"{stem}-{_digest(content)}{suffix}"
    if not (folder / name).is_file():
        write_atomically(folder / name, lambda file: file.write_bytes(content))
    return name


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=6).hexdigest()


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


def read_clips(folder: LatentFolder) -> list[Clip]:
    """Returns the clips that the index of a folder names, in order."""
    rows = _read_rows(folder, "clips", folder.index["num_clips"])
    return [(Record.from_dict(row["record"]), Place(**row["latents"])) for row in rows]


def read_texts(folder: LatentFolder) -> dict[str, Place]:
    """Returns the texts that the index of a folder names."""
    rows = _read_rows(folder, "texts", folder.index["num_texts"])
    return {row["text"]: Place(**row["states"]) for row in rows}


def _read_rows(folder: LatentFolder, kind: str, count: int) -> list[dict[str, Any]]:
    path = folder.file(folder.index["files"][kind])
    rows = list(read_json_lines(path))
    if len(rows) != count:
        raise RuntimeError(
            f"{path} has {len(rows)} whole lines, but {INDEX_NAME} says {count}; delete it and encode again."
        )
    return rows


def find_unnamed_files(folder: Path) -> list[Path]:
    """Returns the shards and lists in a folder that its index does not name: those of clips, texts and indices of before."""
    latents = LatentFolder(folder)
    files = latents.index["files"]
    named = {files["clips"], files["texts"], *files["curves"].values()}
    named |= {place.shard for _, place in read_clips(latents)} | {
        place.shard for place in read_texts(latents).values()
    }
    kinds = ("latents", "text", "clips", "texts", "curves", "records")
    found = [path for kind in kinds for path in folder.glob(f"{kind}-*") if path.suffix in (".safetensors", ".jsonl")]
    return sorted(path for path in found if path.name not in named)


class LatentReader:
    """Reads the clips of a folder of encoded music, any crop of any clip.

    Args:
        folder: The folder.
    """

    def __init__(self, folder: LatentFolder | str | Path):
        self._folder = folder if isinstance(folder, LatentFolder) else open_folder(folder)
        clips = read_clips(self._folder)
        self.records = [record for record, _ in clips]
        self.names = sorted({place.shard for _, place in clips})
        numbers = {name: number for number, name in enumerate(self.names)}
        self.shards = np.array([numbers[place.shard] for _, place in clips])  # shard of each clip
        self.lengths = np.array([place.length for _, place in clips])  # latent frames of each clip
        self._starts = np.array([place.start for _, place in clips])
        self._curve_starts = _running_totals(self.shards, self.lengths)
        self._curve_files = self._folder.index["files"]["curves"]
        self._curve_shapes = self._folder.index["curves"]
        self._files: dict[str, safe_open] = {}
        self._folder.check([*self.names, *self._curve_files.values()])

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
        begin = int(self._starts[clip]) + start
        mean, std = (self._open(shard).get_slice(name)[begin : begin + num_frames].float() for name in ("mean", "std"))
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
            file, begin = self._open(self._curve_files[shard]), int(self._curve_starts[clip]) + start
            curves |= {name: file.get_slice(name)[begin : begin + num_frames] for name in file.keys()}
        return curves

    def _open(self, name: str) -> safe_open:
        if name not in self._files:
            self._files[name] = self._folder.open_tensors(name)
        return self._files[name]

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_files": {}}


def _running_totals(groups: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Returns the sum of the lengths before each entry that belong to its group."""
    order = np.argsort(groups, kind="stable")
    starts = np.cumsum(lengths[order]) - lengths[order]
    totals = np.empty(len(groups), dtype=np.int64)
    totals[order] = starts - starts[np.searchsorted(groups[order], groups[order])]
    return totals


class TextReader:
    """Reads cached text-encoder states by text.

    Args:
        folder: The folder of encoded music.
    """

    def __init__(self, folder: LatentFolder | str | Path):
        self._folder = folder if isinstance(folder, LatentFolder) else open_folder(folder)
        self._places = read_texts(self._folder)
        self._files: dict[str, safe_open] = {}

    def __contains__(self, text: str) -> bool:
        return text in self._places

    def __len__(self) -> int:
        return len(self._places)

    def read(self, text: str) -> torch.Tensor:
        """Returns the states `(text_tokens, dim)` of a text, fp32."""
        if text not in self._places:
            raise ValueError(
                f"the text {text!r} has no cached states in {self._folder.name!r}; run `python -m "
                "data_prep.encode_latents` again."
            )
        place = self._places[text]
        if place.shard not in self._files:
            self._files[place.shard] = self._folder.open_tensors(place.shard)
        return self._files[place.shard].get_slice("hidden_states")[place.start : place.start + place.length].float()

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_files": {}}
