"""What `qamdt restore` does: a recording to a sound file of higher quality, with a JSON file that says what was changed."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from pipelines.clips import choose_device, decide, identify_models, load_pipeline, record_path
from pipelines.mastering import Master, master
from pipelines.model_info import versions
from pipelines.request import GenerationRequest
from pipelines.restoration import Restoration
from qamdt.audio import write_audio
from qamdt.files import write_json
from qamdt.outputs import OVERWRITE_HINT, check_output, has_fields


def restore_file(
    request: GenerationRequest,
    audio: Path,
    output: Path,
    *,
    strength: float | None,
    good_score: float | None,
    scorer: str | None,
    device: str | None,
    overwrite: bool = False,
) -> None:
    """Restores a recording.

    Args:
        request: The prompt, model, precision, steps, guidance and seed to restore with, and the form of the sound file.
        audio: Sound file to restore; left as it is.
        output: Sound file to write, with a JSON file beside it.
        strength: As in `QAMDTPipeline.restore`.
        good_score: As there.
        scorer: Folder or Hub id of a WhisQ scorer; the embedded one when `None`.
        device: Where to compute; a GPU where there is one when `None`.
        overwrite: Whether files that were not made here may be replaced; the recording never is.

    Raises:
        ValueError: `output` is the recording itself.
        FileExistsError: It is there, and something else made it.
    """
    for file in (output, record_path(output)):
        check_output(
            file, inputs=[audio], is_ours=lambda file: overwrite or is_our_restoration(file), hint=OVERWRITE_HINT
        )
    device = choose_device(device)
    request = decide(request, device)
    models = identify_models(request)
    pipe = load_pipeline(request, device)
    if scorer is not None:
        from whisq.scorer import WhisQScorer

        pipe.scorer = WhisQScorer.from_pretrained(scorer, device=device)
    pipe.set_progress_bar_config(desc="denoising", leave=False)
    try:
        restored = pipe.restore(
            audio,
            prompt=request.prompt,
            strength=strength,
            good_score=good_score,
            num_inference_steps=request.steps,
            guidance_scale=request.guidance,
            seed=request.seed,
        )
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    sound = master(
        torch.from_numpy(restored.audio),
        restored.sampling_rate,
        output_sampling_rate=request.sampling_rate,
        loudness=request.loudness,
        fade_ms=request.fade_ms,
    )
    write_audio(output, sound.waveform, sound.sampling_rate)
    record = describe_restoration(restored, sound, request)
    facts = {"audio": str(audio), "scorer": pipe.scorer.name, "models": models, "versions": versions()}
    write_json(record_path(output), {"restoration": record | facts})
    tqdm.write(summarize_restoration(restored))
    tqdm.write(str(output))


def is_our_restoration(path: Path) -> bool:
    """Whether a sound file, or the record beside one, was written by this command."""
    return has_fields(record_path(path), ["restoration"])


def describe_restoration(restored: Restoration, sound: Master, request: GenerationRequest) -> dict[str, Any]:
    """What was done to a recording, as JSON has it."""
    settings = request.to_dict()
    return {
        "strength": restored.strength,
        "spans": restored.spans,
        "before": asdict(restored.score_before),
        "after": asdict(restored.score),
        "settings": {name: settings[name] for name in ("prompt", "model", "dtype", "steps", "guidance", "seed")},
        "sound": {
            "sampling_rate": sound.sampling_rate,
            "seconds": len(sound.waveform) / sound.sampling_rate,
            "gain_db": round(sound.gain_db, 2),
        },
    }


def summarize_restoration(restored: Restoration) -> str:
    """One line for a person."""
    before, after = restored.score_before.overall_quality, restored.score.overall_quality
    if not restored.spans:
        return f"Scores {before:.2f} and is high throughout: nothing was changed."
    seconds = sum(end - start for start, end in restored.spans)
    return (
        f"{seconds:.1f} of {restored.score.duration_in_s:.1f} s changed at strength {restored.strength:.2f}: "
        f"quality {before:.2f}, now {after:.2f}."
    )
