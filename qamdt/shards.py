"""The folder of encoded music that training reads: its files, a writer for each, and the readers.

    index.json                    shapes, counts, latent scaling factor, quality statistics; written last
    latents-00000.safetensors     `mean`, `std` (frames, channels, bins) fp16: the VAE posterior of many clips, end to end
                                  `quality` (frames,) fp32: opinion score of each latent frame, NaN where unknown
                                  `offsets` (clips + 1,): clip i owns the frames offsets[i] to offsets[i + 1]
    records-00000.jsonl           the manifest records of those clips, in the same order
    text-00000.safetensors        `hidden_states` (tokens, dim) fp16 of many texts, end to end, and `offsets` (texts + 1,)
    texts-00000.jsonl             those texts, one JSON string a line

Time comes first in the files, so a crop is one contiguous read. A shard exists once its safetensors file does: that file
is renamed into place after everything else of the shard, so a process may be killed anywhere.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from qamdt.manifest import Record, read_manifest, write_manifest


INDEX_NAME = "index.json"


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Lets `write` fill a temporary file and renames it to `path`; a failure leaves nothing behind."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        temporary.chmod(0o644)  # safetensors makes files that only their owner can read
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, values: dict) -> None:
    """Writes a JSON file in one step."""
    write_atomically(path, lambda file: file.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n"))


def round_score(score: float) -> float:
    """Rounds an opinion score, so that one stored in fp32 and one from JSON fall on the same side of a threshold."""
    return round(float(score), 3)


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
) -> None:
    """Writes one shard of clips.

    Args:
        folder: The folder of shards.
        records: The clips.
        means: Posterior means, each `(channels, latent_frames, latent_bins)`.
        stds: Posterior standard deviations, shaped alike.
        curves: Opinion score of each latent frame, each `(latent_frames,)`.
    """
    path = folder / f"latents-{next_shard_number(folder, 'latents'):05d}.safetensors"
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


def write_text_shard(folder: Path, texts: list[str], states: list[torch.Tensor]) -> None:
    """Writes one shard of texts with their encoder states, each `(text_tokens, dim)`."""
    path = folder / f"text-{next_shard_number(folder, 'text'):05d}.safetensors"
    tensors = {
        "hidden_states": torch.cat(states).half().contiguous(),
        "offsets": _offsets([state.shape[0] for state in states]),
    }
    lines = "".join(json.dumps(text, ensure_ascii=False) + "\n" for text in texts)
    write_atomically(_companion(path), lambda file: file.write_text(lines, encoding="utf-8"))
    write_atomically(path, lambda file: save_file(tensors, file))


def _offsets(lengths: list[int]) -> torch.Tensor:
    return torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int64)


def read_shard_moments(shard: Path) -> dict[str, float]:
    """Returns sum, sum of squares and number of the latent values of one shard, as its writer counted them."""
    with safe_open(shard, framework="pt") as file:
        return {key: float(value) for key, value in file.metadata().items() if key != "format"}


def read_index(folder: str | Path) -> dict:
    """Reads `index.json`, which is there once every clip is encoded."""
    path = Path(folder) / INDEX_NAME
    if not path.is_file():
        raise FileNotFoundError(
            f"{str(folder)!r} has no {INDEX_NAME}, so it is no finished folder of latents; "
            "make one with `python -m data_prep.encode_latents`, or run that again to finish it."
        )
    return json.loads(path.read_text(encoding="utf-8"))


class LatentShards:
    """Reads the clips of a folder of shards, any crop of any clip.

    Args:
        folder: The folder of shards.
    """

    def __init__(self, folder: str | Path):
        self.paths = list_shards(Path(folder), "latents")
        if not self.paths:
            raise FileNotFoundError(f"there are no latents in {str(folder)!r}.")
        self.records: list[Record] = []
        self._shards, starts, lengths = [], [], []
        for shard_index, path in enumerate(self.paths):
            records = read_manifest(_companion(path))
            offsets = _read_offsets(path, expected_length=len(records) + 1)
            self.records += records
            self._shards += [shard_index] * len(records)
            starts.append(offsets[:-1])
            lengths.append(np.diff(offsets))
        self._starts = np.concatenate(starts)
        self.lengths = np.concatenate(lengths)  # latent frames of each clip
        self._files: dict[int, safe_open] = {}

    def __len__(self) -> int:
        return len(self.records)

    def read(self, clip: int, start: int, num_frames: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Returns mean and std `(channels, num_frames, latent_bins)` and score curve `(num_frames,)` of a crop, fp32."""
        if start < 0 or start + num_frames > self.lengths[clip]:
            raise ValueError(
                f"the crop {start}+{num_frames} leaves clip {self.records[clip].id!r}, "
                f"which has {self.lengths[clip]} latent frames."
            )
        file = _open(self._files, self.paths, self._shards[clip])
        begin = int(self._starts[clip]) + start
        mean, std, quality = (
            file.get_slice(name)[begin : begin + num_frames].float() for name in ("mean", "std", "quality")
        )
        if not (mean.isfinite().all() and std.isfinite().all()):
            raise ValueError(
                f"clip {self.records[clip].id!r} in {self.paths[self._shards[clip]]} has latents that are not finite; "
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

    def __init__(self, folder: str | Path):
        self.paths = list_shards(Path(folder), "text")
        self._places: dict[str, tuple[int, int, int]] = {}
        for shard_index, path in enumerate(self.paths):
            texts = [json.loads(line) for line in _companion(path).read_text(encoding="utf-8").splitlines()]
            offsets = _read_offsets(path, expected_length=len(texts) + 1).tolist()
            for text, begin, end in zip(texts, offsets[:-1], offsets[1:], strict=True):
                self._places[text] = (shard_index, begin, end)
        self._files: dict[int, safe_open] = {}

    def __contains__(self, text: str) -> bool:
        return text in self._places

    def __len__(self) -> int:
        return len(self._places)

    def read(self, text: str) -> torch.Tensor:
        """Returns the states `(text_tokens, dim)` of a text, fp32."""
        if text not in self._places:
            raise KeyError(f"the text {text!r} has no cached states; run `python -m data_prep.encode_latents` again.")
        shard_index, begin, end = self._places[text]
        return _open(self._files, self.paths, shard_index).get_slice("hidden_states")[begin:end].float()

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_files": {}}


def _open(files: dict[int, safe_open], paths: list[Path], shard_index: int) -> safe_open:
    if shard_index not in files:
        files[shard_index] = safe_open(paths[shard_index], framework="pt")
    return files[shard_index]


def _read_offsets(path: Path, *, expected_length: int) -> np.ndarray:
    try:
        with safe_open(path, framework="np") as file:
            offsets = file.get_tensor("offsets")
    except (OSError, SafetensorError) as error:
        raise RuntimeError(f"the shard {path} is damaged ({error}); delete it and encode again.") from error
    if len(offsets) != expected_length:
        raise RuntimeError(
            f"{path} holds {len(offsets) - 1} entries, but {_companion(path).name} has {expected_length - 1} lines; "
            "delete both and encode again."
        )
    return offsets
