"""Answers requests: decides what they leave open, loads the model, makes the clips, and writes each with its record."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from pipelines.mastering import Master, master
from pipelines.model_info import versions
from pipelines.pipeline_audio_to_audio import QAMDTAudioToAudioPipeline
from pipelines.pipeline_inpaint import QAMDTInpaintPipeline
from pipelines.pipeline_output import QAMDTPipelineOutput
from pipelines.pipeline_qamdt import QAMDTPipeline
from pipelines.request import GenerationRequest
from pipelines.restoration import describe_restoration
from pipelines.samplers import NUM_STEPS, NUM_STEPS_OF_CHANGE, PAPER_SETTINGS, make_scheduler, paper_scheduler
from qamdt.audio import write_audio
from qamdt.embedded import EMBEDDED_MODEL_DIR, default_model
from qamdt.files import read_json, write_json
from qamdt.keyed_rows import file_identity, make_key
from qamdt.music import Music
from qamdt.outputs import has_fields
from qamdt.precision import check_device, preferred_dtype
from qamdt.quality_words import asks_for_best


OnStep = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Clip:
    """A clip that was made.

    Args:
        request: What it answers, with everything decided.
        sound: Its samples and their rate, ready to be written.
        choice: Which of several candidates it is, and what they were rated; empty if there was one.
        music: What is played, for a model that knows tempo, key and chords.
        models: What `identify_models` said before they were loaded.
        recording: What `identify_recording` said.
        restoration: What `describe_restoration` said, if it was restored.
        warnings: What the prompt asks for that the model cannot do.
    """

    request: GenerationRequest
    sound: Master
    choice: dict[str, Any]
    music: Music | None
    models: dict[str, str | None]
    recording: str | None
    restoration: dict[str, Any] | None = None
    warnings: tuple[str, ...] = ()

    def record(self) -> dict[str, Any]:
        """How the clip was made, as JSON has it; `GenerationRequest.load` reads the request from it."""
        sound = {
            "sampling_rate": self.sound.sampling_rate,
            "seconds": len(self.sound.waveform) / self.sound.sampling_rate,
            "gain_db": round(self.sound.gain_db, 2),
            "loudness_lufs": None if self.sound.loudness_lufs is None else round(self.sound.loudness_lufs, 2),
        }
        choice = {"best_of": self.choice} if self.choice else {}
        music = {} if self.music is None else {"music": asdict(self.music)}
        recording = {} if self.recording is None else {"recording": self.recording}
        warnings = {"warnings": list(self.warnings)} if self.warnings else {}
        restoration = {} if self.restoration is None else {"restoration": self.restoration}
        facts = {"settings": self.request.to_dict(), "sound": sound, **choice, **music, **recording, **restoration}
        return {**facts, **warnings, "models": self.models, "versions": versions()}

    def save(self, path: Path) -> None:
        """Writes the sound file and, last, its record beside it."""
        write_audio(path, self.sound.waveform, self.sound.sampling_rate)
        write_json(record_path(path), self.record())


def record_path(path: Path) -> Path:
    """Where the record of a sound file lies."""
    return path.with_suffix(".json")


def is_ours(path: Path) -> bool:
    """Whether a sound file, or the record beside one, was made here: its record says so."""
    return has_fields(record_path(path), ("settings", "sound", "versions"))


def is_made(path: Path, request: GenerationRequest, models: dict[str, str | None]) -> bool:
    """Whether a sound file is there that the same models made for the same request and the same recording.

    Its record is written last.
    """
    try:
        record = read_json(record_path(path))
        is_same = record["models"] == models and GenerationRequest.from_dict(record["settings"]) == request
        is_same = is_same and record.get("recording") == identify_recording(request)
    except (FileNotFoundError, ValueError, KeyError, TypeError):  # no record, or one of another kind
        return False
    return is_same and path.is_file()


def identify_models(request: GenerationRequest) -> dict[str, str | None]:
    """Returns what tells the models of a decided request from later ones in the same folders.

    Each is a digest of names, sizes and times of change of its files, or `None` where the model is no folder here.
    """
    folders = {"model": Path(_model_folder(request))}
    if request.best_of > 1 or request.restore_audio is not None:
        from whisq.embedded import CLAP_DIR, SCORER_DIR  # transformers is imported only for who asks for scores

        folders |= {"scorer": SCORER_DIR if request.scorer is None else Path(request.scorer)}
    if request.best_of > 1:
        folders |= {"clap": CLAP_DIR}
    folders |= {f"lora {name}": Path(name) for name, _ in request.lora}
    return {name: _digest_files(folder) for name, folder in folders.items()}


def identify_recording(request: GenerationRequest) -> str | None:
    """Returns what tells the recording of a request from a later one of the same name; `None` if there is none."""
    path = None if request.recording is None else Path(request.recording)
    return f"{make_key(*file_identity(path)):016x}" if path is not None and path.is_file() else None


def _model_folder(request: GenerationRequest) -> str:
    return str(EMBEDDED_MODEL_DIR) if request.model == EMBEDDED_MODEL_DIR.name else request.model


def _digest_files(folder: Path) -> str | None:
    if not folder.is_dir():
        return None
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix != ".md")
    return f"{make_key(*((path.relative_to(folder).as_posix(), *file_identity(path)) for path in files)):016x}"


def choose_device(device: str | None) -> str:
    """The device asked for, or else a GPU where there is one.

    Raises:
        ValueError: This machine has not the one asked for.
    """
    return str(check_device(device or ("cuda" if torch.cuda.is_available() else "cpu")))


def decide(request: GenerationRequest, device: str) -> GenerationRequest:
    """Decides what a request leaves open: model, steps, precision and the like; the length is the model's to say."""
    model = request.model or default_model()
    is_paper = request.sampler == "paper"
    is_change = request.init_audio is not None or request.restore_audio is not None
    steps = PAPER_SETTINGS["num_inference_steps"] if is_paper else NUM_STEPS_OF_CHANGE if is_change else NUM_STEPS
    eta = PAPER_SETTINGS["eta"] if is_paper else 0.0
    # Where low quality is asked for, the best sounding candidate is not the one that does as asked.
    criteria = ("overall_quality", "clap") if asks_for_best(request.quality) else ("clap",)
    music: dict[str, Any] = {}
    if request.restore_audio is None:  # whose music is there already
        music = {
            "eta": eta if request.eta is None else request.eta,
            "best_by": request.best_by or (criteria if request.best_of > 1 else None),
            "plan_music": request.recording is None if request.plan_music is None else request.plan_music,
            "strength": 0.5 if request.init_audio is not None and request.strength is None else request.strength,
        }
    return replace(
        request,
        model=EMBEDDED_MODEL_DIR.name if model == str(EMBEDDED_MODEL_DIR) else model,
        steps=request.steps or steps,
        dtype=str(preferred_dtype(device)).removeprefix("torch.") if request.dtype == "auto" else request.dtype,
        **music,
    )


def load_pipeline(request: GenerationRequest, device: str) -> QAMDTPipeline:
    """Loads the model of a decided request onto a device, with the sampler and the precision that it asks for."""
    pipe = QAMDTPipeline.from_pretrained(
        _model_folder(request), dtype={"transformer": getattr(torch, request.dtype), "default": torch.float32}
    )
    if request.sampler == "paper":
        pipe.scheduler = paper_scheduler(pipe.scheduler)
    elif request.sampler is not None:
        pipe.scheduler = make_scheduler(request.sampler, pipe.scheduler)
    _load_adapters(pipe, request)
    return pipe.to(device)


def _load_adapters(pipe: QAMDTPipeline, request: GenerationRequest) -> None:
    if not request.lora:
        return
    if importlib.util.find_spec("peft") is None:
        raise ImportError("`lora` needs peft; install it with `pip install 'qamdt[lora]'`.")
    names = [f"lora-{number}" for number in range(len(request.lora))]
    for adapter_name, (folder_or_id, _) in zip(names, request.lora, strict=True):
        try:
            pipe.load_lora_weights(folder_or_id, adapter_name=adapter_name)
        except (OSError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"`lora` must name adapters of the model {request.model!r}, got {folder_or_id!r}: {error}"
            ) from error
    pipe.set_adapters(names, [scale for _, scale in request.lora])


class ClipMaker:
    """The models of a request, loaded: makes its clip, and those of other requests for the same models.

    Args:
        request: A decided request.
        device: Where to compute.
    """

    def __init__(self, request: GenerationRequest, device: str):
        self.models = identify_models(request)
        self.loaded_for = _models_of(request)
        self.pipe = load_pipeline(request, device)
        self._on_step: OnStep | None = None
        if request.scorer is not None:
            from whisq.scorer import WhisQScorer

            self.pipe.scorer = WhisQScorer.from_pretrained(request.scorer, device=device)

    def answers(self, request: GenerationRequest) -> bool:
        """Whether a decided request is for the models that are loaded."""
        return _models_of(request) == self.loaded_for

    def make(self, requests: Sequence[GenerationRequest], *, on_step: OnStep | None = None) -> list[Clip]:
        """Makes the clips of decided requests that differ in nothing but their seeds; none depends on the others.

        Args:
            requests: What to make.
            on_step: Called after every denoising step as `on_step(steps_done, all_steps)`; what it raises ends the call.

        Raises:
            ValueError: The model cannot do what is asked; the requests differ in more, or are for other models.
        """
        request, *others = requests
        if any(replace(other, seed=request.seed) != request for other in others):
            raise ValueError(f"`requests` must differ in their seeds alone, got {list(requests)}.")
        if not self.answers(request):
            raise ValueError(f"`requests` must be for {self.loaded_for}, which is loaded, got {_models_of(request)}.")
        self._on_step = on_step
        if request.restore_audio is not None:
            return [self._restore(request) for request in requests]
        if request.best_of > 1:
            return [self._make_best(request) for request in requests]
        output = self._generate(request, [request.seed for request in requests])
        made = zip(requests, output.audios, output.music or [None] * len(requests), strict=True)
        return [self._clip(request, waveform, music, choice={}) for request, waveform, music in made]

    def _make_best(self, request: GenerationRequest) -> Clip:
        seeds = [request.seed + number for number in range(request.best_of)]
        output = self._generate(request, seeds, keep=1, rank_by=request.best_by)
        (choice,) = output.choices
        candidates = [{"seed": seed} | rating for seed, rating in zip(seeds, choice.ratings, strict=True)]
        choice = {"seed": seeds[choice.kept[0]], "candidates": candidates, **choice.models}
        return self._clip(request, output.audios[0], output.music and output.music[0], choice=choice)

    def _restore(self, request: GenerationRequest) -> Clip:
        restored = self.pipe.restore(
            request.restore_audio,
            prompt=request.prompt,
            strength=request.strength,
            good_score=request.good_score,
            num_inference_steps=request.steps,
            guidance_scale=request.guidance,
            seed=request.seed,
            callback_on_step_end=None if self._on_step is None else self._call_back,
        )
        done = describe_restoration(restored, self.pipe.scorer.name)
        return self._clip(request, torch.from_numpy(restored.audio), None, choice={}, restoration=done)

    def _generate(
        self,
        request: GenerationRequest,
        seeds: list[int],
        *,
        keep: int | None = None,
        rank_by: tuple[str, ...] | None = None,
    ) -> QAMDTPipelineOutput:
        """Generates a waveform for each seed, none of which depends on others, and keeps all or the best."""
        arguments = {
            "quality": request.quality,
            "negative_prompt": request.negative_prompt,
            "bpm": request.bpm,
            "key": request.key,
            "chords": request.chords,
            "time_signature": request.time_signature,
            "plan_music": request.plan_music,
            "num_inference_steps": request.steps,
            "guidance_scale": request.guidance,
            "eta": request.eta,
            "num_waveforms_per_prompt": len(seeds),
            "keep": keep,
            "rank_by": rank_by,
            "generator": [torch.Generator().manual_seed(seed) for seed in seeds],
            "callback_on_step_end": None if self._on_step is None else self._call_back,
            "output_type": "pt",
        }
        if request.init_audio is not None:
            pipe = QAMDTAudioToAudioPipeline.from_pipe(self.pipe)
            return pipe(request.prompt, audio=request.init_audio, strength=request.strength, **arguments)
        arguments |= {"audio_length_in_s": request.seconds, "loop": request.loop}
        if request.inpaint_audio is not None:
            pipe = QAMDTInpaintPipeline.from_pipe(self.pipe)
            arguments |= {"spans": request.spans, "audio_start_in_s": request.audio_start or 0.0}
            return pipe(request.prompt, audio=request.inpaint_audio, **arguments)
        return self.pipe(request.prompt, **arguments)

    def _call_back(self, pipe: QAMDTPipeline, step: int, timestep: torch.Tensor, tensors: dict) -> dict:
        self._on_step(step + 1, pipe.num_timesteps)
        return {}

    def _clip(
        self,
        request: GenerationRequest,
        waveform: torch.Tensor,
        music: Music | None,
        *,
        choice: dict[str, Any],
        restoration: dict[str, Any] | None = None,
    ) -> Clip:
        sound = master(
            waveform,
            self.pipe.sampling_rate,
            output_sampling_rate=request.sampling_rate,
            loudness=request.loudness,
            fade_ms=0.0 if request.loop else request.fade_ms,
        )
        return Clip(
            request=request,
            sound=sound,
            choice=choice,
            music=music,
            models=self.models,
            recording=identify_recording(request),
            restoration=restoration,
            warnings=tuple(self.pipe.list_warnings(request.text, request.seconds)),
        )


def _models_of(request: GenerationRequest) -> dict[str, Any]:
    """The part of a request that decides what is loaded."""
    return {name: getattr(request, name) for name in ("model", "lora", "dtype", "sampler", "scorer")}
