"""Thresholds of caption refinement: given, or taken from how captions and audio of the data set itself agree."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from qamdt.files import read_json


MIN_CLIPS = 20
MIN_OWN_WINS = 0.8  # of a CLAP that may judge a data set: 0.5 is chance, and 20 clips leave it uncertain by 0.065
FEW_CAPTIONS_SHARE = 0.01  # pairs of captions of different clips that are more alike than a near-duplicate


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """What stages 2 and 3 ask of a caption; all values are cosines of CLAP embeddings, or differences of them.

    Args:
        audio_text: A candidate less similar to the audio than this is dropped (rho 1).
        duplicate: A candidate at least this similar to an original, text to text, is its near-duplicate (rho 2).
        max_loss: How much less similar to the audio than the originals the fused caption may be.
    """

    audio_text: float
    duplicate: float = 0.95
    max_loss: float = 0.05

    def __post_init__(self):
        for name, value in asdict(self).items():
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not -1 <= value <= 1:
                raise ValueError(f"`{name}` must be a number between -1 and 1, got {value!r}.")
        if self.max_loss < 0:
            raise ValueError(f"`max_loss` must not be negative, got {self.max_loss}.")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Thresholds:
        """Builds thresholds from a mapping, refusing names it does not know."""
        known = {field.name for field in fields(cls)}
        if "audio_text" not in values or not values.keys() <= known:
            raise ValueError(f"thresholds must have `audio_text` and may have {sorted(known)}, got {sorted(values)}.")
        return cls(**values)

    @property
    def judges(self) -> bool:
        """Whether anything at all is dropped for not agreeing with the audio."""
        return self.audio_text > -1

    def to_dict(self) -> dict[str, float]:
        """Returns what JSON can hold."""
        return asdict(self)


def read_thresholds(path: str | Path) -> Thresholds:
    """Reads thresholds from a JSON file."""
    try:
        values = read_json(path)
        if not isinstance(values, dict):
            raise ValueError(f"expected a JSON object, got {values!r}.")
        return Thresholds.from_dict(values)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def own_wins(similarities: np.ndarray) -> float:
    """How often a clip is more similar to its own caption than to another's, of similarities `(clips, captions)`."""
    own = np.diagonal(similarities)[:, None]
    wins = (own > similarities) + 0.5 * (own == similarities)
    return float(wins[~np.eye(len(similarities), dtype=bool)].mean())


def derive_thresholds(
    audio_embeddings: np.ndarray, text_embeddings: np.ndarray, *, wrong_kept_share: float = 0.15
) -> Thresholds:
    """Derives thresholds from one caption for each of many clips, right or wrong.

    Captions exchanged between clips show how similar wrong captions are, without anybody having to say which of the
    data set's captions are wrong: `audio_text` lies where only `wrong_kept_share` of the exchanged ones reach it. A
    near-duplicate is more alike than all but a hundredth of the pairs of captions of different clips, and the fused
    caption may lose a tenth of what tells a clip's own captions from exchanged ones.

    All this takes a CLAP that knows such music. One that prefers a clip's own caption to an exchanged one in less than
    `MIN_OWN_WINS` of the pairs is not believed: the thresholds then drop nothing for what it hears.

    Args:
        audio_embeddings: One for each clip `(N, E)`, of unit length.
        text_embeddings: Those of the clips' captions `(N, E)`, of unit length.
        wrong_kept_share: Share of wrong captions that may be kept.
    """
    if audio_embeddings.shape != text_embeddings.shape or len(audio_embeddings) < MIN_CLIPS:
        raise ValueError(
            f"deriving thresholds takes a caption each of at least {MIN_CLIPS} clips, got {len(audio_embeddings)} "
            f"clips and {len(text_embeddings)} captions. Give the thresholds in numbers instead."
        )
    if not 0 < wrong_kept_share < 1:
        raise ValueError(f"`wrong_kept_share` must lie between 0 and 1, got {wrong_kept_share}.")
    similarities = audio_embeddings @ text_embeddings.T  # (N, N)
    is_exchanged = ~np.eye(len(similarities), dtype=bool)
    exchanged = similarities[is_exchanged]
    between_captions = (text_embeddings @ text_embeddings.T)[is_exchanged]
    # Rounding can bring the cosine of equal captions above 1.
    duplicate = round(min(float(np.quantile(between_captions, 1 - FEW_CAPTIONS_SHARE)), 1.0), 4)
    if own_wins(similarities) < MIN_OWN_WINS:
        return Thresholds(audio_text=-1.0, duplicate=duplicate, max_loss=1.0)
    gap = float(np.diagonal(similarities).mean() - exchanged.mean())
    return Thresholds(
        audio_text=round(float(np.quantile(exchanged, 1 - wrong_kept_share)), 4),
        duplicate=duplicate,
        max_loss=round(max(0.1 * gap, 0.0), 4),
    )
