"""Clips and texts at work in the encoders, a unit after the other: a unit is what becomes one file.

Units are cut by the manifest alone, and each is encoded by itself, so the files are the same ones whoever makes them: one
process or many, at one go or after kills. Every minute what is done of a unit is kept in an `unfinished-…` file, from
which another run goes on.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from qamdt.audio import SAMPLING_RATE, LogMel, normalize_waveform, read_audio
from qamdt.encoding import encode_waveforms, samples_per_latent_frame
from qamdt.manifest import Record, resolve_clip_path
from qamdt.shards import read_shard_tensors, unfinished_path, write_latent_shard, write_text_shard
from qamdt.sound_files import CUT_TOLERANCE_IN_S


MOST_SECONDS_PER_SHARD = 60.0  # what a killed process loses at most


@dataclass(frozen=True)
class Unit:
    """What becomes one file.

    Args:
        number: Number of the file.
        keys: Keys of its clips or texts.
        read: Returns them, given places in `keys`.
    """

    number: int
    keys: list[int]
    read: Callable[[int], Record | str]


@torch.inference_mode()
def encode_clips(
    units: Iterable[Unit],
    manifest: Path,
    vae: nn.Module,
    log_mel: LogMel | None,
    out: Path,
    *,
    batch_size: int,
    num_clips: int,
    show_progress: bool,
) -> dict[int, str]:
    """Writes the latents of clips, a shard for each unit; returns the keys that failed, with the reasons.

    Args:
        units: The clips.
        manifest: The manifest that they come from.
        vae: The autoencoder.
        log_mel: What its spectrograms are computed with, on the same device; `None` if it hears waveforms.
        out: Folder of the shards.
        batch_size: Clips encoded at once.
        num_clips: How many there are.
        show_progress: Whether to show a bar.
    """
    errors: dict[int, str] = {}
    with tqdm(total=num_clips, desc="clips", unit="clip", disable=not show_progress or None) as progress:
        for unit in units:
            writer = _UnitWriter(out, "latents", unit)
            for keys, waveforms in _read_batches(unit, manifest, batch_size, vae, log_mel, errors):
                if not writer.has(keys):
                    posterior = encode_waveforms(vae, normalize_waveform(waveforms.to(vae.device)), log_mel)
                    means, stds = posterior.mean.float().cpu(), posterior.std.float().cpu()
                    writer.add(keys, zip(means, stds, strict=True))
                progress.update(len(keys))
            errors |= writer.finish()
    return errors


class _UnitWriter:
    """Collects what was made of a unit, keeps it through kills, and writes it as a shard in the end."""

    def __init__(self, out: Path, kind: str, unit: Unit):
        self._out, self._kind, self._unit = out, kind, unit
        self._unfinished = unfinished_path(out, kind, unit.number, unit.keys)
        self._rows: dict[int, tuple[torch.Tensor, ...]] = {}
        if self._unfinished.is_file():
            self._rows = read_shard_tensors(self._unfinished, kind)
        self._errors: dict[int, str] = {}
        self._kept_at = time.monotonic()

    def has(self, keys: Sequence[int]) -> bool:
        """Whether a batch was made before."""
        return all(key in self._rows for key in keys)

    def add(self, keys: Sequence[int], rows: Iterable[tuple[torch.Tensor, ...]]) -> None:
        """Adds a batch."""
        for key, tensors in zip(keys, rows, strict=True):
            if all(tensor.half().isfinite().all() for tensor in tensors):
                self._rows[key] = tensors
            else:
                self._errors[key] = "its latents are not finite"
        is_due = time.monotonic() - self._kept_at > MOST_SECONDS_PER_SHARD
        if is_due and 0 < len(self._rows) < len(self._unit.keys):
            self._write(self._unfinished)
            self._kept_at = time.monotonic()

    def finish(self) -> dict[int, str]:
        """Writes the shard, and returns the keys whose rows are not finite."""
        if self._rows:
            self._write(None)
        self._unfinished.unlink(missing_ok=True)
        return self._errors

    def _write(self, path: Path | None) -> None:
        keys, columns = list(self._rows), zip(*self._rows.values(), strict=True)
        write = write_latent_shard if self._kind == "latents" else write_text_shard
        write(self._out, keys, *map(list, columns), number=self._unit.number, path=path)


def _read_batches(
    unit: Unit, manifest: Path, batch_size: int, vae: nn.Module, log_mel: LogMel | None, errors: dict[int, str]
) -> Iterator[tuple[list[int], torch.Tensor]]:
    """Yields the keys of clips of equal length, and their waveforms `(batch, samples)`; failures go to `errors`."""
    sampling_rate = vae.config.sampling_rate if log_mel is None else SAMPLING_RATE
    hop = samples_per_latent_frame(vae, log_mel)
    waiting: dict[int, tuple[list[int], list[torch.Tensor]]] = {}
    for place, key in enumerate(unit.keys):
        record = unit.read(place)
        try:
            waveform = read_audio(
                resolve_clip_path(manifest, record),
                sampling_rate,
                start_in_s=record.start_in_s,
                duration_in_s=record.duration_in_s,
            )
            missing_in_s = record.duration_in_s - waveform.shape[0] / sampling_rate
            if missing_in_s > CUT_TOLERANCE_IN_S:
                raise ValueError(f"its file ends {missing_in_s:.2f} s before the clip should.")
            num_samples = waveform.shape[0] // hop * hop
            if num_samples == 0:
                raise ValueError(f"the clip is shorter than one latent frame, {waveform.shape[0]} samples.")
        except (ValueError, OSError) as error:
            errors[key] = str(error)
            continue
        keys, waveforms = waiting.setdefault(num_samples, ([], []))
        keys.append(key)
        waveforms.append(waveform[:num_samples])
        if len(keys) == batch_size:
            yield keys, torch.stack(waveforms)
            del waiting[num_samples]
    for keys, waveforms in waiting.values():
        yield keys, torch.stack(waveforms)


@torch.inference_mode()
def encode_texts(
    units: Iterable[Unit],
    tokenizer: PreTrainedTokenizerBase,
    encoder: PreTrainedModel,
    out: Path,
    *,
    batch_size: int,
    max_tokens: int,
    num_texts: int,
    show_progress: bool,
) -> None:
    """Writes the encoder states of texts, a shard for each unit; the rest as `encode_clips`."""
    with tqdm(total=num_texts, desc="texts", unit="text", disable=not show_progress or None) as progress:
        for unit in units:
            writer = _UnitWriter(out, "text", unit)
            for start in range(0, len(unit.keys), batch_size):
                keys = unit.keys[start : start + batch_size]
                if not writer.has(keys):
                    texts = [unit.read(place) for place in range(start, start + len(keys))]
                    states = read_states(texts, tokenizer, encoder, max_tokens=max_tokens)
                    writer.add(keys, ((state,) for state in states))
                progress.update(len(keys))
            writer.finish()


@torch.inference_mode()
def read_states(
    texts: list[str], tokenizer: PreTrainedTokenizerBase, encoder: PreTrainedModel, *, max_tokens: int
) -> list[torch.Tensor]:
    """Returns the states of texts, each `(text_tokens, dim)`, fp32 on the CPU."""
    tokens = tokenizer(texts, padding=True, truncation=True, max_length=max_tokens, return_tensors="pt")
    tokens = tokens.to(encoder.device)
    hidden_states = encoder(**tokens).last_hidden_state.float().cpu()  # (B, L, D)
    lengths = tokens["attention_mask"].sum(dim=1).tolist()
    return [state[:length] for state, length in zip(hidden_states, lengths, strict=True)]
