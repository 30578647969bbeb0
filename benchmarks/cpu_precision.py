"""Does bfloat16 make generation on this CPU faster, and what does it change in the sound?

    python -m benchmarks.cpu_precision --rounds 5 --threads 2

Generates the same prompts and seeds with the transformer in float32 and in bfloat16, alternating, and prints the
times, the mean difference of the log-mel spectrograms, and for comparison the difference that another seed makes.
`qamdt/precision.py` decides by what this benchmark showed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import torch

from pipelines.evaluation.signal_measures import bandwidth_hz, noise_floor_db
from pipelines.pipeline_qamdt import QAMDTPipeline
from qamdt.audio import SAMPLING_RATE, LogMel
from qamdt.cpu_memory import keep_freed_memory
from qamdt.precision import has_bf16_instructions


PROMPTS = (
    "calm solo piano ballad in C major",
    "fast techno with synth bass and 909 drums",
    "baroque trio of violin, cello and harpsichord",
    "heavy metal with distorted guitar and rock drums",
)


def main(argv: list[str] | None = None) -> None:
    """Command line of the measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="calls of each precision (%(default)s)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args(argv)
    keep_freed_memory()
    torch.set_num_threads(arguments.threads)
    pipelines = {}
    for dtype in (torch.float32, torch.bfloat16):
        pipelines[dtype] = QAMDTPipeline.from_pretrained(dtype={"transformer": dtype, "default": torch.float32})
        pipelines[dtype].set_progress_bar_config(disable=True)

    def generate(dtype: torch.dtype, number: int, seed: int) -> tuple[torch.Tensor, float]:
        started = time.perf_counter()
        prompt = PROMPTS[number % len(PROMPTS)]
        output = pipelines[dtype](
            prompt, audio_length_in_s=10.0, generator=torch.Generator().manual_seed(seed), output_type="pt"
        )
        return output.audios[0], time.perf_counter() - started

    log_mel = LogMel()
    seconds = {dtype: [] for dtype in pipelines}
    same_seed, other_seed, bandwidth_change, floor_change = [], [], [], []
    for dtype in pipelines:
        generate(dtype, 0, 0)  # the first call warms up
    for number in range(arguments.rounds):
        audio = {}
        for dtype in pipelines:
            audio[dtype], duration = generate(dtype, number, number)
            seconds[dtype].append(duration)
        exact, rounded = audio[torch.float32], audio[torch.bfloat16]
        other, _ = generate(torch.float32, number, number + 1000)
        mel = {name: log_mel(clip[None]) for name, clip in (("exact", exact), ("rounded", rounded), ("other", other))}
        same_seed.append((mel["rounded"] - mel["exact"]).abs().mean().item())
        other_seed.append((mel["other"] - mel["exact"]).abs().mean().item())
        bandwidth_change.append(
            bandwidth_hz(rounded.numpy(), SAMPLING_RATE) / bandwidth_hz(exact.numpy(), SAMPLING_RATE) - 1
        )
        floor_change.append(
            noise_floor_db(rounded.numpy(), SAMPLING_RATE) - noise_floor_db(exact.numpy(), SAMPLING_RATE)
        )
    medians = {str(dtype): round(statistics.median(values), 3) for dtype, values in seconds.items()}
    result = {
        "has_bf16_instructions": has_bf16_instructions(),
        "median_seconds": medians,
        "speed_up": round(medians["torch.float32"] / medians["torch.bfloat16"], 2),
        "mel_difference": round(statistics.mean(same_seed), 3),
        "mel_difference_of_another_seed": round(statistics.mean(other_seed), 3),
        "mean_bandwidth_change": round(statistics.mean(bandwidth_change), 3),
        "mean_noise_floor_change_db": round(statistics.mean(floor_change), 2),
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
