"""Memory, time and progress of `whisq score` on one file of hours.

    python -m benchmarks.long_file --hours 3

Writes a stereo FLAC of chords, drums and pauses, scores it with the command in a process of its own, and prints: the
resident memory after a tenth of the time, its most in every tenth and at all (MiB); what the command took (CPU-seconds
and minutes); how often it said meanwhile how far it is; and the row that it wrote, its curve counted.

`--hours 3`, a FLAC of 196 MiB, embedded scorer, one thread on an AVX2 core at load 8 (2026-11-25): at most 695 MiB, in
every tenth of the time between 685 and 695; 132 CPU-seconds, 30 minutes, progress told 24 times; 22,500 values of the
curve, quality 3.96.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile


RATE = 44_100
POLL_IN_S = 0.5
BAR_IN_S = 2.0
NOTES = (110.0, 130.81, 146.83, 164.81, 196.0, 220.0)  # Hz


def write_long_file(path: Path, hours: float, seed: int = 0) -> None:
    """Writes a FLAC file bar by bar, so that it never lies in memory: mostly music, now and then a pause."""
    generator = np.random.default_rng(seed)
    num_bars = round(hours * 3600 / BAR_IN_S)
    with soundfile.SoundFile(path, "w", RATE, 2, "PCM_16") as file:
        for number in range(num_bars):
            is_pause = number % 20 >= 16
            file.write(np.zeros((round(BAR_IN_S * RATE), 2), np.float32) if is_pause else make_bar(generator))


def make_bar(generator: np.random.Generator) -> np.ndarray:
    """A bar of four beats, samples `(samples, 2)`: a chord that dies away, and a drum on each beat."""
    seconds = np.arange(round(BAR_IN_S * RATE), dtype=np.float32) / RATE
    chord = sum(np.sin(2 * np.pi * pitch * seconds) for pitch in generator.choice(NOTES, 3, replace=False))
    beat = seconds % (BAR_IN_S / 4)
    drum = np.exp(-30 * beat) * np.sin(2 * np.pi * 60 * beat)
    sides = 0.1 * (chord * np.exp(-seconds))[:, None] * generator.uniform(0.5, 1.0, 2) + 0.3 * drum[:, None]
    return sides.astype(np.float32)


def watch(process: subprocess.Popen) -> Iterator[tuple[float, float]]:
    """Yields the time since the start in seconds and the resident memory in MiB, until the process ends."""
    started = time.monotonic()
    while process.poll() is None:
        status = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
        if "VmRSS:" in status:
            yield time.monotonic() - started, int(status.split("VmRSS:")[1].split()[0]) / 1024
        time.sleep(POLL_IN_S)


def score_long_file(path: Path, out: Path, model: str | None = None) -> dict:
    """Scores a file with `whisq score` and returns what was seen meanwhile."""
    command = [sys.executable, "-m", "whisq.cli", "score", str(path), "-o", str(out)]
    log = out.with_suffix(".log")
    started_cpu = child_cpu_in_s()
    with log.open("wb") as stderr:
        process = subprocess.Popen(command + (["--model", model] if model else []), stderr=stderr)
        seen = list(watch(process))
    if process.returncode != 0:
        raise RuntimeError(f"`whisq score` ended with status {process.returncode}: {log.read_text('utf-8')[-500:]}")
    memory = [mib for _, mib in seen]
    row = json.loads(out.read_text(encoding="utf-8"))
    row["frame_overall_quality"] = len(row["frame_overall_quality"])
    return {
        "early_mib": round(memory[len(memory) // 10]),
        "most_mib_by_tenths": [round(max(tenth)) for tenth in np.array_split(memory, 10) if len(tenth)],
        "peak_mib": round(max(memory)),
        "minutes": round(seen[-1][0] / 60, 2),
        "cpu_in_s": round(child_cpu_in_s() - started_cpu, 1),
        "times_progress_was_told": log.read_text(encoding="utf-8").count("scoring: "),
        "row": {name: row[name] for name in ("status", "overall_quality", "duration_in_s", "flags")},
        "values_of_curve": row["frame_overall_quality"],
    }


def child_cpu_in_s() -> float:
    """CPU time of the processes that this one has started and that have ended."""
    import resource

    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def main(argv: list[str] | None = None) -> None:
    """Command line of the measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, default=0.1, help="length of the file (%(default)s)")
    parser.add_argument("--model", help="folder of a scorer (the embedded one)")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "long.flac"
        write_long_file(path, arguments.hours)
        result = {"file_mib": round(path.stat().st_size / 2**20)}
        result |= score_long_file(path, Path(folder) / "scores.jsonl", arguments.model)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
