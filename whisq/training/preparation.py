"""From the settings of a run to rated clips whose hidden states are on disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import gather_object

from qamdt.keyed_rows import make_key
from whisq.encoders import AudioEncoder, TextEncoder, fingerprint, load_audio_encoder, load_text_encoder
from whisq.ratings import SPLITS, Fault, RatedClip, RatedMusic, leave_systems_out
from whisq.training.config import WhisQConfig
from whisq.training.dataset import CachedClips
from whisq.training.features import FeatureStore, cache_clips, cache_texts, clip_key
from whisq.training.musiceval import read_musiceval
from whisq.training.planned_ratings import PromptPlan, read_rated_manifest


@dataclass(frozen=True, kw_only=True)
class PreparedMusic:
    """Rated clips that training and evaluation can use at once.

    Args:
        splits: The clips of "train", "dev" and "test".
        cached: Their hidden states.
        plan: Draws the prompts of training clips anew in every pass; `None` where people rated one prompt a clip.
        faults: What could not be used.
        system_ratings: Published mean ratings of systems.
        person_ratings: Ratings of single persons, by clip and person.
        model_arguments: What the encoders decide about the model.
    """

    splits: Mapping[str, list[RatedClip]]
    cached: CachedClips
    plan: PromptPlan | None
    faults: list[Fault]
    system_ratings: Mapping[str, tuple[float, float]]
    person_ratings: Mapping[str, Mapping[str, tuple[float, float]]]
    model_arguments: Mapping[str, str | int]

    def training_clips(self, seed: int, epoch: int) -> list[RatedClip]:
        """Returns the training clips with their prompts of one pass."""
        clips = self.splits["train"]
        return clips if self.plan is None else self.plan.draw(clips, f"train {seed} {epoch}")

    def key(self) -> str:
        """Stands for what a run learns from and is measured on: sounds, ratings, prompts, and the encoders' states."""
        clips = [
            (split, clip_key(clip, self.cached.config.max_seconds), asdict(replace(clip, path=str(clip.path))))
            for split in SPLITS
            for clip in self.splits[split]
        ]
        contents = None if self.plan is None else [asdict(self.plan.contents[clip["id"]]) for _, _, clip in clips]
        encoders = [self.cached.audio.settings, self.cached.text.settings]
        return f"{make_key(clips, contents, encoders, dict(self.system_ratings)):016x}"

    def leave_systems_out(self, num_folds: int, fold: int) -> PreparedMusic:
        """Returns the same clips split by their systems."""
        clips = [clip for split in SPLITS for clip in self.splits[split]]
        splits = leave_systems_out(clips, num_folds, fold)
        if self.plan is not None:
            splits |= {split: self.plan.draw(splits[split], split) for split in ("dev", "test")}
        return replace(self, splits=splits, system_ratings={})


def prepare(config: WhisQConfig, accelerator: Accelerator) -> PreparedMusic:
    """Reads the clips of a run and encodes those whose hidden states are not cached yet.

    Args:
        config: The settings of the run.
        accelerator: Its processes share the encoding.
    """
    music, plan = _read(config)
    clips = [clip for split in SPLITS for clip in music.splits[split]]
    texts = {clip.prompt for clip in clips if clip.prompt is not None}
    if plan is not None:
        texts |= plan.list_prompts(clips)

    # Encode.
    audio_encoder = load_audio_encoder(config.encoders.audio, revision=config.encoders.audio_revision)
    text_encoder = load_text_encoder(config.encoders.text, revision=config.encoders.text_revision)
    folder = Path(config.data.features or Path(config.run.output_dir) / "features")
    audio = _open_store(folder / "audio", audio_encoder, accelerator, frames_per_s=audio_encoder.frames_per_s)
    text = _open_store(folder / "text", text_encoder, accelerator)
    faults = cache_clips(
        audio,
        audio_encoder.to(accelerator.device),
        clips,
        max_seconds=config.data.max_seconds,
        device=accelerator.device,
        batch_size=config.encoders.batch_size,
        num_processes=accelerator.num_processes,
    )
    cache_texts(text, text_encoder.to(accelerator.device), texts, num_processes=accelerator.num_processes)
    accelerator.wait_for_everyone()
    faults = gather_object(faults)
    audio.refresh()
    text.refresh()

    # Leave out what could not be encoded, and give the clips that nobody trains on their prompts for good.
    cached = CachedClips(audio, text, audio_encoder.frames_per_s, config.data)
    splits = {split: [clip for clip in music.splits[split] if cached.has(clip)] for split in SPLITS}
    if plan is not None:
        splits |= {split: plan.draw(splits[split], split) for split in ("dev", "test")}
    prepared = PreparedMusic(
        splits=splits,
        cached=cached,
        plan=plan,
        faults=[*music.faults, *faults],
        system_ratings=music.system_ratings,
        person_ratings=music.person_ratings,
        model_arguments={
            "audio_encoder": audio_encoder.name,
            "text_encoder": text_encoder.name,
            "audio_hidden_size": audio_encoder.hidden_size,
            "text_hidden_size": text_encoder.hidden_size,
        },
    )
    if config.data.split == "systems":
        prepared = prepared.leave_systems_out(config.data.num_folds, config.data.fold)
    for split in ("train", "dev"):
        if not prepared.splits[split]:
            raise ValueError(
                f"there is no clip left to use in the split {split!r}; {len(prepared.faults)} have faults."
            )
    return prepared


def _open_store(
    folder: Path, encoder: AudioEncoder | TextEncoder, accelerator: Accelerator, **settings: float
) -> FeatureStore:
    """Opens the store of what an encoder says; another encoder, or the same with other weights, needs another one."""
    settings |= {"encoder": encoder.name, "sha256": fingerprint(encoder), "hidden_size": encoder.hidden_size}
    return FeatureStore(folder, settings, process_index=accelerator.process_index)


def _read(config: WhisQConfig) -> tuple[RatedMusic, PromptPlan | None]:
    if config.data.manifest is not None:
        return read_rated_manifest(config.data)
    return read_musiceval(config.data.musiceval), None
