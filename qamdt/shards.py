"""The folder of encoded music that training reads: its files, a writer for each, and the readers.

    index.json                    shapes, counts, latent scaling factor, quality statistics; written last
    latents-00000.safetensors     `mean`, `std` (frames, channels, bins) fp16: the VAE posterior of many clips, end to end
                                  `quality` (frames,) fp32: opinion score of each latent frame, NaN where unknown
                                  `offsets` (clips + 1,): clip i owns the frames offsets[i] to offsets[i + 1]
    records-00000.jsonl           the manifest records of those clips, in the same order
    text-00000.safetensors        `hidden_states` (tokens, dim) fp16 of many texts, end to end, and `offsets` (texts + 1,)
    texts-00000.jsonl             those texts, one JSON string a line

The folder may lie on a disk or behind an fsspec URL. Time comes first in the files, so a crop is one contiguous read. A shard exists once its safetensors file does: that file
is renamed into place after everything else of the shard, so a process may be killed anywhere.
"""

import functools
import hashlib
import json
from pathlib import Path

import fsspec
import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from qamdt.files import write_atomically, write_json_lines
from qamdt.manifest import Record, read_manifest, write_manifest


INDEX_NAME = "index.json"


def round_score(score: float) -> float:
    """Rounds an opinion score, so that one stored in fp32 and one from JSON fall on the same side of a threshold."""
    return round(float(score), 3)


def digest_weights(folder: Path) -> str:
    """Returns the SHA-256 of a model's weights, by which a folder of latents remembers its autoencoder."""
    weights = sorted(folder.glob("*.safetensors"))
    return hashlib.sha256(b"".join(hashlib.sha256(file.read_bytes()).digest() for file in weights)).hexdigest()


def list_shards(folder: Path, kind: str) -> list[Path]:
    """Returns the whole shards of `kind` ("latents" or "text") in a folder, in order."""
    return sorted(folder.glob(f"{kind}-[0-9]*.safetensors"))


def next_shard_number(folder: Path, kind: str) -> int:
    """Returns the first shard number of `kind` that is free."""
    shards = list_shards(folder, kind)
    return int(shards[-1].stem.rpartition("-")[2]) + 1 if shards else 0


def _companion(shard: Path) -> Path:
    name = shard.stem.replace("latents-", "records-").replace("text-", "texts-")
    return shard.with_name(f"{name}.jsonl")


def write_latent_shard(
    folder: Path,
    records: list[Record],
    means: list[torch.Tensor],
    stds: list[torch.Tensor],
    curves: list[torch.Tensor],
    *,
    number: int | None = None,
) -> None:
    """Writes one shard of clips.

    Args:
        folder: The folder of shards.
        records: The clips.
        means: Posterior means, each `(channels, latent_frames, latent_bins)`.
        stds: Posterior standard deviations, shaped alike.
        curves: Opinion score of each latent frame, each `(latent_frames,)`.
        number: Number of the shard, for processes that write side by side; the first free one when `None`.
    """
    number = next_shard_number(folder, "latents") if number is None else number
    path = folder / f"latents-{number:05d}.safetensors"
    mean = torch.cat([mean.permute(1, 0, 2) for mean in means]).half()  # (T, C, F)
    std = torch.cat([std.permute(1, 0, 2) for std in stds]).half()  # (T, C, F)
    tensors = {"mean": mean.contiguous(), "std": std.contiguous(), "quality": torch.cat(curves).float()}
    tensors["offsets"] = _offsets([curve.shape[0] for curve in curves])
    moments = {
        "sum": mean.double().sum().item(),
        "sum_of_squares": (mean.double().square() + std.double().square()).sum().item(),
        "num_values": mean.numel(),
    }
    write_manifest(_companion(path), records)
    metadata = {key: repr(value) for key, value in moments.items()}
    write_atomically(path, lambda file: save_file(tensors, file, metadata=metadata))


def write_text_shard(folder: Path, texts: list[str], states: list[torch.Tensor], *, number: int | None = None) -> None:
    """Writes one shard of texts with their encoder states, each `(text_tokens, dim)`; `number` as for clips."""
    number = next_shard_number(folder, "text") if number is None else number
    path = folder / f"text-{number:05d}.safetensors"
    tensors = {
        "hidden_states": torch.cat(states).half().contiguous(),
        "offsets": _offsets([state.shape[0] for state in states]),
    }
    write_json_lines(_companion(path), texts)
    write_atomically(path, lambda file: save_file(tensors, file))


def _offsets(lengths: list[int]) -> torch.Tensor:
    return torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int64)


def read_shard_moments(shard: Path) -> dict[str, float]:
    """Returns sum, sum of squares and number of the latent values of one shard, as its writer counted them."""
    with safe_open(shard, framework="pt") as file:
        return {key: float(value) for key, value in file.metadata().items() if key != "format"}


class ShardFolder:
    """A finished folder of shards on a disk.

    Args:
        path: The folder.
    """

    def __init__(self, path: str | Path):
        self.name = str(path)
        self._path = Path(path)

    @functools.cached_property
    def index(self) -> dict:
        """What `index.json` holds, which is there once every clip is encoded."""
        try:
            return json.loads(self.file(INDEX_NAME).read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{self.name!r} has no {INDEX_NAME}, so it is no finished folder of latents; "
                "make one with `python -m data_prep.encode_latents`, or run that again to finish it."
            ) from error

    def list_shards(self, kind: str) -> list[str]:
        """Returns the names of the shards of `kind` ("latents" or "text"), in order."""
        return [path.name for path in list_shards(self._path, kind)]

    def file(self, name: str) -> Path:
        """Returns where the file `name` can be read."""
        return self._path / name

    def offsets(self, shard: str, num_entries: int) -> np.ndarray:
        """Returns where the entries of a shard begin, `(num_entries + 1,)`."""
        path = self.file(shard)
        offsets = read_offsets(path)
        if len(offsets) != num_entries + 1:
            raise RuntimeError(
                f"{path} holds {len(offsets) - 1} entries, but {_companion(path).name} has {num_entries} lines; "
                "delete both and encode again."
            )
        return offsets


class RemoteShardFolder(ShardFolder):
    """A finished folder of shards behind an fsspec URL; files are fetched when they are first asked for, and kept.

    Args:
        url: The folder's URL, such as `s3://bucket/latents`.
        cache_dir: Where fetched files go.
    """

    def __init__(self, url: str, cache_dir: str | Path):
        self.name = url.rstrip("/")
        content = self._read(INDEX_NAME)
        # Another index means other shards, so it gets another folder.
        self._path = Path(cache_dir) / hashlib.sha256(self.name.encode() + content).hexdigest()[:16]
        self._path.mkdir(parents=True, exist_ok=True)
        write_atomically(self._path / INDEX_NAME, lambda file: file.write_bytes(content))

    def list_shards(self, kind: str) -> list[str]:
        if "lengths" not in self.index:
            raise ValueError(
                f"{self.name}/{INDEX_NAME} does not say how long the clips are, so it was written by an older version; "
                "run `python -m data_prep.encode_latents` again on the folder that was uploaded."
            )
        return [name for name in self.index["lengths"] if name.startswith(f"{kind}-")]

    def file(self, name: str) -> Path:
        path = self._path / name
        if not path.is_file():
            content = self._read(name)
            write_atomically(path, lambda file: file.write_bytes(content))
        return path

    def offsets(self, shard: str, num_entries: int) -> np.ndarray:
        lengths = self.index["lengths"][shard]
        if len(lengths) != num_entries:
            raise RuntimeError(
                f"{self.name}/{INDEX_NAME} knows {len(lengths)} entries of {shard}, but {_companion(Path(shard)).name} "
                f"has {num_entries} lines; upload the folder again."
            )
        return np.array([0, *np.cumsum(lengths)], dtype=np.int64)

    def _read(self, name: str) -> bytes:
        try:
            with fsspec.open(f"{self.name}/{name}", "rb") as file:
                return file.read()
        except ImportError as error:
            raise RuntimeError(f"reading {self.name!r} needs another package: {error}") from error
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"there is no {name} in {self.name!r}; upload a folder that `python -m data_prep.encode_latents` finished."
            ) from error


def open_folder(folder: str | Path, cache_dir: str | Path = "data/cache") -> ShardFolder:
    """Opens a folder of shards by its path or its URL."""
    return RemoteShardFolder(str(folder), cache_dir) if "://" in str(folder) else ShardFolder(folder)


class LatentShards:
    """Reads the clips of a folder of shards, any crop of any clip.

    Args:
        folder: The folder of shards.
    """

    def __init__(self, folder: ShardFolder | str | Path):
        self._folder = folder if isinstance(folder, ShardFolder) else open_folder(folder)
        self.names = self._folder.list_shards("latents")
        if not self.names:
            raise FileNotFoundError(f"there are no latents in {self._folder.name!r}.")
        self.records: list[Record] = []
        shards, starts, lengths = [], [], []
        for shard_index, name in enumerate(self.names):
            records = read_manifest(self._folder.file(_companion(Path(name)).name))
            offsets = self._folder.offsets(name, len(records))
            self.records += records
            shards += [shard_index] * len(records)
            starts.append(offsets[:-1])
            lengths.append(np.diff(offsets))
        self.shards = np.array(shards)  # shard of each clip
        self._starts = np.concatenate(starts)
        self.lengths = np.concatenate(lengths)  # latent frames of each clip
        self._files: dict[str, safe_open] = {}

    def __len__(self) -> int:
        return len(self.records)

    def read(self, clip: int, start: int, num_frames: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Returns mean and std `(channels, num_frames, latent_bins)` and score curve `(num_frames,)` of a crop, fp32."""
        if start < 0 or start + num_frames > self.lengths[clip]:
            raise ValueError(
                f"the crop {start}+{num_frames} leaves clip {self.records[clip].id!r}, "
                f"which has {self.lengths[clip]} latent frames."
            )
        file = _open(self._files, self._folder, self.names[self.shards[clip]])
        begin = int(self._starts[clip]) + start
        mean, std, quality = (
            file.get_slice(name)[begin : begin + num_frames].float() for name in ("mean", "std", "quality")
        )
        if not (mean.isfinite().all() and std.isfinite().all()):
            raise ValueError(
                f"clip {self.records[clip].id!r} in {self._folder.file(self.names[self.shards[clip]])} has latents that are not finite; "
                "delete that shard and its records, and encode it again."
            )
        return mean.permute(1, 0, 2), std.permute(1, 0, 2), quality

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_files": {}}


class TextShards:
    """Reads cached text-encoder states by text.

    Args:
        folder: The folder of shards.
    """

    def __init__(self, folder: ShardFolder | str | Path):
        self._folder = folder if isinstance(folder, ShardFolder) else open_folder(folder)
        self._places: dict[str, tuple[str, int, int]] = {}
        for name in self._folder.list_shards("text"):
            lines = self._folder.file(_companion(Path(name)).name).read_text(encoding="utf-8").splitlines()
            offsets = self._folder.offsets(name, len(lines)).tolist()
            for line, begin, end in zip(lines, offsets[:-1], offsets[1:], strict=True):
                self._places[json.loads(line)] = (name, begin, end)
        self._files: dict[str, safe_open] = {}

    def __contains__(self, text: str) -> bool:
        return text in self._places

    def __len__(self) -> int:
        return len(self._places)

    def read(self, text: str) -> torch.Tensor:
        """Returns the states `(text_tokens, dim)` of a text, fp32."""
        if text not in self._places:
            raise KeyError(f"the text {text!r} has no cached states; run `python -m data_prep.encode_latents` again.")
        name, begin, end = self._places[text]
        return _open(self._files, self._folder, name).get_slice("hidden_states")[begin:end].float()

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_files": {}}


def _open(files: dict[str, safe_open], folder: ShardFolder, name: str) -> safe_open:
    if name not in files:
        files[name] = safe_open(folder.file(name), framework="pt")
    return files[name]


def read_offsets(path: Path) -> np.ndarray:
    """Returns where the entries of a shard begin, `(entries + 1,)`."""
    try:
        with safe_open(path, framework="np") as file:
            return file.get_tensor("offsets")
    except (OSError, SafetensorError) as error:
        raise RuntimeError(f"the shard {path} is damaged ({error}); delete it and encode again.") from error
