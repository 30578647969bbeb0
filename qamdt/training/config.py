"""The settings of a training run, with what each of them means."""

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from qamdt.quality_words import QUALITY_WORDS
from qamdt.settings import find_settings, load_settings


_PACKAGE_DIR = Path(__file__).resolve().parent.parent
# Presets lie in configs/qamdt/ in a checkout and are copied into the package by the wheel build.
CONFIG_DIR = next(
    folder / "qamdt" for folder in (_PACKAGE_DIR / "configs", _PACKAGE_DIR.parent / "configs") if folder.is_dir()
)
MAX_EMA_LENGTH = 0.28  # of a power-function average; a plain mean over the whole training has 12 ** -0.5 = 0.289


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What a training sample is made of.

    Args:
        latents: Folder or fsspec URL of encoded music; `latents` beside the manifest when null.
        manifest: The corpus; `latents` are brought up to date with it first, as `data_prep.encode_latents` does, by the
            options that they were encoded with before. The word `sample` is the corpus that ships with the project, with
            its latents in data/sample/latents. When null, `latents` are read as they are.
        text: "cached" reads the states of texts that were encoded with the clips; "online" runs the text encoder on those
            of each batch that are not cached, and keeps recent ones in memory. `--dry-run` says what each costs.
        crop_in_frames: Latent frames of a crop, or a list of lengths: each clip then gives crops of the longest that
            fits, and a batch holds crops of one length. Clips shorter than all of them are left out.
        scaling_factor: What latents are multiplied with; what the autoencoder's config says when null.
        prefix_probability: How often a caption gets its quality prefix ("high quality, …").
        text_dropout: How often the text is replaced by the empty one.
        quality_dropout: How often everything about quality is left out: all levels and the prefix.
        clip_quality_dropout: How often, beyond that, the level of the crop is left out.
        frame_quality_dropout: How often, beyond that, the curve is left out.
        global_quality_dropout: How often, beyond that, the global level is left out.
        global_quality_from: Whose mean score is the global level: the whole "clip"'s or its "source"'s.
        rhythm_dropout: How often beat and bar are left out; what is played is always left out with the text.
        key_dropout: How often the key is left out.
        chord_dropout: How often the chords are left out.
        level_weights: How often clips of quality level 1 to 5 are drawn, relative to each other; alike when null.
            Clips without a score have weight 1.
        window_in_shards: How many shards, drawn anew each epoch, are mixed at a time; all when null. With few, a run
            can begin before all shards of a URL have arrived.
        cache_dir: Where shards of a URL are kept.
        num_workers: Processes that read ahead.
    """

    latents: str | None = None
    manifest: str | None = None
    text: Literal["cached", "online"] = "cached"
    crop_in_frames: int | list[int] = 128
    scaling_factor: float | None = None
    prefix_probability: float = 0.5
    text_dropout: float = 0.1
    quality_dropout: float = 0.1
    clip_quality_dropout: float = 0.1
    frame_quality_dropout: float = 0.3
    global_quality_dropout: float = 0.3
    global_quality_from: Literal["clip", "source"] = "clip"
    rhythm_dropout: float = 0.1
    key_dropout: float = 0.1
    chord_dropout: float = 0.35
    level_weights: list[float] | None = None
    window_in_shards: int | None = None
    cache_dir: str = "data/cache"
    num_workers: int = 0

    def __post_init__(self):
        if min(self.crop_lengths) < 1:
            raise ValueError(f"`data.crop_in_frames` must be at least 1, got {self.crop_in_frames}.")
        weights = self.level_weights
        if weights is not None and (len(weights) != 5 or min(weights) < 0 or max(weights) <= 0):
            raise ValueError(
                f"`data.level_weights` must be five numbers, not negative and not all zero, got {weights}."
            )
        if self.window_in_shards is not None and self.window_in_shards < 1:
            raise ValueError(f"`data.window_in_shards` must be at least 1, got {self.window_in_shards}.")

    @property
    def crop_lengths(self) -> list[int]:
        """The lengths of crops, shortest first."""
        lengths = self.crop_in_frames if isinstance(self.crop_in_frames, list) else [self.crop_in_frames]
        return sorted(set(lengths))


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """The diffusion process and its loss.

    Args:
        prediction_type: What the network predicts: the noise ("epsilon"), the velocity of a variance-preserving
            diffusion ("v_prediction"), or the velocity of a straight path from data to noise ("flow_prediction",
            rectified flow).
        num_train_timesteps: Steps of the diffusion; a flow has continuous times from 0 to this.
        beta_start: First noise variance; the square roots of the variances are evenly spaced.
        beta_end: Last noise variance.
        min_snr_gamma: Where min-SNR weighting caps the signal-to-noise ratio; no weighting when null.
        passes: "full" trains the network as it is used; "masked" hides patches from its encoder (the published
            training); "both" does one pass of each a step and averages the losses (MDT); "alternate" takes turns,
            at about half the cost of "both".
        timestep_sampling: How the times are drawn: "uniform", or "logit_normal", more of them in the middle
            (Esser et al. 2024).
        flow_shift: Moves the times of a flow towards noise, in training and in the exported scheduler.
        min_mask_ratio: Share of the patches that a masked pass hides at least; drawn anew for each update.
        max_mask_ratio: Share of the patches that it hides at most.
    """

    prediction_type: Literal["epsilon", "v_prediction", "flow_prediction"] = "v_prediction"
    num_train_timesteps: int = 1000
    beta_start: float = 0.0015
    beta_end: float = 0.0195
    min_snr_gamma: float | None = 5.0
    passes: Literal["full", "masked", "both", "alternate"] = "both"
    timestep_sampling: Literal["uniform", "logit_normal"] = "uniform"
    flow_shift: float = 1.0
    min_mask_ratio: float = 0.3
    max_mask_ratio: float = 0.5

    def __post_init__(self):
        if self.prediction_type != "flow_prediction" and self.flow_shift != 1.0:
            raise ValueError(
                f"`loss.flow_shift` is {self.flow_shift}, but only `loss.prediction_type=flow_prediction` has a flow; "
                "leave it at 1.0."
            )
        if self.flow_shift <= 0:
            raise ValueError(f"`loss.flow_shift` must be above 0, got {self.flow_shift}.")
        if not 0 <= self.min_mask_ratio <= self.max_mask_ratio < 1:
            raise ValueError(
                "`loss.min_mask_ratio` and `loss.max_mask_ratio` must satisfy 0 <= min <= max < 1, "
                f"got {self.min_mask_ratio} and {self.max_mask_ratio}."
            )


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """How the weights are updated.

    Args:
        optimizer: "adamw" for every weight; "adamw8bit" with its moments in eight bits (needs the package
            `bitsandbytes`); or "muon" for the hidden matrices and AdamW for the rest.
        learning_rate: Peak rate of AdamW; Muon's updates are scaled to match, so it takes the same rate
            unless `muon_learning_rate` is set.
        muon_learning_rate: Peak rate of Muon.
        beta1: Decay of AdamW's first moment.
        beta2: Decay of AdamW's second moment.
        weight_decay: For matrices; biases, norms and embeddings have none.
        warmup_steps: Steps over which the rate rises from zero.
        schedule: What follows: "constant", "cosine" to zero, or "trapezoid": constant, then linear to zero.
        decay_share: Share of the run that the last part of the trapezoid takes.
        max_grad_norm: Where the gradient's norm is clipped.
        ema_decay: Decay of the averaged weights, which are the ones exported.
        ema_snapshot_lengths: Lengths of further averages, whose snapshots let `qamdt.training.post_hoc_ema` make an average of
            any length after the training, such as [0.05, 0.1] (Karras et al. 2024); none when null. A length is the
            spread (standard deviation) of the averaged updates, as a share of the training so far. Each takes as much
            memory as the weights.
        ema_snapshot_steps: Updates between these snapshots, which are all kept, at two bytes a weight and length. The
            end of the run has one too.
    """

    optimizer: Literal["adamw", "adamw8bit", "muon"] = "adamw"
    learning_rate: float = 1.0e-4
    muon_learning_rate: float | None = None
    beta1: float = 0.9
    beta2: float = 0.99
    weight_decay: float = 0.01
    warmup_steps: int = 1000
    schedule: Literal["constant", "cosine", "trapezoid"] = "constant"
    decay_share: float = 0.25
    max_grad_norm: float = 1.0
    ema_decay: float = 0.9999
    ema_snapshot_lengths: list[float] | None = None
    ema_snapshot_steps: int = 1000

    def __post_init__(self):
        lengths = self.ema_snapshot_lengths or []
        if not all(0 < length <= MAX_EMA_LENGTH for length in lengths) or len(set(lengths)) < len(lengths):
            raise ValueError(
                f"`optim.ema_snapshot_lengths` must be different numbers above 0 and at most {MAX_EMA_LENGTH}, "
                f"got {lengths}; [0.05, 0.1] suits most runs."
            )
        if self.ema_snapshot_steps < 1:
            raise ValueError(f"`optim.ema_snapshot_steps` must be at least 1, got {self.ema_snapshot_steps}.")


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank adapters that train in place of the weights of `run.init_from` (needs the extra `lora`).

    Args:
        rank: Rank of each adapter's product.
        alpha: Scale of its effect; the effect is multiplied by `alpha / rank`. The rank when null.
        dropout: Share of its input that is dropped in training.
        target_modules: Which linear layers get one, by the ends of their names.
    """

    rank: int = 16
    alpha: float | None = None
    dropout: float = 0.0
    target_modules: list[str] = field(
        default_factory=lambda: ["to_q", "to_k", "to_v", "to_out", "ff.net.0.proj", "ff.net.2"]
    )

    def __post_init__(self):
        if self.rank < 1:
            raise ValueError(f"`lora.rank` must be at least 1, got {self.rank}.")


@dataclass(frozen=True, kw_only=True)
class PreviewConfig:
    """Music that the run renders along the way, through the pipeline that ships, with the averaged weights.

    Args:
        prompts: What to play; nothing is rendered without prompts.
        quality: The word for the quality that is asked for.
        steps: Updates between renderings; each comes with a checkpoint.
        audio_length_in_s: Length of the clips; what the network was built for when null.
        num_inference_steps: Denoising steps.
        guidance_scale: How far to move away from the empty prompt.
        seed: Seed of the noise, the same each time.
    """

    prompts: list[str] = field(default_factory=list)
    quality: str = "high"
    steps: int = 1000
    audio_length_in_s: float | None = None
    num_inference_steps: int = 12
    guidance_scale: float = 3.5
    seed: int = 0

    def __post_init__(self):
        if self.quality not in QUALITY_WORDS:
            raise ValueError(f"`preview.quality` must be one of {list(QUALITY_WORDS)}, got {self.quality!r}.")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """How long a run lasts, where it writes, and how it computes.

    Args:
        output_dir: Folder of checkpoints, exports and logs; the same folder resumes the run.
        init_from: Folder or Hub id of the model whose weights a new run starts from; `embedded` is the one that ships.
        pipeline: Folder or Hub id of a pipeline with the autoencoder that made the latents; `embedded` is the one that
            ships. Its other parts go into each checkpoint, so that the pipeline opens it. Without, a checkpoint holds
            transformer and scheduler alone.
        batch_size: Crops per process and forward pass.
        gradient_accumulation_steps: Forward passes per update.
        max_steps: Updates after which the run ends; no limit when null.
        max_minutes: Minutes of training, over all resumptions, after which the run ends; no limit when null.
        seed: Everything random hangs on it.
        mixed_precision: "no", "bf16" or, on a GPU, "fp16"; "auto" is "bf16" where there are instructions for it.
        compile: Whether the blocks are compiled by torch.compile, which takes minutes at the start and gains little on a
            CPU: 4 % of a pass of `mini` in float32, 15 % in bf16.
        gradient_checkpointing: Whether activations are computed again in the backward pass, to save memory.
        checkpoint_minutes: Minutes between checkpoints.
        checkpoint_steps: Updates between checkpoints; only the minutes count when null.
        num_checkpoints: How many checkpoints to keep.
        log_steps: Updates between lines of the loss file.
        log_with: Where losses and previews go besides files: "tensorboard" or "wandb".
    """

    output_dir: str
    init_from: str | None = None
    pipeline: str | None = None
    batch_size: int = 32
    gradient_accumulation_steps: int = 1
    max_steps: int | None = None
    max_minutes: float | None = None
    seed: int = 0
    mixed_precision: Literal["no", "bf16", "fp16", "auto"] = "no"
    compile: bool = False
    gradient_checkpointing: bool = False
    checkpoint_minutes: float = 10.0
    checkpoint_steps: int | None = None
    num_checkpoints: int = 2
    log_steps: int = 10
    log_with: Literal["tensorboard", "wandb"] | None = None

    def __post_init__(self):
        if self.max_steps is None and self.max_minutes is None:
            raise ValueError("`run.max_steps` or `run.max_minutes` must say when the run ends; both are null.")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A whole run; `model` holds the arguments of `QAMDTTransformer2DModel`, null for those of `run.init_from`."""

    run: RunConfig
    data: DataConfig = field(default_factory=DataConfig)
    model: dict[str, Any] | None = None
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    lora: LoraConfig | None = None
    preview: PreviewConfig = field(default_factory=PreviewConfig)

    def __post_init__(self):
        if self.model is None and self.run.init_from is None:
            raise ValueError("`model` must give the network's arguments, or `run.init_from` a model to start from.")
        if self.lora is not None and self.run.init_from is None:
            raise ValueError("`lora` needs `run.init_from`, the model that the adapters are for; it is null.")
        if self.lora is not None and self.optim.ema_snapshot_lengths:
            raise ValueError(
                f"`optim.ema_snapshot_lengths` is {self.optim.ema_snapshot_lengths}, but snapshots are of whole networks "
                "and `lora` trains adapters; set one of the two to null."
            )
        if self.preview.prompts and self.run.pipeline is None:
            raise ValueError("`preview.prompts` needs `run.pipeline`, which decodes the latents; it is null.")


def load_config(path: str | Path, overrides: Collection[str] = ()) -> TrainConfig:
    """Reads a YAML file, or the preset of a name such as `mini`, and applies overrides such as `run.batch_size=8`."""
    return load_settings(TrainConfig, find_settings(path, CONFIG_DIR, folder="configs/qamdt"), overrides)
