"""The clips that an evaluation of a model needs: each prompt at best quality, at five qualities, and along two curves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from pipelines.clips import ClipMaker, choose_device, decide, identify_models, is_made
from pipelines.evaluation.wanted import INSTRUMENTS
from pipelines.generate import Take, check_takes, slug
from pipelines.request import GenerationRequest
from qamdt.cpu_memory import keep_freed_memory
from qamdt.files import claim_folder


KEYS = ("C major", "A minor", "G major", "E minor", "D major", "F major", "D minor", "Bb major", "G minor", "A major")
TEMPI_BPM = (120, 90, 140, 75, 105, 160, 82, 130, 98, 112)
WORDINGS = (
    "{instrument} in {key} at {tempo_bpm} bpm",
    "A piece in {key} at {tempo_bpm} bpm, played by {instrument}.",
)
# One in each of the five levels that the embedded model knows.
QUALITY_SCORES = (1.5, 2.7, 3.4, 4.1, 4.8)
QUALITY_CURVES = {"rising": (1.5, 4.8), "falling": (4.8, 1.5)}  # spread over the clip


def control_prompts(num_prompts: int) -> list[tuple[str, str, str, int]]:
    """Writes prompts that name an instrument, a key and a tempo; after each round of instruments the others shift.

    Returns:
        Text, instrument, key and tempo in beats a minute of each.
    """
    prompts = []
    for index in range(num_prompts):
        turn, position = divmod(index, len(INSTRUMENTS))
        instrument = INSTRUMENTS[position]
        key = KEYS[(position + 3 * turn) % len(KEYS)]
        tempo_bpm = TEMPI_BPM[(position + 7 * turn) % len(TEMPI_BPM)]
        text = WORDINGS[turn % len(WORDINGS)].format(instrument=instrument, key=key, tempo_bpm=tempo_bpm)
        prompts.append((text, instrument, key, tempo_bpm))
    return prompts


def plan_clips(request: GenerationRequest, prompts: Sequence[str], folder: Path, metrics: Sequence[str]) -> list[Take]:
    """Lists the clips to make, all of a prompt from one seed.

    Args:
        request: How to make them.
        prompts: What to play.
        folder: Where they go.
        metrics: "quality" asks for each of `QUALITY_SCORES`, and "curve" for each of `QUALITY_CURVES`.
    """
    takes = []
    for number, prompt in enumerate(prompts, start=1):
        asked = replace(request, prompt=prompt, seed=request.seed + number - 1)
        stem = f"{number:04d}-{slug(prompt)}"
        takes.append((folder / f"{stem}.wav", asked))
        if "quality" in metrics:
            takes += [
                (folder / f"{stem}-quality-{score:g}.wav", replace(asked, quality=score)) for score in QUALITY_SCORES
            ]
        if "curve" in metrics:
            takes += [
                (folder / f"{stem}-{name}.wav", replace(asked, quality=curve))
                for name, curve in QUALITY_CURVES.items()
            ]
    return takes


def make_clips(takes: Sequence[Take], *, device: str | None) -> None:
    """Makes the clips that are not made yet; each gets a record of how it was made beside it.

    Args:
        takes: Sound files and what they should be.
        device: Where to compute; a GPU where there is one when `None`.
    """
    device = choose_device(device)
    takes = [(path, decide(request, device)) for path, request in takes]
    models = identify_models(takes[0][1])
    with claim_folder(takes[0][0].parent):
        missing = [take for take in takes if not is_made(*take, models)]
        check_takes(missing, [], sound_is_ours=True, hint="")
        tqdm.write(f"{len(takes)} clips to make, {len(takes) - len(missing)} of them done before.")
        if missing:
            _make_missing(missing, device)


def _make_missing(takes: Sequence[Take], device: str) -> None:
    keep_freed_memory()
    maker = ClipMaker(takes[0][1], device)
    maker.pipe.set_progress_bar_config(disable=True)
    for path, request in tqdm(takes, desc="clips", disable=None):
        maker.make([request])[0].save(path)
