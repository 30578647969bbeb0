"""What `qamdt.cpu_memory.keep_freed_memory` saves: seconds per training step of the vocoder, with it and without.

    python -m benchmarks.freed_memory

Each measurement is a process of its own, because the setting cannot be taken back; the two take turns.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time

import torch

from qamdt.cpu_memory import keep_freed_memory


def seconds_per_step(num_steps: int) -> float:
    """Median duration of a training step on random clips, after two steps of warm-up."""
    from qamdt.decoders.train_vocoder import VocoderLoss
    from qamdt.models.vocoder_istft import ISTFTVocoder

    torch.manual_seed(0)
    loss_module = VocoderLoss(ISTFTVocoder(), vae=None, loudness_weight=0.5, bf16=False)
    waveforms = 0.1 * torch.randn(16, 20_480)
    durations = []
    for _ in range(num_steps + 2):
        started = time.perf_counter()
        loss_module(waveforms, torch.Generator())["loss"].backward()
        durations.append(time.perf_counter() - started)
    return statistics.median(durations[2:])


def main() -> None:
    """Command line of the measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-rounds", type=int, default=3, help="processes of each kind (%(default)s)")
    parser.add_argument("--num-steps", type=int, default=8, help="steps in a process (%(default)s)")
    parser.add_argument("--one", choices=("kept", "returned"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        if arguments.one == "kept" and not keep_freed_memory():
            sys.exit("this system has no glibc, so there is nothing to compare")
        print(seconds_per_step(arguments.num_steps))
        return

    durations = {"kept": [], "returned": []}
    for _ in range(arguments.num_rounds):
        for kind, values in durations.items():
            command = [sys.executable, "-m", "benchmarks.freed_memory", f"--one={kind}"]
            command.append(f"--num-steps={arguments.num_steps}")
            values.append(float(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    ratios = [slow / fast for slow, fast in zip(durations["returned"], durations["kept"], strict=True)]
    print(json.dumps({"seconds_per_step": durations, "times_faster": statistics.median(ratios)}, indent=2))


if __name__ == "__main__":
    main()
