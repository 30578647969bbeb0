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
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from qamdt.files import write_json, write_tensors  # noqa: F401  `write_json` for scripts of earlier versions


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
    folder: Path, keys: list[int], means: list[torch.Tensor], stds: list[torch.Tensor], *, number: int | None = None
) -> None:
    """Writes the latents of some clips.

    Args:
        folder: The folder of shards.
        keys: The key of each clip.
        means: Posterior means, each `(channels, latent_frames, latent_bins)`.
        stds: Posterior standard deviations, shaped alike.
        number: Number of the shard, for processes that write side by side; the first free one when `None`.
    """
    means, stds = ([rows.permute(1, 0, 2).half() for rows in parts] for parts in (means, stds))  # (T, C, F)
    moments = [
        [mean.double().sum(), (mean.double().square() + std.double().square()).sum()]
        for mean, std in zip(means, stds, strict=True)
    ]
    tensors = {"mean": torch.cat(means), "std": torch.cat(stds), "moments": torch.tensor(moments, dtype=torch.float64)}
    _write_shard(folder, "latents", keys, tensors, [len(mean) for mean in means], number)


def write_text_shard(folder: Path, keys: list[int], states: list[torch.Tensor], *, number: int | None = None) -> None:
    """Writes the encoder states of some texts, each `(text_tokens, dim)`; keys and `number` as for clips."""
    tensors = {"hidden_states": torch.cat(states).half()}
    _write_shard(folder, "text", keys, tensors, [len(state) for state in states], number)


def _write_shard(
    folder: Path, kind: str, keys: list[int], tensors: dict[str, torch.Tensor], lengths: list[int], number: int | None
) -> None:
    number = next_shard_number(folder, kind) if number is None else number
    key_bytes = np.array(keys, dtype=np.uint64)
    tensors |= {
        "keys": torch.from_numpy(key_bytes.view(np.int64)),
        "offsets": torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int64),
    }
    digest = hashlib.blake2b(key_bytes.tobytes(), digest_size=6).hexdigest()
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    write_tensors(folder / f"{kind}-{number:05d}-{digest}.safetensors", contiguous)


def find_entries(folder: Path, kind: str) -> dict[int, Place]:
    """Returns where the rows of each key are, in all shards of `kind` ("latents" or "text") of a folder.

    Raises:
        RuntimeError: A shard is damaged.
    """
    places = {}
    for path in list_shards(folder, kind):
        keys, offsets = _read(path, "keys"), _read(path, "offsets").tolist()
        for key, start, end in zip(keys.view(np.uint64).tolist(), offsets[:-1], offsets[1:], strict=True):
            places[key] = Place(path.name, start, end - start)
    return places


def measure_scaling_factor(folder: Path, places: Iterable[Place]) -> float:
    """Returns one over the standard deviation of what the posteriors of some clips draw."""
    starts: dict[str, list[int]] = {}
    for place in places:
        starts.setdefault(place.shard, []).append(place.start)
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
