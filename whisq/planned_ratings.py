"""Ratings for music whose truth is known: a manifest with quality scores and true captions takes the place of listeners.

Overall quality is the manifest's `quality_score`. Text alignment is planned: in every pass each clip meets one prompt.
It is a caption of the clip itself, rated 5, or a caption of another clip, rated by what the two have in common:

    1 + 4 * (2 * [same style] + 2 * (shared instruments / all instruments) + [same mood] + [same key] + [same tempo]) / 7

So 5 is a match, 1 shares nothing, and a partly true prompt lies between. Half of the foreign captions come from the most
alike of some clips drawn at random, so that all of the scale is met; the others from any clip.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from qamdt.quality import MAX_SCORE, MIN_SCORE
from whisq.config import DataConfig
from whisq.ratings import Fault, RatedClip, RatedMusic


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
    if not path.is_file():
        raise FileNotFoundError(
            f"`data.manifest` must be a manifest (JSONL), got {str(path)!r}, which does not exist."
        )
    splits: dict[str, list[RatedClip]] = {"train": [], "dev": [], "test": []}
    contents: dict[str, Content] = {}
    faults: list[Fault] = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                clip, content, split = _parse_record(json.loads(line), path.resolve().parent, config)
                if clip.id in contents:
                    raise ValueError(f"the id {clip.id!r} was used before; ids must be unique.")
            except (ValueError, KeyError, TypeError) as error:
                message = f"the field {error} is missing." if isinstance(error, KeyError) else str(error)
                faults.append(Fault(file=path.name, line=number, error=message))
                continue
            splits[split].append(clip)
            contents[clip.id] = content
    if not splits["train"]:
        details = f" The first of {len(faults)} faults: {faults[0]}" if faults else ""
        raise ValueError(f"{str(path)!r} holds no training clip with a quality score.{details}")
    return RatedMusic(splits=splits, faults=faults), PromptPlan(contents, config.matched_share)


def _parse_record(values: dict, root: Path, config: DataConfig) -> tuple[RatedClip, Content, str]:
    """Reads one line of the manifest: the clip, what is known about it, and its split."""
    clip_id, tags = values["id"], values.get("tags") or {}
    score, frames = values.get("quality_score"), values.get("quality_frames")
    if score is None:
        raise ValueError(f"clip {clip_id!r} has no `quality_score`; score the manifest first.")
    if not all(MIN_SCORE <= float(rating) <= MAX_SCORE for rating in (score, *(frames or ()))):
        raise ValueError(f"the quality of clip {clip_id!r} must lie between 1 and 5, got {score} and {frames}.")
    path = root / values["path"]
    if not path.resolve().is_relative_to(root):
        raise ValueError(
            f"the path of clip {clip_id!r} must stay inside the manifest's folder, got {values['path']!r}."
        )
    group = tags.get(config.system_tag)
    piece = str(tags.get("piece_id", clip_id))
    clip = RatedClip(
        id=clip_id,
        path=path,
        system=str(group["kind"] if isinstance(group, dict) else group),
        overall_quality=float(score),
        start_in_s=float(values.get("start_in_s", 0.0)),
        duration_in_s=float(values["duration_in_s"]),
        quality_frames=tuple(map(float, frames)) if frames else None,
        quality_frame_rate=float(values["quality_frame_rate"]) if frames else None,
    )
    captions = tuple(caption for caption in values.get("captions") or () if caption.strip())
    content = Content(piece=piece, captions=captions[: config.max_captions], tags=tags)
    if tags.get("split") in ("dev", "test"):
        return clip, content, tags["split"]
    is_dev = random.Random(f"dev {piece}").random() < config.dev_share
    return clip, content, "dev" if is_dev else "train"
