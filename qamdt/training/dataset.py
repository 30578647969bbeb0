"""Training samples from encoded music: a crop of one clip, with that clip's captions and that crop's quality.

Every random choice about a sample (crop, caption, what is left out, noise) hangs on the run's seed, the epoch, the clip
and how often the epoch had it before. So the order of the data does not depend on how many processes read it, and a resumed run continues with the
very samples that an uninterrupted one would have drawn.

Shapes: B batch, C latent channels, T latent frames, F latent bins, L text tokens, D text dim.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.utils.data import Dataset

from qamdt.conditions import Conditions
from qamdt.keyed_rows import make_key
from qamdt.latent_columns import group_by
from qamdt.latent_folder import LatentReader, TextReader, open_folder, round_score
from qamdt.manifest import Record
from qamdt.music import BEATS_PER_BAR, MAX_TEMPO_BPM, MIN_TEMPO_BPM, Music, music_curve
from qamdt.quality import QualityStats
from qamdt.training.config import DataConfig
from qamdt.training.sampling import Draw


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One crop and what the model is told about it.

    Args:
        id: The clip that everything else comes from.
        text: Its caption, with or without quality prefix, or the empty text.
        quality_score: Mean opinion score over the crop, NaN when unknown; what the levels below derive from.
        latents: Scaled latents `(channels, latent_frames, latent_bins)`.
        encoder_hidden_states: Text states `(text_tokens, dim)`; `None` where the training encodes the text itself.
        quality_level: Level 1 to 5 of the crop, 0 for unknown or left out.
        frame_quality: Fractional levels `(latent_frames,)`, 0 for unknown or left out.
        global_quality: Level of the whole clip or of its source.
        music: What is played at each frame `(latent_frames, 61)`, zeros where unknown or left out.
        seed: What timestep, noise and mask of this sample are drawn from.
    """

    id: str
    text: str
    quality_score: float
    latents: torch.Tensor
    encoder_hidden_states: torch.Tensor | None
    quality_level: int
    frame_quality: torch.Tensor
    global_quality: int
    music: torch.Tensor
    seed: int


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Samples side by side.

    Args:
        ids: The clip of each.
        captions: The text of each, whose states `conditions` hold.
        latents: Scaled latents `(batch, channels, latent_frames, latent_bins)`.
        conditions: What the model is told about each.
        seeds: What timestep, noise and mask of each are drawn from.
    """

    ids: list[str]
    captions: list[str]
    latents: torch.Tensor
    conditions: Conditions
    seeds: list[int]

    def to(self, device: torch.device) -> "Batch":
        """Returns the batch with its tensors on `device`."""
        return replace(self, latents=self.latents.to(device), conditions=self.conditions.to(device))


class LatentDataset(Dataset):
    """Draws training samples from a folder of shards.

    Args:
        config: Where the shards lie and how samples are drawn from them.
        seed: The run's seed.
    """

    def __init__(self, config: DataConfig, *, seed: int):
        self.folder = open_folder(config.latents, config.cache_dir)
        self.index = index = self.folder.index
        self.config = config
        self.seed = seed
        self.scaling_factor = _choose_scaling_factor(index, config)
        self.stats = None if index["quality"] is None else QualityStats.from_dict(index["quality"])
        self.max_captions = index["max_captions"]
        self.latents = LatentReader(self.folder)
        self.texts = TextReader(self.folder)
        self.clips = np.flatnonzero(self.latents.lengths >= config.crop_lengths[0])
        self.num_short_clips = len(self.latents) - len(self.clips)
        if len(self.clips) == 0:
            raise ValueError(
                f"`data.crop_in_frames` is {config.crop_in_frames}, but the longest clip in "
                f"{str(config.latents)!r} has {int(self.latents.lengths.max())} latent frames."
            )
        self._global_levels = self._find_global_levels()

    def __len__(self) -> int:
        return len(self.clips)

    @property
    def identity(self) -> str:
        """What tells data sets apart: the autoencoder, and what is said about every clip, wherever the folder lies."""
        parts = (self.index.get(name) for name in ("vae_sha256", "records_digest", "quality", "max_captions"))
        return f"{make_key(*parts):016x}"

    def __getitem__(self, draw: Draw) -> Sample:
        epoch, number, occurrence = draw
        clip = int(self.clips[number])
        record = self.latents.records[clip]
        rng = np.random.default_rng([self.seed, epoch, clip, *([occurrence] if occurrence else [])])
        num_frames = int(self._crop_lengths(np.array([clip]))[0])

        # Every choice is drawn in every case, so that changing one probability leaves the other choices alone.
        start = int(rng.integers(self.latents.lengths[clip] - num_frames + 1))
        caption_draw, prefix_draw, text_draw, quality_draw, clip_draw, frame_draw, global_draw = rng.random(7)
        latent_seed, seed = (int(value) for value in rng.integers(2**62, size=2))
        rhythm_draw, key_draw, chord_draw = rng.random(3)
        knows_quality = quality_draw >= self.config.quality_dropout

        mean, std, curves = self.latents.read(clip, start, num_frames)
        curve = curves["quality"] if "quality" in curves else torch.full((num_frames,), math.nan)
        noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(latent_seed))
        score = round_score(curve.mean())

        captions = record.captions[: self.max_captions] or ("",)
        text = captions[int(caption_draw * len(captions))]
        if knows_quality and prefix_draw < self.config.prefix_probability:
            text = self._prefix(score) + text
        music = Music() if text_draw < self.config.text_dropout else known_music(record)
        music = music.without(
            rhythm=rhythm_draw < self.config.rhythm_dropout,
            key=key_draw < self.config.key_dropout,
            chords=chord_draw < self.config.chord_dropout,
        )
        if text_draw < self.config.text_dropout:
            text = ""

        level, frame_levels = self._levels(score, curve)
        return Sample(
            id=record.id,
            text=text,
            quality_score=score,
            latents=(mean + std * noise) * self.scaling_factor,
            encoder_hidden_states=self._read_states(text),
            quality_level=level * (knows_quality and clip_draw >= self.config.clip_quality_dropout),
            frame_quality=frame_levels * (knows_quality and frame_draw >= self.config.frame_quality_dropout),
            global_quality=int(self._global_levels[clip])
            * (knows_quality and global_draw >= self.config.global_quality_dropout),
            music=torch.from_numpy(self._music_curve(music, start, num_frames)),
            seed=seed,
        )

    def buckets(self) -> list[np.ndarray]:
        """Returns, for each length of crops, shortest first, the numbers of the clips that give crops of it."""
        lengths = self._crop_lengths(self.clips)
        return [np.flatnonzero(lengths == length) for length in np.unique(lengths)]

    def weights(self) -> np.ndarray:
        """Returns how often each clip is to be drawn, relative to the others."""
        if self.config.level_weights is None:
            return np.ones(len(self.clips))
        if self.stats is None:
            raise ValueError(
                f"`data.level_weights` is set, but the clips in {self.config.latents!r} have no quality scores; label "
                "them and bring the latents up to date, or leave it null."
            )
        by_level = np.array([1.0, *self.config.level_weights])
        return by_level[self.stats.level(self.latents.columns["quality_score"][self.clips])]

    def shards(self) -> np.ndarray:
        """Returns the number of the shard that holds each clip."""
        return self.latents.shards[self.clips]

    def _crop_lengths(self, clips: np.ndarray) -> np.ndarray:
        """Returns how long the crops of some clips are: the longest of the lengths that fit."""
        lengths = np.array(self.config.crop_lengths)
        return lengths[np.searchsorted(lengths, self.latents.lengths[clips], side="right") - 1]

    def _read_states(self, text: str) -> torch.Tensor | None:
        """Returns the states of a text, `None` where they are not cached and need not be."""
        return None if self.config.text == "online" and text not in self.texts else self.texts.read(text)

    def _music_curve(self, music: Music, start: int, num_frames: int) -> np.ndarray:
        """Returns what is played at each frame of a crop."""
        frame_in_s = 1 / self.index["latent_frames_per_second"]
        return music_curve(music, (start + np.arange(num_frames) + 0.5) * frame_in_s, frame_in_s)

    def _prefix(self, score: float) -> str:
        return "" if self.stats is None or math.isnan(score) else self.stats.prefix(score)

    def _levels(self, score: float, curve: torch.Tensor) -> tuple[int, torch.Tensor]:
        """Returns the level of a crop and the fractional levels of its frames, 0 where unknown."""
        if self.stats is None or math.isnan(score):
            return 0, torch.zeros_like(curve)
        return self.stats.level(score), self.stats.fractional_level(curve)

    def _find_global_levels(self) -> np.ndarray:
        """Returns the global level of each clip."""
        scores, sources = self.latents.columns["quality_score"], self.latents.columns["source"]
        if self.stats is None:
            return np.zeros(len(scores), np.int8)
        if self.config.global_quality_from == "clip":
            return self.stats.level(scores).astype(np.int8)
        levels = np.zeros(len(scores), np.int8)
        for _, clips in group_by(sources):
            known = scores[clips][~np.isnan(scores[clips])]
            levels[clips] = self.stats.level(float(np.mean(known)) if len(known) else None)
        return levels


def known_music(record: Record) -> Music:
    """Returns what a manifest says of the music of a clip; a tempo or metre that networks do not know is left out."""
    has_tempo = record.tempo_bpm is not None and MIN_TEMPO_BPM <= record.tempo_bpm <= MAX_TEMPO_BPM
    return Music(
        tempo_bpm=record.tempo_bpm if has_tempo else None,
        first_beat_in_s=record.first_beat_in_s,
        time_signature=record.time_signature if record.time_signature in BEATS_PER_BAR else None,
        key=record.key,
        chords=record.chords,
    )


def _choose_scaling_factor(index: dict, config: DataConfig) -> float:
    """Returns what latents are multiplied with: what the autoencoder's config says, as the pipeline will undo that."""
    if config.scaling_factor is not None:
        return config.scaling_factor
    stated, measured = index["vae_scaling_factor"], index["scaling_factor"]
    if not 0.8 < stated / measured < 1.25:
        raise ValueError(
            f"the autoencoder's config says `scaling_factor` {stated:.5f}, but {measured:.5f} gives these latents unit "
            "variance; write that into the config.json of the autoencoder and encode again, or set `data.scaling_factor` "
            "and the pipeline's autoencoder to one value."
        )
    return stated


def collate(samples: list[Sample]) -> Batch:
    """Puts samples side by side, texts padded to the longest."""
    states = [sample.encoder_hidden_states for sample in samples]
    lengths = torch.tensor([len(state) for state in states])
    conditions = Conditions(
        texts=torch.nn.utils.rnn.pad_sequence(states, batch_first=True),
        mask=torch.arange(int(lengths.max())) < lengths[:, None],
        levels={
            "clip": torch.tensor([sample.quality_level for sample in samples]),
            "global": torch.tensor([sample.global_quality for sample in samples]),
        },
        curves={
            "quality": torch.stack([sample.frame_quality for sample in samples]),
            "music": torch.stack([sample.music for sample in samples]),
        },
    )
    return Batch(
        ids=[sample.id for sample in samples],
        captions=[sample.text for sample in samples],
        latents=torch.stack([sample.latents for sample in samples]),
        conditions=conditions,
        seeds=[sample.seed for sample in samples],
    )
