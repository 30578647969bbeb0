"""What the CLAP and its audio tower learn from: log-mel crops, the sentence embedding of a caption, the quality curve.

Spectrograms and sentence embeddings are computed once and kept in a cache folder, since a step of training takes less
time than reading the audio for it. What has changed of clips and captions is computed again.

Shapes: B batch, N mel frames (a multiple of 8), M mel bins, T tokens (N // 8), H width of a sentence embedding.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from qamdt.audio import read_audio
from qamdt.embedded import TEXT_ENCODER_PACKAGE
from qamdt.keyed_rows import make_key
from qamdt.manifest import Record, clip_identity, resolve_clip_path, scan_manifest
from whisq.audio import LogMel
from whisq.ratings import Fault
from whisq.sentence_encoder import sentence_embeddings
from whisq.training.keyed_table import open_table


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


@dataclass(frozen=True)
class _Clip:
    """A clip's file, its record, and the key of what is read of the file."""

    path: Path
    record: Record
    key: int


class ClapDataset:
    """The clips of some manifests, cached; `faults` lists those that cannot be used.

    Args:
        manifests: JSONL manifests: `id`, `path`, `duration_in_s`, `captions`, and for the quality curve `quality_score`
            or `quality_frames` with `quality_frame_rate`.
        cache_dir: Receives spectrograms and embeddings, and has those of an earlier run.
        split: Which value of the tag `split` to read; clips without the tag belong to `"train"`.
        clip_in_s: Longest stretch that is kept of a clip.
    """

    def __init__(self, manifests: list[Path], cache_dir: Path, *, split: str = "train", clip_in_s: float = 10.24):
        self.num_frames = int(clip_in_s * FRAMES_PER_S) // FRAMES_PER_TOKEN * FRAMES_PER_TOKEN
        self.faults: list[Fault] = []
        self.clips = [clip for manifest in manifests for clip in _read_clips(manifest, split, self.faults)]
        if not self.clips:
            details = f" The first of {len(self.faults)} faults: {self.faults[0]}" if self.faults else ""
            raise ValueError(f"`manifests` {[str(m) for m in manifests]} have no clip of split {split!r}.{details}")
        cache_dir.mkdir(parents=True, exist_ok=True)
        self.mel_spectrograms = self._cached_mel_spectrograms(cache_dir / "spectrograms.npy")
        captions = sorted({caption for clip in self.clips for caption in clip.record.captions})
        self.caption_index = {caption: index for index, caption in enumerate(captions)}
        self.caption_embeddings = _cached_embeddings(captions, cache_dir / "sentences.npy")
        groups = {captions: i for i, captions in enumerate({clip.record.captions for clip in self.clips})}
        self.groups = [groups[clip.record.captions] for clip in self.clips]

    def key(self) -> str:
        """Stands for what is learnt from: sounds, captions, and quality."""
        records = [(clip.key, clip.record) for clip in self.clips]
        facts = [(key, r.captions, r.quality_score, r.quality_frames, r.quality_frame_rate) for key, r in records]
        return f"{make_key(facts):016x}"

    def batches(self, batch_size: int, crop_in_s: float, seed: int, first_step: int = 0) -> Iterator[ClapBatch]:
        """Endless random batches; batch number `i` depends on the seed and on `i` alone."""
        crop = int(crop_in_s * FRAMES_PER_S) // FRAMES_PER_TOKEN * FRAMES_PER_TOKEN
        step = first_step
        while True:
            generator = np.random.default_rng([seed, step])
            indices = generator.choice(len(self.clips), size=min(batch_size, len(self.clips)), replace=False)
            yield self._batch(indices, crop, generator)
            step += 1

    def _batch(self, indices: np.ndarray, crop: int, generator: np.random.Generator) -> ClapBatch:
        mels, captions, quality = [], [], []
        for index in indices:
            start = int(generator.integers((self.num_frames - crop) // FRAMES_PER_TOKEN + 1)) * FRAMES_PER_TOKEN
            gain = generator.uniform(-12.0, 6.0) / 20 * math.log(10)
            mel = torch.from_numpy(self.mel_spectrograms[index, start : start + crop].astype(np.float32))
            mels.append((mel + gain).clamp(min=SILENCE))
            choices = self.clips[index].record.captions
            captions.append(self.caption_index[choices[generator.integers(len(choices))]] if choices else -1)
            quality.append(_quality_curve(self.clips[index].record, start, crop))
        captions = torch.tensor(captions)
        return ClapBatch(
            mel_spectrogram=torch.stack(mels),
            sentence_embeddings=self.caption_embeddings[captions.clamp(min=0)].float(),
            group=torch.tensor([self.groups[index] for index in indices]),
            has_caption=captions >= 0,
            quality=torch.stack(quality),
        )

    def _cached_mel_spectrograms(self, path: Path) -> np.ndarray:
        """Log-mel `(clips, frames, bins)` in float16, memory-mapped; clips that end early are followed by silence."""
        log_mel = LogMel()
        shape = (self.num_frames, log_mel.filters.shape[1])
        unreadable: set[int] = set()

        def compute(numbers: list[int]) -> Iterator[np.ndarray | None]:
            for number in tqdm(numbers, unit="clip", desc="spectrograms", disable=None):
                path, record = self.clips[number].path, self.clips[number].record
                duration_in_s = min(record.duration_in_s, self.num_frames / FRAMES_PER_S)
                try:
                    waveform = read_audio(path, start_in_s=record.start_in_s, duration_in_s=duration_in_s)
                    mel = log_mel(waveform[None])[0, : self.num_frames].numpy()
                except (ValueError, OSError) as error:
                    self.faults.append(Fault(file=str(path), line=None, error=str(error)))
                    unreadable.add(number)
                    yield None
                else:
                    yield np.pad(mel, ((0, self.num_frames - len(mel)), (0, 0)), constant_values=SILENCE)

        table = open_table(path, [clip.key for clip in self.clips], shape, compute)
        if unreadable:
            self.clips = [clip for number, clip in enumerate(self.clips) if number not in unreadable]
            if not self.clips:
                raise ValueError(f"none of the clips can be read. The first of them: {self.faults[-1]}")
            table = open_table(path, [clip.key for clip in self.clips], shape, compute)
        return table


def _read_clips(manifest: Path, split: str, faults: list[Fault]) -> Iterator[_Clip]:
    """Yields the clips of one split."""
    for line in scan_manifest(manifest):
        try:
            if line.record is None:
                raise ValueError(line.fault)
            path = resolve_clip_path(manifest, line.record)
        except ValueError as error:
            faults.append(Fault(file=manifest.name, line=line.number, error=str(error)))
            continue
        if line.record.tags.get("split", "train") == split:
            key = make_key(str(manifest.absolute()), clip_identity(manifest, line.record))
            yield _Clip(path=path, record=line.record, key=key)


def _cached_embeddings(captions: list[str], path: Path) -> torch.Tensor:
    """Sentence embeddings `(captions, H)` in float16."""
    if not captions:
        return torch.zeros(1, 384, dtype=torch.float16)

    def compute(numbers: list[int]) -> Iterator[np.ndarray]:
        for start in tqdm(range(0, len(numbers), 256), unit="batch", desc="captions", disable=None):
            batch = [captions[number] for number in numbers[start : start + 256]]
            yield from sentence_embeddings(batch).half().numpy()

    keys = [make_key(TEXT_ENCODER_PACKAGE, caption) for caption in captions]
    return torch.from_numpy(np.array(open_table(path, keys, (384,), compute)))


def _quality_curve(record: Record, start: int, crop: int) -> torch.Tensor:
    """Quality at the middle of every token of a crop, in frames of the spectrogram, `(crop // 8,)`."""
    num_tokens = crop // FRAMES_PER_TOKEN
    curve, score = record.quality_frames, record.quality_score
    if not curve:
        return torch.full((num_tokens,), math.nan if score is None else score)
    times = (start + (np.arange(num_tokens) + 0.5) * FRAMES_PER_TOKEN) / FRAMES_PER_S
    positions = (np.arange(len(curve)) + 0.5) / record.quality_frame_rate
    return torch.from_numpy(np.interp(times, positions, curve).astype(np.float32))
