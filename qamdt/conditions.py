"""What a call of the network is told beside the noisy latents: texts, and qualities of clips and of their moments.

Training and every pipeline say it in the same way, so that a condition that is added here reaches both.

Shapes: B batch, L text tokens, D text width, T frames of a curve, at any frame rate.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F


# The argument of the network that each level and each curve goes to, and the option of a model that knows it.
LEVELS = {"clip": ("quality_level", "use_quality_token"), "global": ("global_quality", "use_global_quality")}
CURVES = {"quality": ("frame_quality", "use_frame_quality"), "music": ("music", "num_music_features")}


@dataclass(frozen=True)
class Conditions:
    """What the network is told about each clip of a batch.

    Args:
        texts: Text states of shape `(batch, text_tokens, dim)`.
        mask: Shape `(batch, text_tokens)`, true for real tokens.
        levels: Integers of shape `(batch,)` by name: the quality of the `"clip"`, and the `"global"` one of the data
            set that it is from, each 1 to 5 or 0 for unknown.
        curves: What changes inside a clip, of shape `(batch, frames)` or `(batch, frames, features)`, by name:
            `"quality"`, in fractional levels, and `"music"`, what is played (`qamdt.music.music_curve`).
    """

    texts: torch.Tensor
    mask: torch.Tensor
    levels: dict[str, torch.Tensor] = field(default_factory=dict)
    curves: dict[str, torch.Tensor] = field(default_factory=dict)

    def __post_init__(self):
        for name, known in (("levels", LEVELS), ("curves", CURVES)):
            if unknown := getattr(self, name).keys() - known.keys():
                raise ValueError(f"`{name}` must be among {sorted(known)}, got {sorted(unknown)}.")
        shapes = [tuple(tensor.shape) for tensor in (self.mask, *self.levels.values(), *self.curves.values())]
        if shapes[0] != self.texts.shape[:2] or any(shape[0] != len(self.texts) for shape in shapes):
            raise ValueError(
                f"`mask` must have the shape {tuple(self.texts.shape[:2])} of `texts`, and `levels` and `curves` its "
                f"batch, got the shapes {shapes}."
            )

    def __len__(self) -> int:
        """The number of clips."""
        return len(self.texts)

    def to(self, device: torch.device | None = None, dtype: torch.dtype | None = None) -> Conditions:
        """Moves everything to `device`, and brings the texts to `dtype`; curves stay as exact as they are."""
        moved = self._map(lambda tensor: tensor.to(device))
        return moved if dtype is None else replace(moved, texts=moved.texts.to(dtype))

    def repeat(self, num_times: int) -> Conditions:
        """Each clip `num_times` in a row."""
        return self._map(lambda tensor: tensor.repeat_interleave(num_times, dim=0))

    def at_frames(self, frames: torch.Tensor) -> Conditions:
        """The same clips at some of their frames, integers `(frames,)`; all curves must have a value for each frame."""
        return replace(self, curves={name: curve.index_select(1, frames) for name, curve in self.curves.items()})

    @classmethod
    def cat(cls, parts: Sequence[Conditions]) -> Conditions:
        """Puts conditions behind one another along the batch; texts are padded to the longest.

        Raises:
            ValueError: Some of the parts have levels or curves that others have not.
        """
        num_tokens = max(part.texts.shape[1] for part in parts)
        missing = [num_tokens - part.texts.shape[1] for part in parts]
        return cls(
            texts=torch.cat([F.pad(p.texts, (0, 0, 0, count)) for p, count in zip(parts, missing, strict=True)]),
            mask=torch.cat([F.pad(p.mask, (0, count)) for p, count in zip(parts, missing, strict=True)]),
            levels=_cat_by_name("levels", [part.levels for part in parts]),
            curves=_cat_by_name("curves", [part.curves for part in parts]),
        )

    def for_model(self, config: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """Returns the arguments of the network's forward, without the conditions that it does not know.

        Args:
            config: `QAMDTTransformer2DModel.config`.
        """
        arguments = {"encoder_hidden_states": self.texts, "encoder_attention_mask": self.mask}
        for given, known in ((self.levels, LEVELS), (self.curves, CURVES)):
            for name, tensor in given.items():
                argument, option = known[name]
                if config[option]:
                    arguments[argument] = tensor
        return arguments

    def _map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Conditions:
        """The same conditions with each tensor changed."""
        return Conditions(
            texts=change(self.texts),
            mask=change(self.mask),
            levels={name: change(tensor) for name, tensor in self.levels.items()},
            curves={name: change(tensor) for name, tensor in self.curves.items()},
        )


def _cat_by_name(argument: str, parts: Sequence[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    names = parts[0].keys()
    if any(part.keys() != names for part in parts):
        raise ValueError(
            f"`{argument}` must have the same names in all parts, got {[sorted(part) for part in parts]}."
        )
    return {name: torch.cat([part[name] for part in parts]) for name in names}
