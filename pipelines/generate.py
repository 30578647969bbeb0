"""What `qamdt generate` does: prompts to sound files, each with a JSON file that says how it was made."""

from __future__ import annotations

import argparse
import json
import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from pipelines.model_info import versions
from pipelines.pipeline_qamdt import QAMDTPipeline
from pipelines.samplers import PAPER_SETTINGS, make_scheduler, paper_scheduler
from pipelines.spectrogram import check_matplotlib
from qamdt.audio import write_audio
from qamdt.cpu_memory import keep_freed_memory
from qamdt.embedded import EMBEDDED_MODEL_DIR, default_model
from qamdt.files import write_json
from qamdt.precision import preferred_dtype
from qamdt.quality_words import asks_for_best


if TYPE_CHECKING:
    from pipelines.best_of import Judge


@dataclass(frozen=True)
class Take:
    """One sound file to make."""

    path: Path
    settings: dict[str, Any]

    @property
    def record_path(self) -> Path:
        return self.path.with_suffix(".json")

    def is_done(self) -> bool:
        """Whether the file is there, made with the same settings; its record is written last."""
        try:
            record = json.loads(self.record_path.read_text(encoding="utf-8"))
        except (FileNotFoundError, json.JSONDecodeError):
            return False
        return self.path.is_file() and record.get("settings") == json.loads(json.dumps(self.settings))


def generate(arguments: argparse.Namespace) -> None:
    """Runs the command with the parsed arguments."""
    if arguments.spectrogram is not None:
        check_matplotlib("--spectrogram")
    settings = collect_settings(arguments)
    if arguments.prompts is None:
        batches = [plan_takes(arguments.output, arguments.prompt, arguments.num, settings)]
    else:
        arguments.out_dir.mkdir(parents=True, exist_ok=True)
        batches = [
            plan_takes(arguments.out_dir / f"{number:04d}-{slug(prompt)}.wav", prompt, arguments.num, settings)
            for number, prompt in read_prompts(arguments.prompts)
        ]
        num_takes = sum(map(len, batches))
        batches = [missing for takes in batches if (missing := [take for take in takes if not take.is_done()])]
        num_missing = sum(map(len, batches))
        tqdm.write(f"{num_takes} to make, {num_takes - num_missing} of them done before.")
        if not batches:
            return

    keep_freed_memory()
    pipe = load_pipeline(settings["model"], settings["sampler"], settings["dtype"], arguments.device)
    judge = None
    if "best_of" in settings:
        from pipelines.best_of import Judge  # transformers is imported only for who asks for the best of several

        judge = Judge(settings["best_by"], scorer=settings["scorer"], device=pipe.device)
    for takes in tqdm(batches, desc="prompts", disable=len(batches) == 1):
        choices: list[dict] = [{} for _ in takes]
        if judge is None:
            waveforms = make(pipe, takes[0].settings, [take.settings["seed"] for take in takes])
        else:
            waveforms, choices = make_best(pipe, takes, judge)
        for take, waveform, choice in zip(takes, waveforms, choices, strict=True):
            write_audio(take.path, waveform, pipe.sampling_rate)
            sound = {"sampling_rate": pipe.sampling_rate, "seconds": len(waveform) / pipe.sampling_rate}
            write_json(take.record_path, {"settings": take.settings, "sound": sound, **choice, "versions": versions()})
            tqdm.write(str(take.path))
        if arguments.spectrogram is not None:
            from pipelines.spectrogram import draw_spectrograms

            draw_spectrograms(arguments.spectrogram, waveforms, pipe.sampling_rate)


def collect_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """What decides how the music sounds, apart from prompt and seed."""
    model = arguments.model or default_model()
    is_paper = arguments.sampler == "paper"
    dtype = preferred_dtype(choose_device(arguments.device)) if arguments.dtype == "auto" else arguments.dtype
    best_of = {}
    if arguments.best_of > 1:
        # Where low quality is asked for, the best sounding candidate is not the one that does as asked.
        criteria = arguments.best_by or (["quality", "clap"] if asks_for_best(arguments.quality) else ["clap"])
        best_of = {"best_of": arguments.best_of, "best_by": criteria, "scorer": arguments.scorer}
    return {
        "model": EMBEDDED_MODEL_DIR.name if model == str(EMBEDDED_MODEL_DIR) else model,
        "quality": arguments.quality,
        "negative_prompt": arguments.negative_prompt,
        "seconds": arguments.seconds,
        "steps": arguments.steps or (PAPER_SETTINGS["num_inference_steps"] if is_paper else 25),
        "guidance": arguments.guidance,
        "sampler": arguments.sampler,
        "eta": PAPER_SETTINGS["eta"] if is_paper else 0.0,
        "dtype": str(dtype).removeprefix("torch."),
        "seed": arguments.seed,
        **best_of,
    }


def plan_takes(path: Path, prompt: str, num_takes: int, settings: dict[str, Any]) -> list[Take]:
    """The takes of one prompt: `path`, or several of it that are numbered from 1, with seeds that count up.

    The seed of a take that is the best of several candidates is that of its first candidate.
    """
    paths = [path] if num_takes == 1 else [path.with_stem(f"{path.stem}-{i + 1}") for i in range(num_takes)]
    stride = settings.get("best_of", 1)
    return [
        Take(path, {"prompt": prompt} | settings | {"seed": settings["seed"] + i * stride})
        for i, path in enumerate(paths)
    ]


def choose_device(device: str | None) -> str:
    """The device asked for, or else a GPU where there is one."""
    return device or ("cuda" if torch.cuda.is_available() else "cpu")


def load_pipeline(model: str, sampler: str | None, dtype: str, device: str | None) -> QAMDTPipeline:
    """Loads a model with the chosen sampler onto the device, its transformer in the chosen precision."""
    pipe = QAMDTPipeline.from_pretrained(
        None if model == EMBEDDED_MODEL_DIR.name else model,
        dtype={"transformer": getattr(torch, dtype), "default": torch.float32},
    )
    if sampler is not None:
        is_paper = sampler == "paper"
        pipe.scheduler = paper_scheduler(pipe.scheduler) if is_paper else make_scheduler(sampler, pipe.scheduler)
    pipe.set_progress_bar_config(desc="denoising", leave=False)
    return pipe.to(choose_device(device))


def make_best(pipe: QAMDTPipeline, takes: list[Take], judge: Judge) -> tuple[torch.Tensor, list[dict]]:
    """Generates the candidates of each take; returns the best ones `(takes, samples)` and how they were chosen."""
    from pipelines.best_of import generate_best_of

    best = [
        generate_best_of(
            partial(make, pipe, take.settings),
            take.settings["best_of"],
            judge,
            prompt=take.settings["prompt"],
            sampling_rate=pipe.sampling_rate,
            seed=take.settings["seed"],
        )
        for take in takes
    ]
    choices = [{"best_of": {"seed": kept.seed, "candidates": kept.candidates, **judge.describe()}} for kept in best]
    return torch.stack([kept.waveform for kept in best]), choices


def make(pipe: QAMDTPipeline, settings: dict[str, Any], seeds: list[int]) -> torch.Tensor:
    """Generates a waveform for each seed `(seeds, samples)`; none depends on the others."""
    try:
        return pipe(
            settings["prompt"],
            quality=settings["quality"],
            negative_prompt=settings["negative_prompt"],
            audio_length_in_s=settings["seconds"],
            num_inference_steps=settings["steps"],
            guidance_scale=settings["guidance"],
            eta=settings["eta"],
            num_waveforms_per_prompt=len(seeds),
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            output_type="pt",
        ).audios.cpu()
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def read_prompts(path: Path) -> list[tuple[int, str]]:
    """Line numbers and prompts of a text file; empty lines and lines that begin with # are left out."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise argparse.ArgumentTypeError(f"--prompts must be a UTF-8 text file, got {str(path)!r}: {error}") from error
    prompts = [(number, line.strip()) for number, line in enumerate(lines, start=1)]
    prompts = [(number, prompt) for number, prompt in prompts if prompt and not prompt.startswith("#")]
    if not prompts:
        raise argparse.ArgumentTypeError(f"--prompts must hold at least one prompt, got {str(path)!r} with none")
    return prompts


def slug(prompt: str) -> str:
    """A prompt as part of a file name."""
    return re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:40].strip("-") or "prompt"
