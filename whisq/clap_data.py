"""What the CLAP and its audio tower learn from: log-mel crops, the sentence embedding of a caption, the quality curve.

Spectrograms and sentence embeddings are computed once and kept in a cache folder, since a step of training takes less
time than reading the audio for it.

Shapes: B batch, N mel frames (a multiple of 8), M mel bins, T tokens (N // 8), H width of a sentence embedding.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from qamdt.audio import read_audio
from whisq.audio import LogMel
from whisq.sentence_encoder import sentence_embeddings


FRAMES_PER_TOKEN = 8
FRAMES_PER_S = 100
SILENCE = math.log(1e-5)


@dataclass(frozen=True)
class ClapBatch:
    """A batch of crops.

    Args:
        mel_spectrogram: Log-mel `(B, N, M)`.
        sentence_embeddings: Embedding of one caption of each clip `(B, H)`.
        group: `(B,)`; clips of the same group (versions of one piece) match each other's captions.
        has_caption: `(B,)` bool.
        quality: Quality score of every token `(B, T)`, NaN where it is not known.
    """

    mel_spectrogram: torch.Tensor
    sentence_embeddings: torch.Tensor
    group: torch.Tensor
    has_caption: torch.Tensor
    quality: torch.Tensor


class ClapDataset:
    """The clips of some manifests, cached.

    Args:
        manifests: JSONL manifests: `id`, `path`, `duration_in_s`, `captions`, and for the quality curve `quality_score`
            or `quality_frames` with `quality_frame_rate`.
        cache_dir: Receives spectrograms and embeddings; used again when the manifests have not changed.
        split: Which value of the tag `split` to read; clips without the tag belong to `"train"`.
        clip_in_s: Longest stretch that is kept of a clip.
    """

    def __init__(self, manifests: list[Path], cache_dir: Path, *, split: str = "train", clip_in_s: float = 10.24):
        self.num_frames = int(clip_in_s * FRAMES_PER_S) // FRAMES_PER_TOKEN * FRAMES_PER_TOKEN
        self.rows = [row for manifest in manifests for row in _read_rows(manifest, split)]
        if not self.rows:
            raise ValueError(f"`manifests` {[str(m) for m in manifests]} have no clip of split {split!r}.")
        cache_dir.mkdir(parents=True, exist_ok=True)
        key = hashlib.sha256(json.dumps([[str(m) for m in manifests], split, clip_in_s]).encode())
        key.update("".join(str(row["path"]) + row["id"] for row in self.rows).encode())
        stem = cache_dir / key.hexdigest()[:16]
        self.mel_spectrograms = self._cached_mel_spectrograms(stem)
        captions = sorted({caption for row in self.rows for caption in row.get("captions", [])})
        self.caption_index = {caption: index for index, caption in enumerate(captions)}
        self.caption_embeddings = _cached_embeddings(captions, stem)
        groups = {captions: i for i, captions in enumerate({tuple(row.get("captions", [])) for row in self.rows})}
        self.groups = [groups[tuple(row.get("captions", []))] for row in self.rows]

    def batches(self, batch_size: int, crop_in_s: float, seed: int, first_step: int = 0) -> Iterator[ClapBatch]:
        """Endless random batches; batch number `i` depends on the seed and on `i` alone."""
        crop = int(crop_in_s * FRAMES_PER_S) // FRAMES_PER_TOKEN * FRAMES_PER_TOKEN
        step = first_step
        while True:
            generator = np.random.default_rng([seed, step])
            indices = generator.choice(len(self.rows), size=min(batch_size, len(self.rows)), replace=False)
            yield self._batch(indices, crop, generator)
            step += 1

    def _batch(self, indices: np.ndarray, crop: int, generator: np.random.Generator) -> ClapBatch:
        mels, captions, quality = [], [], []
        for index in indices:
            start = int(generator.integers((self.num_frames - crop) // FRAMES_PER_TOKEN + 1)) * FRAMES_PER_TOKEN
            gain = generator.uniform(-12.0, 6.0) / 20 * math.log(10)
            mel = torch.from_numpy(self.mel_spectrograms[index, start : start + crop].astype(np.float32))
            mels.append((mel + gain).clamp(min=SILENCE))
            choices = self.rows[index].get("captions", [])
            captions.append(self.caption_index[choices[generator.integers(len(choices))]] if choices else -1)
            quality.append(_quality_curve(self.rows[index], start, crop))
        captions = torch.tensor(captions)
        return ClapBatch(
            mel_spectrogram=torch.stack(mels),
            sentence_embeddings=self.caption_embeddings[captions.clamp(min=0)].float(),
            group=torch.tensor([self.groups[index] for index in indices]),
            has_caption=captions >= 0,
            quality=torch.stack(quality),
        )

    def _cached_mel_spectrograms(self, stem: Path) -> np.ndarray:
        """Log-mel `(clips, frames, bins)` in float16, memory-mapped; clips that end early are followed by silence."""
        log_mel = LogMel()
        path = stem.with_suffix(".mel.npy")
        if path.is_file():
            return np.load(path, mmap_mode="r")
        part = stem.with_suffix(".mel.part.npy")
        shape = (len(self.rows), self.num_frames, log_mel.filters.shape[1])
        mel_spectrograms = np.lib.format.open_memmap(part, mode="w+", dtype=np.float16, shape=shape)
        for index, row in enumerate(tqdm(self.rows, unit="clip", desc="spectrograms")):
            waveform = read_audio(
                row["path"],
                start_in_s=row.get("start_in_s", 0.0),
                duration_in_s=min(row["duration_in_s"], self.num_frames / FRAMES_PER_S),
            )
            mel = log_mel(waveform[None])[0, : self.num_frames]
            mel_spectrograms[index] = SILENCE
            mel_spectrograms[index, : len(mel)] = mel.numpy()
        mel_spectrograms.flush()
        part.replace(path)
        return np.load(path, mmap_mode="r")


def _read_rows(manifest: Path, split: str) -> list[dict[str, Any]]:
    """The clips of one split, with absolute paths."""
    rows = []
    with open(manifest, encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                row = json.loads(line)
                row["path"] = manifest.parent / row["path"]
            except (json.JSONDecodeError, KeyError, TypeError) as error:
                raise ValueError(f"`manifests`: line {number} of {str(manifest)!r} is no clip: {error!r}.") from error
            if row.get("tags", {}).get("split", "train") == split:
                rows.append(row)
    return rows


def _cached_embeddings(captions: list[str], stem: Path) -> torch.Tensor:
    """Sentence embeddings `(captions, H)` in float16."""
    path = stem.with_suffix(".text.safetensors")
    if path.is_file():
        return load_file(path)["embeddings"]
    pieces = [
        sentence_embeddings(captions[start : start + 256]).half()
        for start in tqdm(range(0, len(captions), 256), unit="batch", desc="captions")
    ]
    embeddings = torch.cat(pieces) if pieces else torch.zeros(1, 384, dtype=torch.float16)
    part = stem.with_suffix(".text.part")
    save_file({"embeddings": embeddings}, part)
    part.replace(path)
    return embeddings


def _quality_curve(row: dict[str, Any], start: int, crop: int) -> torch.Tensor:
    """Quality at the middle of every token of a crop, in frames of the spectrogram, `(crop // 8,)`."""
    num_tokens = crop // FRAMES_PER_TOKEN
    curve, score = row.get("quality_frames"), row.get("quality_score")
    if not curve:
        return torch.full((num_tokens,), math.nan if score is None else score)
    times = (start + (np.arange(num_tokens) + 0.5) * FRAMES_PER_TOKEN) / FRAMES_PER_S
    positions = (np.arange(len(curve)) + 0.5) / row["quality_frame_rate"]
    return torch.from_numpy(np.interp(times, positions, curve).astype(np.float32))
