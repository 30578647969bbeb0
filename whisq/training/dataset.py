"""Batches of cached hidden states, or of sound and prompts for encoders that learn, with the ratings to train to.

Shapes: B batch, S samples, T audio tokens, L text tokens, D widths.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch.nn.utils.rnn import pad_sequence

from whisq.ratings import RatedClip
from whisq.training.config import DataConfig
from whisq.training.features import FeatureStore, clip_key, read_clip


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Clips with their prompts and ratings; masks are `True` for real tokens, a missing rating is NaN.

    Args:
        audio_hidden_states: Tokens of the clips `(B, T, D_a)`; `None` until `waveforms` are encoded.
        audio_mask: `(B, T)`.
        text_hidden_states: Tokens of the prompts `(B, L, D_t)`; a clip without prompt has one token of zeros. `None`
            until `prompts` are encoded.
        text_mask: `(B, L)`.
        overall_quality: Ratings `(B,)`.
        text_alignment: Ratings `(B,)`.
        window_mask: `(B, T)`, `True` for the tokens of the random window of each clip.
        window_quality: Rating of what is heard in that window `(B,)`.
        waveforms: 16 kHz samples `(B, S)` for an audio encoder that learns.
        num_samples: Real samples of each `(B,)`.
        prompts: The prompts for a text encoder that learns.
    """

    audio_hidden_states: torch.Tensor | None
    audio_mask: torch.Tensor
    text_hidden_states: torch.Tensor | None
    text_mask: torch.Tensor
    overall_quality: torch.Tensor
    text_alignment: torch.Tensor
    window_mask: torch.Tensor
    window_quality: torch.Tensor
    waveforms: torch.Tensor | None = None
    num_samples: torch.Tensor | None = None
    prompts: tuple[str | None, ...] | None = None

    def to(self, device: torch.device) -> Batch:
        """Returns the batch on a device."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{n: v.to(device) for n, v in values.items() if isinstance(v, torch.Tensor)})


class CachedClips:
    """Puts batches together from the cached hidden states of clips and prompts.

    Args:
        audio: Hidden states of clips.
        text: Hidden states of prompts.
        frames_per_s: Audio tokens a second.
        config: Says how windows are drawn.
    """

    def __init__(self, audio: FeatureStore, text: FeatureStore, frames_per_s: float, config: DataConfig):
        self.audio = audio
        self.text = text
        self.frames_per_s = frames_per_s
        self.config = config

    def has(self, clip: RatedClip) -> bool:
        """Whether the clip could be read and encoded."""
        return clip.path.is_file() and clip_key(clip, self.config.max_seconds) in self.audio

    def collate(
        self, clips: Sequence[RatedClip], seed: str | None = None, *, hears: bool = False, reads: bool = False
    ) -> Batch:
        """Builds a batch.

        Args:
            clips: Clips with or without prompts.
            seed: Decides, with a clip's id, its random window; the window is the whole clip when `None`.
            hears: Whether the batch holds sound in place of the hidden states of clips.
            reads: Whether it holds prompts in place of their hidden states.
        """
        # How many tokens there are does not depend on an encoder's weights.
        keys = [clip_key(clip, self.config.max_seconds) for clip in clips]
        num_tokens = [self.audio.num_tokens(key) for key in keys]
        num_text_tokens = [1 if clip.prompt is None else self.text.num_tokens(clip.prompt) for clip in clips]
        waveforms = [read_clip(clip, self.config.max_seconds) for clip in clips] if hears else []
        spans = [self._draw_window(clip, count, seed) for clip, count in zip(clips, num_tokens, strict=True)]
        qualities = [window_quality(c, s, e, self.frames_per_s) for c, (s, e) in zip(clips, spans, strict=True)]
        positions = torch.arange(max(num_tokens))
        starts, ends = torch.tensor(spans).T
        return Batch(
            audio_hidden_states=None if hears else pad_sequence([self.audio.read(k).float() for k in keys], True),
            audio_mask=lengths_to_mask(num_tokens),
            text_hidden_states=None if reads else pad_sequence([self._read_prompt(c) for c in clips], True),
            text_mask=lengths_to_mask(num_text_tokens),
            overall_quality=torch.tensor([clip.overall_quality for clip in clips]),
            text_alignment=torch.tensor([math.nan if c.text_alignment is None else c.text_alignment for c in clips]),
            window_mask=(positions >= starts[:, None]) & (positions < ends[:, None]),
            window_quality=torch.tensor(qualities),
            waveforms=pad_sequence(waveforms, batch_first=True) if hears else None,
            num_samples=torch.tensor([len(waveform) for waveform in waveforms]) if hears else None,
            prompts=tuple(clip.prompt for clip in clips) if reads else None,
        )

    def _read_prompt(self, clip: RatedClip) -> torch.Tensor:
        """Returns the hidden states of a clip's prompt `(tokens, D_t)`."""
        if clip.prompt is None:
            return torch.zeros(1, self.text.settings["hidden_size"])
        return self.text.read(clip.prompt).float()

    def _draw_window(self, clip: RatedClip, num_tokens: int, seed: str | None) -> tuple[int, int]:
        """Draws a window whose length is evenly spread on a logarithmic scale, from the shortest to the whole clip."""
        shortest = min(max(1, round(self.config.min_window_in_s * self.frames_per_s)), num_tokens)
        if seed is None or shortest == num_tokens:
            return 0, num_tokens
        generator = random.Random(f"{seed} {clip.id}")
        length = round(math.exp(generator.uniform(math.log(shortest), math.log(num_tokens))))
        start = generator.randint(0, num_tokens - length)
        return start, start + length


def window_quality(clip: RatedClip, start: int, end: int, frames_per_s: float) -> float:
    """Returns the rating of the tokens `start` to `end` of a clip: the mean of its curve there, if it has one."""
    if clip.quality_frames is None:
        return clip.overall_quality
    first = min(int(start / frames_per_s * clip.quality_frame_rate), len(clip.quality_frames) - 1)
    last = max(first + 1, round(end / frames_per_s * clip.quality_frame_rate))
    heard = clip.quality_frames[first:last]
    return math.fsum(heard) / len(heard)


def lengths_to_mask(lengths: Sequence[int]) -> torch.Tensor:
    """Returns the mask `(len(lengths), longest)` of the real elements after padding."""
    return torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]


def order_of_epoch(num_clips: int, seed: int, epoch: int, multiple: int) -> list[int]:
    """Returns the order of the clips in one pass; the first ones come twice where a multiple of `multiple` asks for it.

    Args:
        num_clips: Number of training clips.
        seed: Seed of the run.
        epoch: Number of the pass.
        multiple: Clips of all processes in one update.
    """
    order = list(range(num_clips))
    random.Random(f"order {seed} {epoch}").shuffle(order)
    while len(order) % multiple:
        order += order[: multiple - len(order) % multiple]
    return order
