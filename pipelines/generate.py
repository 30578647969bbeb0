"""What `qamdt generate` does: prompts to sound files, each with a JSON file that says how it was made."""

from __future__ import annotations

import argparse
import re
import sys
import unicodedata
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from tqdm import tqdm

from pipelines.clips import ClipMaker, choose_device, decide, identify_models, is_made, is_ours, record_path
from pipelines.request import GenerationRequest
from pipelines.silence import loading_bars, request_warnings
from pipelines.spectrogram import check_matplotlib, draw_spectrograms, is_our_picture
from qamdt.cpu_memory import keep_freed_memory
from qamdt.files import claim_folder, read_text_lines
from qamdt.outputs import OVERWRITE_HINT, check_distinct, check_output


Take = tuple[Path, GenerationRequest]  # a sound file, and what it should be


def generate_one(
    request: GenerationRequest,
    output: Path,
    *,
    num_takes: int,
    spectrogram: Path | None,
    device: str | None,
    inputs: Sequence[Path | None] = (),
    overwrite: bool = False,
    is_quiet: bool = False,
) -> None:
    """Makes the takes of one prompt.

    Args:
        request: What to make.
        output: Sound file to write; several takes are numbered from 1.
        num_takes: How many to make, with seeds that count up.
        spectrogram: PNG file for a picture of them.
        device: Where to compute; a GPU where there is one when `None`.
        inputs: Files that the request was read from.
        overwrite: Whether files that were not made here may be replaced, and those of `inputs`, as the record says what
            they said; a recording never is.
        is_quiet: Whether to say nothing.
    """
    if spectrogram is not None:
        check_matplotlib("--spectrogram")
    device = choose_device(device)
    request = decide(request, device)
    takes = plan_takes(output, request, num_takes)
    inputs = [request.recording, *(() if overwrite else inputs)]
    check_takes(takes, inputs, overwrite=overwrite)
    if spectrogram is not None:
        check_distinct(spectrogram, *(file for path, _ in takes for file in (path, record_path(path))))
        check_output(
            spectrogram, inputs=inputs, is_ours=lambda path: overwrite or is_our_picture(path), hint=OVERWRITE_HINT
        )
    _make([takes], device, spectrogram=spectrogram, is_quiet=is_quiet)


def generate_prompts(
    request: GenerationRequest,
    prompts: Path,
    out_dir: Path,
    *,
    num_takes: int,
    device: str | None,
    inputs: Sequence[Path | None] = (),
    overwrite: bool = False,
    is_quiet: bool = False,
) -> None:
    """Makes the takes of every prompt of a file that are not made yet.

    Args:
        request: What to make, but for the prompt.
        prompts: Text file with a prompt a line.
        out_dir: Folder for the sound files, named by line and prompt.
        num_takes: How many to make of each, with seeds that count up.
        device: Where to compute; a GPU where there is one when `None`.
        inputs: Files that the request was read from.
        overwrite: As in `generate_one`; the file of prompts is never replaced.
        is_quiet: Whether to say nothing.
    """
    out_dir.mkdir(parents=True, exist_ok=True)
    device = choose_device(device)
    request = decide(request, device)
    batches = [
        plan_takes(out_dir / f"{number:04d}-{slug(prompt)}.wav", replace(request, prompt=prompt), num_takes)
        for number, prompt in read_prompts(prompts)
    ]
    models = identify_models(request)
    num_takes = sum(map(len, batches))
    inputs = [prompts, request.recording, *(() if overwrite else inputs)]
    with claim_folder(out_dir):
        batches = [missing for takes in batches if (missing := [take for take in takes if not is_made(*take, models)])]
        for takes in batches:
            check_takes(takes, inputs, sound_is_ours=True, overwrite=overwrite)
        if not is_quiet:
            tqdm.write(f"{num_takes} to make, {num_takes - sum(map(len, batches))} of them done before.")
        if batches:
            _make(batches, device, is_quiet=is_quiet)


def plan_takes(path: Path, request: GenerationRequest, num_takes: int) -> list[Take]:
    """The takes of one prompt: `path`, or several of it that are numbered from 1."""
    paths = [path] if num_takes == 1 else [path.with_stem(f"{path.stem}-{i + 1}") for i in range(num_takes)]
    return list(zip(paths, request.takes(num_takes), strict=True))


def check_takes(
    takes: list[Take],
    inputs: Sequence[str | Path | None],
    *,
    sound_is_ours: bool = False,
    overwrite: bool = False,
    hint: str = OVERWRITE_HINT,
) -> None:
    """Refuses takes that would replace an input, or files that were not made here.

    Args:
        takes: The takes to make.
        inputs: Files that are read.
        sound_is_ours: Whether a sound file without a record is taken for one whose making was interrupted.
        overwrite: Whether files that were not made here may be replaced.
        hint: What else can be done about such files.
    """
    for path, _ in takes:
        for file in (path, record_path(path)):
            is_torn = sound_is_ours and file == path and not record_path(path).exists()
            allowed = overwrite or is_torn or is_ours(file)
            check_output(file, inputs=inputs, is_ours=lambda _, allowed=allowed: allowed, hint=hint)


def _make(batches: list[list[Take]], device: str, *, spectrogram: Path | None = None, is_quiet: bool = False) -> None:
    """Makes takes, prompt by prompt, and writes them."""
    keep_freed_memory()
    _, request = batches[0][0]
    with loading_bars(shown=sys.stderr.isatty() and not is_quiet):
        maker = ClipMaker(request, device)
    maker.pipe.set_progress_bar_config(desc="denoising", leave=False, disable=is_quiet or None)
    for takes in tqdm(batches, desc="prompts", disable=is_quiet or len(batches) == 1 or None):
        try:
            with request_warnings(shown=not is_quiet):
                clips = maker.make([request for _, request in takes])
        except ValueError as error:  # what only the model can refuse
            raise argparse.ArgumentTypeError(str(error)) from error
        for (path, _), clip in zip(takes, clips, strict=True):
            clip.save(path)
            if not is_quiet:
                tqdm.write(str(path))
        if spectrogram is not None:
            waveforms = torch.stack([clip.sound.waveform for clip in clips])
            draw_spectrograms(spectrogram, waveforms, clips[0].sound.sampling_rate)


def read_prompts(path: Path) -> list[tuple[int, str]]:
    """Line numbers and prompts of a text file; empty lines and lines that begin with # are left out."""
    try:
        prompts = [(number, line.strip()) for number, line in enumerate(read_text_lines(path), start=1)]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"--prompts: {error}") from error
    prompts = [(number, prompt) for number, prompt in prompts if prompt and not prompt.startswith("#")]
    if not prompts:
        raise argparse.ArgumentTypeError(f"--prompts must hold at least one prompt, got {str(path)!r} with none")
    return prompts


def slug(prompt: str) -> str:
    """A prompt as part of a file name: letters and digits of any script stay, what else there is becomes a hyphen."""
    words = re.sub(r"[\W_]+", "-", unicodedata.normalize("NFC", prompt).lower()).strip("-")
    return words[:40].strip("-") or "prompt"
