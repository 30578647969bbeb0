"""What is asked of a model for one clip: checked, comparable, written to JSON and read from it.

Commands, services and pages fill in a request, and `pipelines.clips` answers it. Nothing slow is imported here, so that
a wrong request is refused at once.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from pipelines.input_checks import check_choices, check_count, check_number
from pipelines.prompt_schedule import Schedule, check_prompts, is_schedule
from pipelines.quality_argument import Quality, check_word, is_number, read_curve
from qamdt.audio_formats import MAX_SAMPLING_RATE, MIN_SAMPLING_RATE
from qamdt.files import is_text, read_json


SAMPLER_NAMES = ("dpm++", "unipc", "euler", "euler-ancestral", "ddim", "paper")
CRITERIA = ("overall_quality", "text_alignment", "clap")
SHORT_CRITERIA = {
    "quality": "overall_quality",
    "alignment": "text_alignment",
}  # what they are also called in a request
DTYPES = ("auto", "float32", "bfloat16")
RECORDINGS = ("init_audio", "inpaint_audio", "restore_audio")  # what a clip can begin with, one of them
RESTORING: dict[str, Any] = {"guidance": 1.0, "fade_ms": 0.0}  # of a request with `restore_audio`, if nobody says else
NOT_RESTORED = (
    "quality", "negative_prompt", "bpm", "key", "chords", "time_signature", "plan_music", "seconds", "loop", "init_audio",
    "inpaint_audio", "eta", "best_of",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class GenerationRequest:
    """One clip to make. What is `None` is decided when it is made.

    Args:
        prompt: What to play, or `(second, text)` tuples that take turns.
        quality: A word, a score, a curve or `None` for unknown, as `QAMDTPipeline` takes it for one prompt.
        negative_prompt: What to move away from.
        bpm: Beats a minute. This and the next three as `QAMDTPipeline` takes them for one prompt; when `None` the prompt
            says it or, with `plan_music`, it is drawn.
        key: Tonic and mode.
        chords: Symbols, a bar each, or `(second, symbol)` where each begins.
        time_signature: Beats in a bar.
        plan_music: Whether what nobody said of these is drawn; when `None`, if there is no recording.
        seconds: Length of the clip; what the model was built for, or that of the recording, when `None`.
        loop: Whether the clip goes on with its beginning, to be played over and over. It then has no fades.
        init_audio: Sound file that is changed as the prompt says (`QAMDTAudioToAudioPipeline`).
        strength: How much of it is changed, from 0 to 1; 0.5 when `None`. Of `restore_audio` it is chosen from the scores.
        inpaint_audio: Sound file that is kept but for the spans between `inpaint_start` and `inpaint_end`, and for what
            it does not reach of the clip (`QAMDTInpaintPipeline`).
        inpaint_start: Where spans that are played anew begin, in seconds of the clip.
        inpaint_end: Where each of them ends.
        audio_start: Where in the clip `inpaint_audio` begins, in seconds; at 0 when `None`.
        restore_audio: Sound file whose quality is raised where it scores low (`QAMDTPipeline.restore`). Nothing is asked of
            its music, and `RESTORING` suits it better than the defaults.
        good_score: Moments of it that score as much are left alone; where the model's "high" begins when `None`.
        steps: Denoising steps when `None`: 12, 25 where a recording is changed or restored, 200 for the sampler `"paper"`.
        guidance: Guidance scale; 1 is off.
        sampler: How to denoise, one of `SAMPLER_NAMES`; with the model's own scheduler when `None`.
        eta: Share of fresh noise in every step; 1 for the sampler `"paper"`, else 0, when `None`.
        seed: The same seed gives the same music.
        best_of: How many candidates to make, with seeds that count up from `seed`; the best of them is kept.
        best_by: What is best, some of `CRITERIA`; what the quality that is asked for suggests when `None`.
        scorer: Folder or Hub id of the WhisQ scorer that compares candidates, or finds what to restore; the embedded one
            when `None`.
        sampling_rate: Rate of the sound file in Hz; the model's own when `None`. A higher one adds no treble.
        loudness: Loudness to bring the clip to, in LUFS (players expect about -14); as it was made when `None`. It is
            never lifted so far that it clips.
        fade_ms: Length of the fades at both ends, in milliseconds.
        model: Folder or Hub id; the default model when `None`.
        lora: Adapters on top of it: `(folder or Hub id, scale)` each.
        dtype: Precision of the transformer, one of `DTYPES`; `"auto"` is the fastest that the device has.

    Raises:
        ValueError: A value makes no sense, whatever the model.
    """

    prompt: str | Schedule
    quality: Quality = "high"
    negative_prompt: str = ""
    bpm: float | None = None
    key: str | None = None
    chords: str | Sequence[tuple[float, str]] | None = None
    time_signature: str | None = None
    plan_music: bool | None = None
    seconds: float | None = None
    loop: bool = False
    init_audio: str | None = None
    strength: float | None = None
    inpaint_audio: str | None = None
    inpaint_start: tuple[float, ...] | None = None
    inpaint_end: tuple[float, ...] | None = None
    audio_start: float | None = None
    restore_audio: str | None = None
    good_score: float | None = None
    steps: int | None = None
    guidance: float = 3.5
    sampler: str | None = None
    eta: float | None = None
    seed: int = 0
    best_of: int = 1
    best_by: tuple[str, ...] | None = None
    scorer: str | None = None
    sampling_rate: int | None = None
    loudness: float | None = None
    fade_ms: float = 5.0
    model: str | None = None
    lora: Sequence[tuple[str, float]] = ()
    dtype: str = "auto"

    def __post_init__(self):
        object.__setattr__(self, "prompt", _read_prompt(self.prompt))
        if not isinstance(self.negative_prompt, str):
            raise ValueError(f"`negative_prompt` must be a text, got {self.negative_prompt!r}.")
        for name, text in (("prompt", self.text), ("negative_prompt", self.negative_prompt)):
            if not is_text(text):
                raise ValueError(f"`{name}` must be text in UTF-8, got {getattr(self, name)!r}.")
        places = {"model": "a folder or a Hub id", "scorer": "a folder or a Hub id"}
        for name, place in (places | dict.fromkeys(RECORDINGS, "a sound file")).items():
            if not (getattr(self, name) is None or (isinstance(getattr(self, name), str) and getattr(self, name))):
                raise ValueError(f"`{name}` must be {place}, got {getattr(self, name)!r}.")
        object.__setattr__(self, "quality", _read_quality(self.quality))
        self._check_music()
        if self.seconds is not None:
            check_number("seconds", self.seconds, is_open=True)
        if self.steps is not None:
            check_count("steps", self.steps)
        check_number("guidance", self.guidance)
        if self.sampler is not None:
            check_choices("sampler", [self.sampler], SAMPLER_NAMES)
        if self.eta is not None:
            check_number("eta", self.eta, maximum=1)
        check_count("seed", self.seed, minimum=0, maximum=2**63 - 1)
        check_choices("dtype", [self.dtype], DTYPES)
        if self.sampling_rate is not None:
            check_count("sampling_rate", self.sampling_rate, MAX_SAMPLING_RATE, minimum=MIN_SAMPLING_RATE)
        if self.loudness is not None:
            check_number("loudness", self.loudness, minimum=-70, maximum=0)
        check_number("fade_ms", self.fade_ms)
        self._check_choice()
        self._check_recording()
        self._check_lora()

    def _check_recording(self) -> None:
        """Refuses what does not go with a recording, or with none."""
        if not isinstance(self.loop, bool):
            raise ValueError(f"`loop` must be true or false, got {self.loop!r}.")
        if self.init_audio is not None:
            refused = ("seconds", "inpaint_audio", "loop")
            for name in (name for name in refused if getattr(self, name)):
                raise ValueError(f"`{name}` does not go with `init_audio`, which says the length of the clip.")
        if self.restore_audio is not None:
            self._check_restoration()
        needs = dict.fromkeys(("audio_start", "inpaint_start", "inpaint_end"), ("inpaint_audio",))
        needs |= {"strength": ("init_audio", "restore_audio"), "good_score": ("restore_audio",)}
        for name, recordings in needs.items():
            if getattr(self, name) is not None and all(getattr(self, recording) is None for recording in recordings):
                recordings = " or ".join(f"`{recording}`" for recording in recordings)
                raise ValueError(f"`{name}` goes with {recordings}, got {getattr(self, name)!r} without.")
        if self.strength is not None:
            check_number("strength", self.strength, maximum=1)
        if self.good_score is not None:
            check_number("good_score", self.good_score, minimum=1, maximum=5)
        if self.audio_start is not None:
            check_number("audio_start", self.audio_start)
        spans = [_read_seconds(name, getattr(self, name)) for name in ("inpaint_start", "inpaint_end")]
        if len(spans[0]) != len(spans[1]) or any(start >= end for start, end in zip(*spans, strict=True)):
            raise ValueError(
                "`inpaint_start` and `inpaint_end` must hold as many seconds, each span ending after it begins, got "
                f"{list(spans[0])} and {list(spans[1])}."
            )
        for name, seconds in zip(("inpaint_start", "inpaint_end"), spans, strict=True):
            object.__setattr__(self, name, seconds or None)

    def _check_restoration(self) -> None:
        """Refuses what restoring would not listen to."""
        if not isinstance(self.prompt, str):
            raise ValueError(f"`prompt` must be one text with `restore_audio`, got {self.prompt!r}.")
        for field in fields(self):
            if field.name in NOT_RESTORED and getattr(self, field.name) != field.default:
                raise ValueError(
                    f"`{field.name}` does not go with `restore_audio`, got {getattr(self, field.name)!r}."
                )

    @property
    def text(self) -> str:
        """The prompt as one text, with what is played later behind what is played first."""
        return self.prompt if isinstance(self.prompt, str) else ", ".join(text for _, text in self.prompt)

    @property
    def recording(self) -> str | None:
        """The sound file that it begins with, if any."""
        return next((path for name in RECORDINGS if (path := getattr(self, name)) is not None), None)

    def with_recording(self, path: str) -> GenerationRequest:
        """Returns the request with its recording in another place."""
        name = next(name for name in RECORDINGS if getattr(self, name) is not None)
        return replace(self, **{name: path})

    @property
    def spans(self) -> list[tuple[float, float]]:
        """What is played anew of `inpaint_audio`, `(start, end)` in seconds."""
        return list(zip(self.inpaint_start or (), self.inpaint_end or (), strict=True))

    def _check_music(self) -> None:
        """Refuses tempo, key and chords that make no sense."""
        if not (self.plan_music is None or isinstance(self.plan_music, bool)):
            raise ValueError(f"`plan_music` must be true or false, got {self.plan_music!r}.")
        said = {name: getattr(self, name) for name in ("bpm", "key", "chords", "time_signature")}
        if any(value is not None for value in said.values()):
            from pipelines.music_conditioning import MusicRequest  # brings numpy and torch

            MusicRequest(**said)
            object.__setattr__(self, "chords", _with_tuples(self.chords))

    def _check_choice(self) -> None:
        """Refuses candidates that cannot be compared as is said."""
        check_count("best_of", self.best_of)
        if self.best_by is not None:
            if not isinstance(self.best_by, list | tuple) or not self.best_by:
                raise ValueError(f"`best_by` must be a list of criteria, got {self.best_by!r}.")
            criteria = tuple(SHORT_CRITERIA.get(name, name) for name in self.best_by)
            check_choices("best_by", criteria, CRITERIA)
            if len(set(criteria)) < len(criteria):
                raise ValueError(f"`best_by` must name each criterion once, got {list(self.best_by)}.")
            object.__setattr__(self, "best_by", criteria)
        for name in ("best_by", "scorer") if self.restore_audio is None else ("best_by",):
            if self.best_of == 1 and getattr(self, name) is not None:
                raise ValueError(f"`{name}` goes with `best_of` of at least 2, got {getattr(self, name)!r}.")

    def _check_lora(self) -> None:
        """Refuses what names no adapters."""
        is_list = isinstance(self.lora, list | tuple)
        if not is_list or not all(isinstance(entry, list | tuple) and len(entry) == 2 for entry in self.lora):
            raise ValueError(f"`lora` must be a list of (folder or Hub id, scale) pairs, got {self.lora!r}.")
        for name, scale in self.lora:
            if not isinstance(name, str) or not name:
                raise ValueError(f"`lora` must name folders or Hub ids, got {name!r}.")
            check_number("lora", scale, minimum=-math.inf)
        if len({name for name, _ in self.lora}) < len(self.lora):
            raise ValueError(f"`lora` must name each adapter once, got {self.lora!r}.")
        object.__setattr__(self, "lora", _with_tuples(self.lora))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> GenerationRequest:
        """Builds a request from `to_dict()`'s result, or from part of it; `prompt` alone is required.

        Raises:
            ValueError: Names are unknown, `prompt` is missing, or a value makes no sense.
        """
        known = [field.name for field in fields(cls)]
        if not isinstance(values, Mapping):
            raise ValueError(f"A request must be an object with a `prompt`, got {values!r}.")
        if unknown := sorted(set(values) - set(known)):
            raise ValueError(f"A request has no {', '.join(f'`{name}`' for name in unknown)}; it has {known}.")
        if "prompt" not in values:
            raise ValueError(f"A request must have a `prompt`, got {sorted(values)}.")
        return cls(**values)

    @classmethod
    def load(cls, path: str | os.PathLike) -> GenerationRequest:
        """Reads a JSON file: a request, or the record beside a clip, which gives that clip again.

        Raises:
            OSError: There is no such file.
            ValueError: It holds no request.
        """
        try:
            values = read_json(path)
            return cls.from_dict(values["settings"] if isinstance(values, dict) and "settings" in values else values)
        except ValueError as error:  # JSON and UTF-8 errors are such, too
            raise ValueError(f"{str(path)!r} holds no request: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """Returns the request as JSON has it, with lists for tuples."""
        return json.loads(json.dumps(asdict(self)))

    def takes(self, count: int) -> list[GenerationRequest]:
        """Returns the request and more like it, whose seeds count on, so that no two share a candidate."""
        return [replace(self, seed=self.seed + number * self.best_of) for number in range(count)]


def _read_prompt(prompt: Any) -> str | Schedule:
    """Checks a prompt, and makes tuples of the lists that JSON has."""
    if isinstance(prompt, str):
        return prompt
    prompt = _with_tuples(prompt)
    if not is_schedule(prompt):
        raise ValueError(f"`prompt` must be a text or (second, text) tuples, got {prompt!r}.")
    check_prompts(prompt)
    return prompt


def _read_seconds(name: str, seconds: Any) -> tuple[float, ...]:
    """Checks seconds: none, one of them or a list."""
    seconds = () if seconds is None else (seconds,) if is_number(seconds) else seconds
    if not isinstance(seconds, list | tuple):
        raise ValueError(f"`{name}` must be seconds, got {seconds!r}.")
    for second in seconds:
        check_number(name, second)
    return tuple(seconds)


def _read_quality(quality: Any) -> Quality:
    """Checks a quality, and makes tuples of the lists that JSON has, as a list in a list would mean several prompts."""
    if quality is None:
        return None
    if isinstance(quality, str):
        check_word(quality)
        return quality
    if hasattr(quality, "tolist"):  # an array
        quality = quality.tolist()
    quality = _with_tuples(quality)
    read_curve(quality)
    return quality


def _with_tuples(values: Any) -> Any:
    """The same with tuples for lists, and for lists in a list."""
    if not isinstance(values, list | tuple):
        return values
    return tuple(tuple(point) if isinstance(point, list) else point for point in values)
