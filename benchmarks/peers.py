"""Times the models of this project beside peers in the shapes that diffusers has of them, in one run.

    python -m benchmarks.peers --rounds 3 --output peers.json --plot docs/peers.png

Candidates take turns, each in a fresh process, so that a busy machine slows all of them alike and each peak of memory is
its own. `qamdt-mini` is the embedded model, whole calls from prompt to waveform at its defaults among its measures. All
others have random weights, which cost the same as trained ones, in their published shapes: measured are one guided
denoiser step (a batch of two; of one for guidance-distilled models), one unguided step of ours, and one decoding, and
a clip is reckoned as steps and decoding. The peers' text encoders are left out, in their favour. Loading is left out for
all. Other work on the machine lengthens seconds more than CPU-seconds; the load before the run is saved with the rows.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection

import torch

from benchmarks import peer_models
from pipelines.samplers import NUM_STEPS


EQUAL_STEPS = 20
WARM_UP_IN_S = 1.0  # of audio


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A model to time.

    Args:
        build: Builds its parts for so many seconds of audio, on a device: "step", "decoding" and, of our own, "clip" (a
            whole call), "unguided_step" and "text".
        default_steps: Denoising steps that its pipeline takes by default.
        sound: Channels and sampling rate of what it makes.
    """

    build: Callable[[float, str], dict[str, Callable[[], object]]]
    default_steps: int
    sound: str


CANDIDATES = {
    "qamdt-mini": Candidate(build=peer_models.build_embedded, default_steps=NUM_STEPS, sound="mono, 16 kHz"),
    "QA-MDT small": Candidate(build=peer_models.build_small, default_steps=NUM_STEPS, sound="mono, 16 kHz"),
    "QA-MDT base": Candidate(build=peer_models.build_base, default_steps=200, sound="mono, 16 kHz"),
    "MusicLDM": Candidate(build=peer_models.build_musicldm, default_steps=200, sound="mono, 16 kHz"),
    "AudioLDM2": Candidate(build=peer_models.build_audioldm2, default_steps=200, sound="mono, 16 kHz"),
    "Stable Audio 3 small": Candidate(
        build=peer_models.build_stable_audio_3, default_steps=8, sound="stereo, 44.1 kHz"
    ),
    "ACE-Step 1.5 turbo": Candidate(build=peer_models.build_ace_step, default_steps=8, sound="stereo, 48 kHz"),
}


def measure_candidate(name: str, threads: int, seconds: float, device: str, connection: Connection) -> None:
    """Builds one candidate, runs each part on a second of audio to warm up, and measures each part once."""
    from diffusers.utils import logging

    logging.set_verbosity_error()
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    with torch.inference_mode():
        for run in CANDIDATES[name].build(WARM_UP_IN_S, device).values():
            run()
        parts = CANDIDATES[name].build(seconds, device)
        measured = {part: time_once(run, device) for part, run in parts.items()}
    connection.send({"parts": measured, "peak_gib": peak_memory_gib(device)})


def time_once(run: Callable[[], object], device: str) -> dict[str, float]:
    """Wall and CPU seconds of a call."""
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    if device != "cpu":
        torch.cuda.synchronize()
    return {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}


def peak_memory_gib(device: str) -> float:
    """The most memory that this process has held: resident, or on the GPU."""
    if device != "cpu":
        return torch.cuda.max_memory_allocated() / 2**30
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 2**30


def measure(names: list[str], rounds: int, threads: int, seconds: float, device: str) -> dict[str, list[dict]]:
    """Runs `rounds` rounds, in each of which every candidate is measured once, in a process of its own."""
    context = multiprocessing.get_context("spawn")
    measured = {name: [] for name in names}
    for _ in range(rounds):
        for name in names:
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=measure_candidate, args=(name, threads, seconds, device, sender))
            process.start()
            sender.close()
            try:
                measured[name].append(receiver.recv())
            except EOFError as error:
                process.join()
                raise RuntimeError(f"{name} ended early, with exit code {process.exitcode}.") from error
            process.join()
            print(f"{name}: {json.dumps(measured[name][-1])}", flush=True)
    return measured


def summarize(measured: dict[str, list[dict]], seconds: float) -> list[dict]:
    """Turns the rounds into rows, of medians: each candidate at its default steps and at equal ones."""
    rows = []
    for name, rounds in measured.items():
        parts = {unit: median_of_parts(rounds, unit) for unit in ("wall_s", "cpu_s")}
        for steps in dict.fromkeys((CANDIDATES[name].default_steps, EQUAL_STEPS)):
            is_whole = "clip" in parts["cpu_s"] and steps == CANDIDATES[name].default_steps
            wall_s, cpu_s = (clip_time(parts[unit], steps, is_whole) for unit in ("wall_s", "cpu_s"))
            rows.append(
                {
                    "candidate": name,
                    "sound": CANDIDATES[name].sound,
                    "steps": steps,
                    "whole_call": is_whole,
                    "cpu_s_of_step": parts["cpu_s"]["step"],
                    "cpu_s_of_decoding": parts["cpu_s"]["decoding"],
                    "cpu_s": cpu_s,
                    "wall_s": wall_s,
                    "times_real_time": seconds / wall_s,
                    "peak_gib": max(measurement["peak_gib"] for measurement in rounds),
                }
            )
    return rows


def median_of_parts(rounds: list[dict], unit: str) -> dict[str, float]:
    """The median of each part's time over the rounds."""
    parts = rounds[0]["parts"]
    return {part: statistics.median(measurement["parts"][part][unit] for measurement in rounds) for part in parts}


def clip_time(parts: dict[str, float], steps: int, is_whole: bool) -> float:
    """The time of a clip: as measured whole, or reckoned from its parts."""
    return parts["clip"] if is_whole else steps * parts["step"] + parts["decoding"] + parts.get("text", 0.0)


def format_table(rows: list[dict]) -> str:
    """Rows as a table; what was measured whole has a star."""
    lines = [
        "| candidate | sound | steps | CPU-s a step | CPU-s decoding | CPU-s a clip | seconds | times real time | GiB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        star = "*" if row["whole_call"] else ""
        lines.append(
            f"| {row['candidate']} | {row['sound']} | {row['steps']} | {row['cpu_s_of_step']:.3g} "
            f"| {row['cpu_s_of_decoding']:.3g} | {row['cpu_s']:.3g}{star} | {row['wall_s']:.3g} "
            f"| {row['times_real_time']:.2g} | {row['peak_gib']:.2f} |"
        )
    return "\n".join(lines)


def plot(rows: list[dict], seconds: float, path: str) -> None:
    """Draws CPU-seconds for each second of audio, on a logarithmic scale."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = sorted(rows, key=lambda row: row["cpu_s"])
    labels = [f"{row['candidate']}, {row['steps']} steps" for row in rows]
    colors = ["tab:orange" if row["candidate"].lower().startswith("qa") else "tab:gray" for row in rows]
    figure, axes = pyplot.subplots(figsize=(8, 0.35 * len(rows) + 1))
    bars = axes.barh(labels, [row["cpu_s"] / seconds for row in rows], color=colors)
    axes.bar_label(bars, fmt="%.3g", padding=3, fontsize=8)
    axes.set_xscale("log")
    axes.margins(x=0.15)
    axes.invert_yaxis()
    axes.set_xlabel("CPU-seconds for a second of audio")
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--candidates", nargs="+", choices=CANDIDATES, default=list(CANDIDATES), metavar="NAME")
    parser.add_argument("--rounds", type=int, default=3, help="the median is reported (%(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of each candidate (%(default)s)")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of the clip (%(default)s)")
    parser.add_argument("--device", default="cpu", help="or cuda, where memory is that of the GPU (%(default)s)")
    parser.add_argument("--output", help="JSON file for the rows and every single measurement")
    parser.add_argument("--plot", help="PNG file; needs matplotlib")
    arguments = parser.parse_args(argv)

    settings = vars(arguments) | {"torch": torch.__version__, "load_average_before": os.getloadavg()}
    measured = measure(arguments.candidates, arguments.rounds, arguments.threads, arguments.seconds, arguments.device)
    rows = summarize(measured, arguments.seconds)
    if arguments.output:
        with open(arguments.output, "w", encoding="utf-8") as file:
            json.dump({"settings": settings, "rows": rows, "rounds": measured}, file, indent=2)
    if arguments.plot:
        plot(rows, arguments.seconds, arguments.plot)
    print(format_table(rows))


if __name__ == "__main__":
    main()
