"""What a manifest says about encoded clips, as training wants it: texts, curves on the latent grid, quality thresholds."""

import logging
import math
from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch

from qamdt.latent_folder import round_score
from qamdt.manifest import Record
from qamdt.quality import QualityStats
from qamdt.quality_words import NUM_LEVELS


logger = logging.getLogger(__name__)
_NO_LABEL, _NO_LEVEL = -1, -2  # in place of a level


def choose_stats(
    records: Sequence[Record], manifest: Path, path: str | Path | None, before: QualityStats | None
) -> QualityStats | None:
    """Returns the thresholds between quality levels; `None` when no clip has a score, or too few have different ones.

    They are those of `path`; else those of `label_quality` beside the manifest (`labelled.quality.json` beside
    `labelled.jsonl`); else, where clips have labels, those of before; else they are derived from the scores. Labels in
    the manifest are never contradicted, unless by `path`.

    Args:
        records: The clips.
        manifest: The manifest that they come from.
        path: JSON file of quality statistics whose thresholds to take in any case.
        before: The thresholds that the folder had until now.
    """
    labels = _Labels(records)
    scorers = labels.scorers
    if len(scorers) > 1:
        raise ValueError(
            f"the quality scores come from different scorers, {sorted(map(str, scorers))}; score all clips with one."
        )
    if path is not None:
        stats = QualityStats.load(path)
        if scorers != {stats.scorer}:
            raise ValueError(
                f"`quality_stats` {str(path)!r} holds the thresholds of {stats.scorer!r}, and the clips were scored by "
                f"{sorted(map(str, scorers)) or 'nobody'}; give the statistics of the same scorer."
            )
        return stats
    if not scorers:
        return None
    scorer = next(iter(scorers))
    beside = manifest.with_suffix(".quality.json")
    candidates = [QualityStats.load(beside)] if beside.is_file() else []
    candidates += [before] if labels.exist and before is not None else []
    for stats in candidates:
        if stats.scorer == scorer and labels.find_contradiction(stats) is None:
            return stats
    scores = labels.scores[~np.isnan(labels.scores)]
    if len(np.unique(scores)) < NUM_LEVELS and not labels.exist:
        logger.warning(
            f"{len(np.unique(scores))} distinct quality scores are too few to set {NUM_LEVELS} levels apart: the clips are "
            "encoded as of unknown quality. Score more clips, or give the thresholds with `--quality-stats`."
        )
        return None
    stats = QualityStats.from_scores(scores, scorer=str(scorer))
    position = labels.find_contradiction(stats)
    if position is not None:
        contradicted = records[position]
        raise ValueError(
            f"clip {contradicted.id!r} is labelled with `quality_level` {contradicted.extra['quality_level']}, but "
            f"thresholds derived from the scores in {str(manifest)!r} make it {stats.level(contradicted.quality_score)}; "
            "give the thresholds of the labels, which `label_quality` wrote beside its manifest, with `--quality-stats`."
        )
    return stats


class _Labels:
    """The scores and labels of clips as columns, and who gave the scores."""

    def __init__(self, records: Iterable[Record]):
        scores, levels = array("d"), array("b")
        self.scorers: set[str | None] = set()
        for record in records:
            if record.quality_score is not None:
                self.scorers.add(record.quality_scorer)
            scores.append(math.nan if record.quality_score is None else record.quality_score)
            level = record.extra.get("quality_level", _NO_LABEL)
            levels.append(level if level in range(NUM_LEVELS + 1) or level is _NO_LABEL else _NO_LEVEL)
        self.scores, self._levels = np.array(scores, np.float64), np.array(levels, np.int8)

    @property
    def exist(self) -> bool:
        """Whether any clip has a label."""
        return bool((self._levels != _NO_LABEL).any())

    def find_contradiction(self, stats: QualityStats) -> int | None:
        """Returns the position of a clip whose label is another level than the one that thresholds give its score."""
        wrong = np.flatnonzero((self._levels != _NO_LABEL) & (stats.level(self.scores) != self._levels))
        return int(wrong[0]) if len(wrong) else None


def list_training_texts(record: Record, stats: QualityStats | None, max_captions: int | None) -> list[str]:
    """Returns every text that training can draw for a clip: captions bare and with each quality prefix it may need.

    The score of a crop is a mean over part of the clip's curve, so it lies between the curve's extremes, and every
    prefix from the one of the worst moment to the one of the best may be asked for.
    """
    captions = record.captions[:max_captions] or ("",)
    if stats is None or record.quality_score is None:
        return ["", *captions]
    curve = record.quality_frames or (record.quality_score,)
    lowest, highest = round_score(min(curve)), round_score(max(curve))
    prefixes = ["", *stats.prefixes_between(lowest, highest)]
    return ["", *(prefix + caption for prefix in prefixes for caption in captions)]


def make_curves(record: Record, num_frames: int) -> dict[str, torch.Tensor]:
    """Returns what is known along a clip at the centre of each of `num_frames` latent frames.

    Returns:
        Curves by name: `quality` is the opinion score, `(num_frames,)`. A name is missing where nothing is known.
    """
    if record.quality_score is None and record.quality_frames is None:
        return {}
    return {"quality": resample_scores(record, num_frames)}


def resample_scores(record: Record, num_frames: int) -> torch.Tensor:
    """Returns the opinion score at the centre of each of `num_frames` latent frames, NaN where the clip has none."""
    if record.quality_frames is None:
        score = math.nan if record.quality_score is None else record.quality_score
        return torch.full((num_frames,), score)
    curve = torch.tensor(record.quality_frames, dtype=torch.float32)
    seconds = (torch.arange(num_frames) + 0.5) * record.duration_in_s / num_frames
    place = (seconds * record.quality_frame_rate - 0.5).clamp(0, len(curve) - 1)
    left = place.long()
    right = (left + 1).clamp(max=len(curve) - 1)
    return torch.lerp(curve[left], curve[right], place - left)
