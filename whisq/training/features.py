"""Hidden states of the encoders as loaded, computed once and kept on disk, so that training runs no frozen encoder.

    audio/settings.json              which encoder made the states, and their width
    audio/states-R-P-N.safetensors   `hidden_states` (tokens, dim) fp16 of many clips, end to end, without padding, and
                                     `offsets` (clips + 1,): clip i owns the tokens offsets[i] to offsets[i + 1]
    audio/states-R-P-N.jsonl         the keys of those clips, one JSON string a line
    text/                            the same for prompts

R is the rank of the process that wrote a shard and P its id on its machine, so that several runs can fill one folder. A
shard exists once its safetensors file does, which is renamed into place last, so a process may be killed anywhere; the
same run again computes what is missing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import torch
from safetensors import safe_open
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from qamdt.audio import read_audio
from qamdt.files import read_json, read_json_lines, write_json, write_json_lines, write_tensors
from qamdt.keyed_rows import file_identity
from whisq.audio import level
from whisq.encoders import AudioEncoder, TextEncoder
from whisq.ratings import Fault, RatedClip


class FeatureStore:
    """Hidden states of different lengths under their keys.

    Args:
        folder: Folder of shards; made when it does not exist.
        settings: What the states depend on; a folder that was filled with other settings is refused.
        process_index: Number of this process among those that write at the same time.
    """

    def __init__(self, folder: str | Path, settings: dict, *, process_index: int = 0):
        self.folder = Path(folder)
        self.settings = settings
        self.process_index = process_index
        self._places: dict[str, tuple[Path, int, int]] = {}
        self._open_files: dict[Path, safe_open] = {}
        self.folder.mkdir(parents=True, exist_ok=True)
        _check_settings(self.folder / "settings.json", settings)
        self.refresh()

    def refresh(self) -> None:
        """Finds the shards that are on disk now."""
        for path in sorted(self.folder.glob("states-*.safetensors")):
            if path not in self._open_files:
                self._index(path)

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def __len__(self) -> int:
        return len(self._places)

    def num_tokens(self, key: str) -> int:
        """Returns how many states are stored under `key`."""
        _, start, end = self._place(key)
        return end - start

    def read(self, key: str) -> torch.Tensor:
        """Returns the states under `key` as fp16, of shape `(tokens, dim)`."""
        path, start, end = self._place(key)
        return self._open_files[path].get_slice("hidden_states")[start:end]

    def add(self, keys: Sequence[str], states: Sequence[torch.Tensor]) -> None:
        """Writes one shard of states, each `(tokens, dim)`."""
        prefix = f"states-{self.process_index:03d}-{os.getpid()}"
        number = len(list(self.folder.glob(f"{prefix}-*.safetensors")))
        path = self.folder / f"{prefix}-{number:05d}.safetensors"
        offsets = torch.tensor([0, *(state.shape[0] for state in states)]).cumsum(0)
        tensors = {"hidden_states": torch.cat(list(states)).half().contiguous(), "offsets": offsets}
        write_json_lines(path.with_suffix(".jsonl"), keys)
        write_tensors(path, tensors)
        self._index(path)

    def _index(self, path: Path) -> None:
        file = safe_open(path, framework="pt")
        offsets = file.get_tensor("offsets").tolist()
        self._open_files[path] = file
        keys = read_json_lines(path.with_suffix(".jsonl"))
        for key, start, end in zip(keys, offsets[:-1], offsets[1:], strict=True):
            self._places[key] = (path, start, end)

    def _place(self, key: str) -> tuple[Path, int, int]:
        if key not in self._places:
            raise KeyError(
                f"{key!r} has no cached states in {str(self.folder)!r}; start the run again to compute them."
            )
        return self._places[key]


def clip_key(clip: RatedClip, max_seconds: float) -> str:
    """Returns the key of a clip's states; it changes when the sound file, or what is read of it, changes."""
    span = [clip.start_in_s, clip.duration_in_s, max_seconds]
    return json.dumps([clip.id, str(clip.path.absolute()), *span, *file_identity(clip.path)])


@torch.inference_mode()
def cache_clips(
    store: FeatureStore,
    encoder: AudioEncoder,
    clips: Sequence[RatedClip],
    *,
    max_seconds: float,
    device: str | torch.device = "cpu",
    batch_size: int = 8,
    clips_per_shard: int = 64,
    num_processes: int = 1,
) -> list[Fault]:
    """Encodes the clips that `store` lacks and returns those that cannot be read.

    Args:
        store: Where the states go.
        encoder: The audio encoder.
        clips: The clips.
        max_seconds: Longer clips are cut to this length.
        device: Where the encoder lies.
        batch_size: Clips encoded at once.
        clips_per_shard: Clips in a file; at most this many are encoded again after a kill.
        num_processes: How many processes share the work; each takes every `num_processes`-th clip.
    """
    faults: list[Fault] = []
    share = clips[store.process_index :: num_processes]

    def read_missing() -> Iterator[tuple[str, torch.Tensor]]:
        for clip in progress:
            try:
                key = clip_key(clip, max_seconds)
                if key not in store:
                    yield key, read_clip(clip, max_seconds)
            except (ValueError, OSError) as error:
                faults.append(Fault(file=str(clip.path), line=None, error=str(error)))

    def encode(waveforms: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        lengths = torch.tensor([waveform.shape[0] for waveform in waveforms])
        return encoder.encode(pad_sequence(waveforms, batch_first=True).to(device), lengths.to(device))

    with tqdm(share, desc="clips", unit="clip", disable=store.process_index > 0 or None) as progress:
        _fill(store, read_missing(), encode, batch_size=batch_size, items_per_shard=clips_per_shard)
    return faults


@torch.inference_mode()
def cache_texts(
    store: FeatureStore,
    encoder: TextEncoder,
    texts: Iterable[str],
    *,
    batch_size: int = 64,
    texts_per_shard: int = 4096,
    num_processes: int = 1,
) -> None:
    """Encodes the texts that `store` lacks; see `cache_clips`."""
    missing = sorted({text for text in texts if text not in store}, key=lambda text: (len(text), text))
    share = missing[store.process_index :: num_processes]
    with tqdm(
        share, desc="prompts", unit="prompt", disable=store.process_index > 0 or not missing or None
    ) as progress:
        items = ((text, text) for text in progress)
        _fill(store, items, encoder.encode, batch_size=batch_size, items_per_shard=texts_per_shard)


def _fill(
    store: FeatureStore,
    items: Iterator[tuple[str, torch.Tensor | str]],
    encode: Callable[[list], tuple[torch.Tensor, torch.Tensor]],
    *,
    batch_size: int,
    items_per_shard: int,
) -> None:
    """Encodes keyed items batch by batch and writes a shard for every `items_per_shard` of them."""
    keys: list[str] = []
    states: list[torch.Tensor] = []
    while batch := list(islice(items, batch_size)):
        hidden_states, mask = encode([item for _, item in batch])  # (B, T, D), (B, T)
        for (key, _), state, real in zip(batch, hidden_states.float().cpu(), mask.cpu(), strict=True):
            if not state[real].isfinite().all():
                raise ValueError(f"the encoder gave values that are not finite for {key}.")
            keys.append(key)
            states.append(state[real])
        if len(keys) >= items_per_shard:
            store.add(keys, states)
            keys, states = [], []
    if keys:
        store.add(keys, states)


def read_clip(clip: RatedClip, max_seconds: float) -> torch.Tensor:
    """Reads the samples of a clip `(samples,)`, at most `max_seconds` of them, levelled as the scorer levels them."""
    seconds = max_seconds if clip.duration_in_s is None else min(clip.duration_in_s, max_seconds)
    return level(read_audio(clip.path, start_in_s=clip.start_in_s, duration_in_s=seconds))


def _check_settings(path: Path, settings: dict) -> None:
    if path.is_file():
        found = read_json(path)
        if found != settings:
            raise ValueError(
                f"{str(path.parent)!r} was filled with {found}, now the settings are {settings}; "
                "give another `data.features` or remove that folder."
            )
        return
    write_json(path, settings)
