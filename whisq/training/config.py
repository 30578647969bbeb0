"""The settings of a training run of the scorer."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from qamdt.settings import find_settings, load_settings


_PACKAGE_DIR = Path(__file__).resolve().parents[1]
# Presets lie in configs/whisq/ in a checkout and are copied into the package by the wheel build.
CONFIG_DIR = next(
    folder for folder in (_PACKAGE_DIR / "configs", _PACKAGE_DIR.parent / "configs" / "whisq") if folder.is_dir()
)


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which clips the scorer learns from, and how they are split and heard. One of `musiceval` and `manifest` is set.

    Args:
        musiceval: Folder of a MusicEval release.
        manifest: Manifest (JSONL) of clips with quality scores and true captions; alignment targets are planned.
        features: Folder of cached hidden states, which runs may share; `features` beside the runs when null.
        max_seconds: Longer clips are cut to this length.
        split: "official" follows the lists or the tag `split`; "systems" leaves whole systems out of training.
        num_folds: Folds that the systems are dealt into when `split` is "systems".
        fold: Which of them is the test set.
        dev_share: Share of a manifest's training pieces that is held out for early stopping.
        system_tag: Tag of a manifest's records that takes the place of the system; an object's `kind` counts.
        max_captions: Captions of a manifest's clip to draw from, at most.
        matched_share: Share of planned prompts that are the clip's own; half of the others come from similar clips.
        window_loss: Weight of the second hearing, of one random window of each clip; none when 0.
        min_window_in_s: Shortest window.
    """

    musiceval: str | None = None
    manifest: str | None = None
    features: str | None = None
    max_seconds: float = 30.0
    split: Literal["official", "systems"] = "official"
    num_folds: int = 5
    fold: int = 0
    dev_share: float = 0.05
    system_tag: str = "degradation"
    max_captions: int = 5
    matched_share: float = 0.4
    window_loss: float = 1.0
    min_window_in_s: float = 1.0

    def __post_init__(self):
        if (self.musiceval is None) == (self.manifest is None):
            raise ValueError(
                "one of `data.musiceval` and `data.manifest` must be given, "
                f"got {self.musiceval!r} and {self.manifest!r}."
            )
        for name in ("matched_share", "dev_share"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"`data.{name}` must lie between 0 and 1, got {getattr(self, name)}.")
        if not 0 < self.min_window_in_s <= self.max_seconds:
            raise ValueError(
                "`data.min_window_in_s` must be above zero and at most `data.max_seconds`, "
                f"got {self.min_window_in_s} and {self.max_seconds}."
            )


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """The encoders, and whether they stay frozen.

    Args:
        audio: "embedded", or folder or Hub id of an audio encoder.
        audio_revision: Revision on the Hub.
        text: "embedded", or folder or Hub id of a text encoder.
        text_revision: Revision on the Hub.
        finetune: Which of them learn with the heads: "none", "audio", "text" or "both". Each seed starts from what is
            named here, and saves its own next to its heads.
        batch_size: Clips encoded at once.
    """

    audio: str = "embedded"
    audio_revision: str | None = None
    text: str = "embedded"
    text_revision: str | None = None
    finetune: Literal["none", "audio", "text", "both"] = "none"
    batch_size: int = 8

    @property
    def finetunes_audio(self) -> bool:
        """Whether the audio encoder learns with the heads."""
        return self.finetune in ("audio", "both")

    @property
    def finetunes_text(self) -> bool:
        """Whether the text encoder does."""
        return self.finetune in ("text", "both")


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """What the heads are trained to.

    Args:
        huber_delta: Error at which the Huber loss turns from squared to absolute.
        alignment: What pulls prompt and music together: "sinkhorn", "gromov_wasserstein", "contrastive" or "none".
        alignment_weight: Its weight, the paper's lambda.
        min_match_rating: Least rating of a prompt that is pulled towards its music; 1 pulls all of them, as the paper.
        blur: Blur of the optimal transport.
        scaling: Factor by which the blur is annealed; near one is exact and slow.
        normalize: Whether features are scaled to unit length before they are compared.
    """

    huber_delta: float = 1.0
    alignment: Literal["sinkhorn", "gromov_wasserstein", "contrastive", "none"] = "sinkhorn"
    alignment_weight: float = 0.05
    min_match_rating: float = 1.0
    blur: float = 0.02
    scaling: float = 0.8
    normalize: bool = True


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """How the weights are updated by AdamW.

    Args:
        learning_rate: Peak rate; it rises over the warm-up and falls to zero along a cosine.
        encoder_learning_rate: The same for encoders that are fine-tuned.
        weight_decay: For matrices; biases and norms have none.
        warmup_share: Share of the updates over which the rate rises.
        max_grad_norm: Where the gradient's norm is clipped.
    """

    learning_rate: float = 3.0e-4
    encoder_learning_rate: float = 1.0e-5
    weight_decay: float = 0.01
    warmup_share: float = 0.05
    max_grad_norm: float = 1.0


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """How long a run lasts, where it writes, and how it computes.

    Args:
        output_dir: Folder of the results; the same folder resumes the run.
        seeds: A model is trained with each of them; results are their mean and standard deviation.
        batch_size: Clips per process and update.
        max_epochs: Passes over the training clips at most.
        patience: Passes without a better score on the dev set after which training stops.
        mixed_precision: "no" or "bf16".
        checkpoint_minutes: Minutes between checkpoints inside a pass.
        num_resamples: Bootstrap resamples behind the intervals; none when 0.
    """

    output_dir: str
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    batch_size: int = 32
    max_epochs: int = 50
    patience: int = 10
    mixed_precision: Literal["no", "bf16"] = "no"
    checkpoint_minutes: float = 5.0
    num_resamples: int = 1000

    def __post_init__(self):
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or not all(type(s) is int for s in self.seeds):
            raise ValueError(f"`run.seeds` must be a list of different whole numbers, got {list(self.seeds)}.")
        for name in ("batch_size", "max_epochs", "patience"):
            if getattr(self, name) < 1:
                raise ValueError(f"`run.{name}` must be at least 1, got {getattr(self, name)}.")


@dataclass(frozen=True, kw_only=True)
class WhisQConfig:
    """A whole run; `model` holds the arguments of `WhisQModel` that the encoders do not decide."""

    data: DataConfig
    run: RunConfig
    encoders: EncoderConfig = field(default_factory=EncoderConfig)
    model: dict[str, Any] = field(default_factory=dict)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)


def load_config(path: str | Path, overrides: list[str] | None = None) -> WhisQConfig:
    """Reads a YAML file, or a preset such as `mini`, and applies overrides; see `qamdt.settings.load_settings`."""
    return load_settings(WhisQConfig, find_settings(path, CONFIG_DIR, folder="configs/whisq"), overrides or [])
