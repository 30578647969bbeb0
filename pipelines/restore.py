"""What `qamdt restore` does: a recording to a sound file of higher quality, with a JSON file that says what was changed."""

from __future__ import annotations

import argparse
from pathlib import Path

from tqdm import tqdm

from pipelines.clips import ClipMaker, choose_device, decide, record_path
from pipelines.request import GenerationRequest
from pipelines.restoration import summarize_restoration
from qamdt.outputs import OVERWRITE_HINT, check_output, has_fields


def restore_file(request: GenerationRequest, output: Path, *, device: str | None, overwrite: bool = False) -> None:
    """Restores a recording.

    Args:
        request: One with `restore_audio`, which is left as it is.
        output: Sound file to write, with a JSON file beside it.
        device: Where to compute; a GPU where there is one when `None`.
        overwrite: Whether files that were not made here may be replaced; the recording never is.

    Raises:
        ValueError: `output` is the recording itself.
        FileExistsError: It is there, and something else made it.
    """
    for file in (output, record_path(output)):
        check_output(
            file,
            inputs=[request.recording],
            is_ours=lambda file: overwrite or is_our_restoration(file),
            hint=OVERWRITE_HINT,
        )
    device = choose_device(device)
    request = decide(request, device)
    maker = ClipMaker(request, device)
    maker.pipe.set_progress_bar_config(desc="denoising", leave=False)
    try:
        (clip,) = maker.make([request])
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    clip.save(output)
    tqdm.write(summarize_restoration(clip.restoration))
    tqdm.write(str(output))


def is_our_restoration(path: Path) -> bool:
    """Whether a sound file, or the record beside one, was written by this command."""
    return has_fields(record_path(path), ["restoration"])
