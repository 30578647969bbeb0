"""Shards: latents of many clips and encoder states of many texts, each under the key of everything that it depends on.

    latents-00000-5f1d….safetensors   `mean`, `std` (frames, channels, bins) fp16: the VAE posterior of many clips, end to end
                                      `moments` (clips, 2): sum and sum of squares of what the posterior draws
    text-00000-c07e….safetensors      `hidden_states` (tokens, dim) fp16 of many texts, end to end
    in both                           `keys` (entries,), and `offsets` (entries + 1,): entry i, whose key is keys[i], owns
                                      the rows offsets[i] to offsets[i + 1]

A shard is written in one step and never changed, and its name says what is in it: a copy of that name is as good, and
processes may write side by side and be killed anywhere. What is said about clips (captions, scores, curves) is not in
it; see `qamdt.latent_folder`. Time comes first in the files, so a crop is one contiguous read.
"""

import hashlib
from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from qamdt.files import write_json, write_tensors  # noqa: F401  `write_json` for scripts of earlier versions


UNFINISHED = "unfinished"


@dataclass(frozen=True)
class Place:
    """Where the rows of a clip or text are.

    Args:
        shard: Name of the file.
        start: The first of its rows.
        length: Number of rows: latent frames of a clip, tokens of a text.
    """

    shard: str
    start: int
    length: int


def list_shards(folder: Path, kind: str) -> list[Path]:
    """Returns the shards of `kind` ("latents" or "text") in a folder, in the order they were written."""
    return sorted(folder.glob(f"{kind}-[0-9]*-*.safetensors"))


def next_shard_number(folder: Path, kind: str) -> int:
    """Returns the first number that no shard of `kind` has."""
    return max((int(path.stem.split("-")[1]) + 1 for path in list_shards(folder, kind)), default=0)


def write_latent_shard(
    folder: Path,
    keys: list[int],
    means: list[torch.Tensor],
    stds: list[torch.Tensor],
    *,
    number: int | None = None,
    path: Path | None = None,
) -> None:
    """Writes the latents of some clips.

    Args:
        folder: The folder of shards.
        keys: The key of each clip.
        means: Posterior means, each `(channels, latent_frames, latent_bins)`.
        stds: Posterior standard deviations, shaped alike.
        number: Number of the shard; the first free one when `None`.
        path: Where to write instead what is no whole shard yet.
    """
    means, stds = ([rows.permute(1, 0, 2).half() for rows in parts] for parts in (means, stds))  # (T, C, F)
    moments = [
        [mean.double().sum(), (mean.double().square() + std.double().square()).sum()]
        for mean, std in zip(means, stds, strict=True)
    ]
    tensors = {"mean": torch.cat(means), "std": torch.cat(stds), "moments": torch.tensor(moments, dtype=torch.float64)}
    _write_shard(folder, "latents", keys, tensors, [len(mean) for mean in means], number, path)


def write_text_shard(
    folder: Path,
    keys: list[int],
    states: list[torch.Tensor],
    *,
    number: int | None = None,
    path: Path | None = None,
) -> None:
    """Writes the encoder states of some texts, each `(text_tokens, dim)`; the rest as for clips."""
    tensors = {"hidden_states": torch.cat(states).half()}
    _write_shard(folder, "text", keys, tensors, [len(state) for state in states], number, path)


def _write_shard(
    folder: Path,
    kind: str,
    keys: list[int],
    tensors: dict[str, torch.Tensor],
    lengths: list[int],
    number: int | None,
    path: Path | None,
) -> None:
    number = next_shard_number(folder, kind) if number is None else number
    key_bytes = np.array(keys, dtype=np.uint64)
    tensors |= {
        "keys": torch.from_numpy(key_bytes.view(np.int64)),
        "offsets": torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int64),
    }
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    write_tensors(path or folder / _shard_name(kind, number, keys), contiguous)


def _shard_name(kind: str, number: int, keys: list[int]) -> str:
    digest = hashlib.blake2b(np.array(keys, dtype=np.uint64).tobytes(), digest_size=6).hexdigest()
    return f"{kind}-{number:05d}-{digest}.safetensors"


def unfinished_path(folder: Path, kind: str, number: int, keys: list[int]) -> Path:
    """Returns where that lies which is done of a shard to be; `keys` are those that the whole one is to have."""
    return folder / f"{UNFINISHED}-{_shard_name(kind, number, keys)}"


def read_shard_tensors(path: Path, kind: str) -> dict[int, tuple[torch.Tensor, ...]]:
    """Returns what a shard holds of each key, as it is given for writing: mean and std of a clip, or states of a text."""
    offsets, keys = _read(path, "offsets").tolist(), _read(path, "keys").view(np.uint64).tolist()
    names = ("mean", "std") if kind == "latents" else ("hidden_states",)
    tensors = [torch.from_numpy(_read(path, name)) for name in names]
    tensors = [tensor.permute(1, 0, 2) for tensor in tensors] if kind == "latents" else tensors  # (C, T, F)
    axis = 1 if kind == "latents" else 0
    return {
        key: tuple(tensor.narrow(axis, start, end - start) for tensor in tensors)
        for key, start, end in zip(keys, offsets[:-1], offsets[1:], strict=True)
    }


class Entries:
    """Where the rows of many keys are; 24 bytes of memory for each.

    Args:
        names: Names of the shards.
        keys: The keys, sorted, `(entries,)`.
        shards: Number of the shard of each.
        starts: The first of its rows.
        lengths: How many there are.
    """

    def __init__(
        self, names: list[str], keys: np.ndarray, shards: np.ndarray, starts: np.ndarray, lengths: np.ndarray
    ):
        self.names, self.keys, self.shards, self.starts, self.lengths = names, keys, shards, starts, lengths

    def __len__(self) -> int:
        return len(self.keys)

    def __contains__(self, key: int) -> bool:
        return self.get(key) is not None

    def __getitem__(self, key: int) -> Place:
        place = self.get(key)
        if place is None:
            raise KeyError(key)
        return place

    def get(self, key: int) -> Place | None:
        """Returns where the rows of a key are, `None` where there are none."""
        row = int(self.keys.searchsorted(np.uint64(key)))
        if row == len(self) or int(self.keys[row]) != key:
            return None
        return Place(self.names[self.shards[row]], int(self.starts[row]), int(self.lengths[row]))

    def have(self, keys: np.ndarray) -> np.ndarray:
        """Returns which of some keys there are rows of."""
        rows = np.minimum(self.keys.searchsorted(keys), max(len(self) - 1, 0))
        return self.keys[rows] == keys if len(self) else np.zeros(len(keys), bool)


def find_entries(folder: Path, kind: str) -> Entries:
    """Returns where the rows of each key are, in all shards of `kind` ("latents" or "text") of a folder.

    Raises:
        RuntimeError: A shard is damaged.
    """
    names, parts = [], [(np.zeros(0, np.uint64), np.zeros(0, np.int32), np.zeros(0, np.int64), np.zeros(0, np.int32))]
    for path in list_shards(folder, kind):
        keys, offsets = _read(path, "keys").view(np.uint64), _read(path, "offsets")
        shards = np.full(len(keys), len(names), np.int32)
        parts.append((keys, shards, offsets[:-1], np.diff(offsets).astype(np.int32)))
        names.append(path.name)
    keys, *columns = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.argsort(keys, kind="stable")
    order = order[
        np.append(keys[order][1:] != keys[order][:-1], True)[: len(order)]
    ]  # the last shard with a key counts
    return Entries(names, keys[order], *(column[order] for column in columns))


def measure_scaling_factor(folder: Path, places: Iterable[Place]) -> float:
    """Returns one over the standard deviation of what the posteriors of some clips draw."""
    starts: dict[str, array] = {}
    for place in places:
        starts.setdefault(place.shard, array("q")).append(place.start)
    moments, num_values = np.zeros(2), 0
    for name, some in starts.items():
        path = folder / name
        offsets = _read(path, "offsets")
        entries = np.searchsorted(offsets, some)
        moments += _read(path, "moments")[entries].sum(axis=0)
        num_values += int(np.diff(offsets)[entries].sum()) * int(np.prod(read_shape(path, "mean")[1:]))
    mean, mean_square = moments / num_values
    return float((mean_square - mean**2) ** -0.5)


def read_shape(path: Path, name: str) -> list[int]:
    """Returns the shape of a tensor in a shard."""
    with safe_open(path, framework="np") as file:
        return file.get_slice(name).get_shape()


def _read(path: Path, name: str) -> np.ndarray:
    try:
        with safe_open(path, framework="np") as file:
            return file.get_tensor(name)
    except (OSError, SafetensorError) as error:
        raise RuntimeError(f"the shard {path} is damaged ({error}); delete it and encode again.") from error
