"""Whether the memory of a process stays what it is, over thousands of files scored and hundreds of clips generated.

    python -m benchmarks.flat_memory --num-files 2000 --num-clips 200

Prints the resident memory after a tenth of the work, by which everything has been loaded and every buffer has its size,
and at the end, in MiB, and by how much it grew.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile
import torch
from tqdm import tqdm

from pipelines.pipeline_qamdt import QAMDTPipeline
from qamdt.audio import read_audio
from whisq.scorer import WhisQScorer


def resident_mib() -> float:
    """The memory of this process that is in use now."""
    with open("/proc/self/statm", encoding="utf-8") as file:
        pages = int(file.read().split()[1])
    return pages * resource.getpagesize() / 2**20


def measure_growth(work: Callable[[int], object], count: int) -> dict[str, float]:
    """Does a piece of work `count` times, each with its number; returns memory after a tenth of them and at the end."""
    early = 0.0
    for number in tqdm(range(count)):
        work(number)
        if number == max(count // 10 - 1, 0):
            early = resident_mib()
    late = resident_mib()
    return {
        "count": count,
        "early_mib": round(early, 1),
        "late_mib": round(late, 1),
        "growth": round(late / early - 1, 4),
    }


def write_sounds(folder: Path, count: int) -> list[Path]:
    """Writes short files of different lengths, rates and numbers of channels."""
    generator = np.random.default_rng(0)
    paths = []
    for number in range(count):
        rate = int(generator.choice([8_000, 16_000, 22_050, 44_100]))
        shape = (round(generator.uniform(0.3, 3.0) * rate), int(generator.integers(1, 3)))
        paths.append(folder / f"{number:05d}.wav")
        soundfile.write(paths[-1], 0.1 * generator.standard_normal(shape), rate)
    return paths


def score_files(scorer: WhisQScorer, paths: list[Path], batch_size: int = 10) -> dict[str, float]:
    """Reads and scores files, some at a time."""

    def score(number: int) -> None:
        batch = paths[number * batch_size : (number + 1) * batch_size]
        scorer.score([read_audio(path, 16_000) for path in batch], 16_000, "a calm piano")

    growth = measure_growth(score, len(paths) // batch_size)
    return growth | {"count": len(paths)}


def generate_clips(pipe: QAMDTPipeline, count: int, **arguments) -> dict[str, float]:
    """Generates clips of different prompts, lengths and qualities, one at a time."""

    def generate(number: int) -> None:
        pipe(
            f"piano piece number {number}",
            quality=("high", "low", 3.0)[number % 3],
            generator=torch.Generator().manual_seed(number),
            **arguments,
        )

    return measure_growth(generate, count)


def main(argv: list[str] | None = None) -> None:
    """Command line of the measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-files", type=int, default=100, help="scored by the embedded scorer (%(default)s)")
    parser.add_argument("--num-clips", type=int, default=20, help="made by the default model (%(default)s)")
    parser.add_argument("--seconds", type=float, default=2.0, help="length of each clip (%(default)s)")
    parser.add_argument("--num-steps", type=int, default=4, help="denoising steps of each clip (%(default)s)")
    arguments = parser.parse_args(argv)
    result = {}
    with tempfile.TemporaryDirectory() as folder:
        paths = write_sounds(Path(folder), arguments.num_files)
        result["scored"] = score_files(WhisQScorer.from_pretrained(), paths)
    pipe = QAMDTPipeline.from_pretrained()
    pipe.set_progress_bar_config(disable=True)
    how = {"num_inference_steps": arguments.num_steps, "audio_length_in_s": arguments.seconds}
    result["generated"] = generate_clips(pipe, arguments.num_clips, **how)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
