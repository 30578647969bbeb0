"""Ratings for music whose truth is known: a manifest with quality scores and true captions takes the place of listeners.

Overall quality is the manifest's `quality_score`. Text alignment is planned: in every pass each clip meets one prompt.
It is a caption of the clip itself, rated 5, or a caption of another clip, rated by what the two have in common:

    1 + 4 * (2 * [same style] + 2 * (shared instruments / all instruments) + [same mood] + [same key] + [same tempo]) / 7

So 5 is a match, 1 shares nothing, and a partly true prompt lies between. Half of the foreign captions come from the most
alike of some clips drawn at random, so that all of the scale is met; the others from any clip.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from qamdt.manifest import Record, resolve_clip_path, scan_manifest
from qamdt.quality import MAX_SCORE, MIN_SCORE
from whisq.ratings import Fault, RatedClip, RatedMusic
from whisq.training.config import DataConfig


NUM_CANDIDATES = 16
TEMPO_TOLERANCE = 0.04
_STYLE_WEIGHT = _INSTRUMENTS_WEIGHT = 2.0


@dataclass(frozen=True, kw_only=True)
class Content:
    """What is known about a clip.

    Args:
        piece: Name of the piece; clips of one piece have the same content and differ in sound.
        captions: True descriptions.
        tags: `style`, `instruments`, `mood`, `key` and `tempo_bpm`, each as far as it is known.
    """

    piece: str
    captions: tuple[str, ...]
    tags: dict


class PromptPlan:
    """Draws a prompt of known alignment for each clip.

    Args:
        contents: What is known about the clips, by their ids.
        matched_share: How often a clip meets a caption of its own.
    """

    def __init__(self, contents: dict[str, Content], matched_share: float):
        self.contents = contents
        self.matched_share = matched_share

    def draw(self, clips: Sequence[RatedClip], seed: str) -> list[RatedClip]:
        """Returns the clips with a prompt and its rating each; the same ones for the same seed.

        Args:
            clips: The clips; foreign captions come from among them.
            seed: Decides every draw.
        """
        generator = random.Random(seed)
        return [self._draw_prompt(clip, clips, generator) for clip in clips]

    def list_prompts(self, clips: Sequence[RatedClip]) -> set[str]:
        """Returns every prompt that `draw` can give to these clips."""
        return {caption for clip in clips for caption in self.contents[clip.id].captions}

    def _draw_prompt(self, clip: RatedClip, clips: Sequence[RatedClip], generator: random.Random) -> RatedClip:
        own = self.contents[clip.id]
        is_matched, is_alike = generator.random() < self.matched_share, generator.random() < 0.5
        candidates = [self.contents[other.id] for other in generator.choices(clips, k=NUM_CANDIDATES)]
        foreign = [content for content in candidates if content.piece != own.piece and content.captions]
        if not own.captions or not (foreign or is_matched):
            return clip
        if is_matched:
            return replace(clip, prompt=generator.choice(own.captions), text_alignment=MAX_SCORE)
        other = max(foreign, key=lambda content: overlap(own, content)) if is_alike else foreign[0]
        prompt = generator.choice(other.captions)
        share = 1.0 if prompt in own.captions else overlap(own, other)
        return replace(clip, prompt=prompt, text_alignment=MIN_SCORE + (MAX_SCORE - MIN_SCORE) * share)


def overlap(first: Content, second: Content) -> float:
    """Returns how much two contents have in common, 0 to 1; what is unknown of either is not in common."""

    def agrees(name: str) -> float:
        value = first.tags.get(name)
        return float(value is not None and value == second.tags.get(name))

    tempo, other_tempo = first.tags.get("tempo_bpm"), second.tags.get("tempo_bpm")
    same_tempo = bool(tempo and other_tempo and abs(tempo - other_tempo) <= TEMPO_TOLERANCE * tempo)
    players, other_players = set(first.tags.get("instruments") or ()), set(second.tags.get("instruments") or ())
    shared = len(players & other_players) / max(len(players | other_players), 1)
    total = _STYLE_WEIGHT * agrees("style") + _INSTRUMENTS_WEIGHT * shared
    total += agrees("mood") + agrees("key") + same_tempo
    return total / (_STYLE_WEIGHT + _INSTRUMENTS_WEIGHT + 3)


def read_rated_manifest(config: DataConfig) -> tuple[RatedMusic, PromptPlan]:
    """Reads a manifest and splits it by the tag `split`; pieces for the dev set are taken from training.

    Args:
        config: Names the manifest and says how it is split.
    """
    path = Path(config.manifest)
    splits: dict[str, list[RatedClip]] = {"train": [], "dev": [], "test": []}
    contents: dict[str, Content] = {}
    faults: list[Fault] = []
    for line in scan_manifest(path):
        try:
            if line.record is None:
                raise ValueError(line.fault)
            clip, content, split = _rate_record(line.record, resolve_clip_path(path, line.record), config)
        except ValueError as error:
            faults.append(Fault(file=path.name, line=line.number, error=str(error)))
            continue
        splits[split].append(clip)
        contents[clip.id] = content
    if not splits["train"]:
        details = f" The first of {len(faults)} faults: {faults[0]}" if faults else ""
        raise ValueError(f"{str(path)!r} holds no training clip with a quality score.{details}")
    return RatedMusic(splits=splits, faults=faults), PromptPlan(contents, config.matched_share)


def _rate_record(record: Record, path: Path, config: DataConfig) -> tuple[RatedClip, Content, str]:
    """Returns the clip of a record, what is known about it, and its split."""
    if record.quality_score is None:
        raise ValueError(f"clip {record.id!r} has no `quality_score`; score the manifest first.")
    tags = record.tags
    group = tags.get(config.system_tag)
    group = group.get("kind") if isinstance(group, dict) else group
    piece = str(tags.get("piece_id", record.id))
    clip = RatedClip(
        id=record.id,
        path=path,
        system=str(group),
        overall_quality=float(record.quality_score),
        start_in_s=float(record.start_in_s),
        duration_in_s=float(record.duration_in_s),
        quality_frames=record.quality_frames,
        quality_frame_rate=record.quality_frame_rate,
    )
    captions = tuple(caption for caption in record.captions if caption.strip())
    content = Content(piece=piece, captions=captions[: config.max_captions], tags=tags)
    if tags.get("split") in ("dev", "test"):
        return clip, content, tags["split"]
    is_dev = random.Random(f"dev {piece}").random() < config.dev_share
    return clip, content, "dev" if is_dev else "train"
