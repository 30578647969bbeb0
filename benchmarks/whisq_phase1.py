"""Checks the scorer's training on a folder in MusicEval's layout whose truth is planted: can it be found, or faked?

    python -m benchmarks.whisq_phase1 --out runs/phase1

Two folders are made. In "quality" the rating is how much noise a clip has, whatever system made it. In "shortcut" it
depends on the system alone, which can be told by two hums: training finds it, and only leaving systems out
tells that nothing about quality was learnt. In both, text alignment is whether the instrument of the prompt plays.
Prints one row per check with what was measured. The same command again resumes; then only the time is not right.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
import soundfile
import torch

from whisq.evaluate import main as evaluate
from whisq.modeling_clap import MiniClap
from whisq.train import main as train


SAMPLING_RATE = 16_000
WAVEFORMS = {
    "flute": lambda phase: np.sin(phase),
    "trumpet": lambda phase: 2 * ((phase / (2 * np.pi)) % 1) - 1,
    "clarinet": lambda phase: np.sign(np.sin(phase)) * 0.7,
    "organ": lambda phase: (np.sin(phase) + np.sin(2 * phase) + np.sin(4 * phase)) / 2,
}
WORDINGS = ("a calm melody played by a {}", "{} solo, slow", "a song for {}", "the {} plays alone")
SETTINGS = [
    "encoders.text=embedded",
    "encoders.batch_size=4",
    "model.dropout=0.0",
    "optim.learning_rate=3.0e-3",
    "run.patience=15",
    "run.max_epochs=60",
    "run.num_resamples=200",
]
BARS = {
    "quality: overall quality is found": ("quality", "WhisQ, seeds averaged", "overall_quality", ">=", 0.9),
    "quality: also with systems left out": (
        "quality",
        "WhisQ, systems left out, seeds averaged",
        "overall_quality",
        ">=",
        0.9,
    ),
    "shortcut: the official split is fooled": ("shortcut", "WhisQ, seeds averaged", "overall_quality", ">=", 0.9),
    "shortcut: systems left out expose it": (
        "shortcut",
        "WhisQ, systems left out, seeds averaged",
        "overall_quality",
        "<=",
        0.4,
    ),
    "quality: text alignment is found": ("quality", "WhisQ, seeds averaged", "text_alignment", ">=", 0.6),
    "quality: exchanged prompts destroy it": ("quality", "control: prompts exchanged", "text_alignment", "<=", 0.3),
}


def write_encoder(folder: Path, seed: int = 0) -> Path:
    """Writes a small audio tower with random weights, which tells sounds apart well enough for planted signals."""
    torch.manual_seed(seed)
    MiniClap(channels=(8, 16, 32), hidden_size=64, num_layers=2, name="random").save_pretrained(folder)
    return folder


def write_phase1(
    root: Path, *, kind: str, num_systems: int = 30, clips_per_system: int = 20, seconds: float = 3.0, seed: int = 0
) -> Path:
    """Makes a release of synthetic clips in the layout of MusicEval-phase1, unless it is there already.

    Args:
        root: Folder to make.
        kind: "quality" or "shortcut", see above.
        num_systems: Number of systems, at most 36.
        clips_per_system: Clips of each; a fifth are the dev set, a fifth the test set.
        seconds: Shortest clip; the longest is twice as long.
        seed: Decides everything.
    """
    system_list = root / "system_mos" / "system_mos_phase1.csv"  # written last
    if system_list.is_file():
        return root
    generator = np.random.default_rng(seed)
    for folder in ("wav", "sets", "person_mos", "system_mos"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    instruments = [list(WAVEFORMS)[i % len(WAVEFORMS)] for i in range(clips_per_system)]
    prompts = [WORDINGS[i // len(WAVEFORMS) % len(WORDINGS)].format(name) for i, name in enumerate(instruments)]
    lines = "".join(f"P{i + 1:03d}\t{prompt}\n" for i, prompt in enumerate(prompts))
    (root / "prompt_info.txt").write_text("id\ttext\n" + lines)
    (root / "demo_prompt_info.txt").write_text("id\ttext\n")

    rows: dict[str, list[str]] = {"train": [], "dev": [], "test": []}
    persons: dict[str, list[str]] = {"train": [], "dev": [], "test": []}
    of_system: dict[str, list[tuple[float, float]]] = {}
    system_qualities = generator.permutation(np.linspace(1.2, 4.8, num_systems))
    # From S101 on, so that none is taken for one of the systems whose prompts come from demo pages.
    for system, system_quality in enumerate(system_qualities):
        for rank, number in enumerate(generator.permutation(clips_per_system)):
            split = ("dev", "test", "train", "train", "train")[rank % 5]
            quality = system_quality if kind == "shortcut" else generator.uniform(1, 5)
            is_aligned = bool(generator.random() < 0.5)
            others = [name for name in WAVEFORMS if name != instruments[number]]
            instrument = instruments[number] if is_aligned else str(generator.choice(others))
            name = f"audiomos2025-track1-S{system + 101}_P{number + 1:03d}"
            length = seconds * generator.uniform(1, 2)
            heard = quality if kind == "quality" else 4.0
            waveform = _synthesize(instrument, heard, system, length, generator)
            soundfile.write(root / "wav" / f"{name}.wav", waveform, SAMPLING_RATE)
            ratings = [(_rate(quality, generator), _rate(5 if is_aligned else 1, generator)) for _ in range(5)]
            persons[split] += [f"{name}.wav,R{i:02d},{o},{t}\n" for i, (o, t) in enumerate(ratings)]
            overall, textual = np.mean(ratings, axis=0)
            rows[split].append(f"{name}.wav,{overall:.1f},{textual:.1f}\n")
            of_system.setdefault(f"S{system + 101}", []).append((overall, textual))
    for split, lines in rows.items():
        (root / "sets" / f"{split}_mos_list.txt").write_text("".join(lines))
        (root / "person_mos" / f"{split}_person_mos.txt").write_text("".join(persons[split]))
    means = {system: np.mean(ratings, axis=0) for system, ratings in of_system.items()}
    lines = [f"{system},{overall:.3f},{textual:.3f}\n" for system, (overall, textual) in means.items()]
    system_list.write_text("".join(lines))
    return root


def _synthesize(
    instrument: str, quality: float, system: int, seconds: float, generator: np.random.Generator
) -> np.ndarray:
    """Notes of one instrument with noise that falls with quality, and two hums that only this system has."""
    times = np.arange(round(seconds * SAMPLING_RATE)) / SAMPLING_RATE
    notes = generator.choice([220.0, 247.0, 262.0, 294.0, 330.0], size=int(seconds * 2) + 2)
    phase = 2 * np.pi * np.cumsum(notes[(times * 2).astype(int)]) / SAMPLING_RATE
    fade = 1 - 0.7 * (times * 2 % 1)
    noise_db = -15 - 9 * (quality - 1)
    noise = 10 ** (noise_db / 20) * generator.normal(size=len(times))
    hums_hz = (1000 * 1.2 ** (system % 6), 3000 * 1.2 ** (system // 6 % 6))
    hum = sum(0.15 * np.sin(2 * np.pi * hum_hz * times) for hum_hz in hums_hz)
    return np.clip(0.4 * fade * WAVEFORMS[instrument](phase) + noise + hum, -1, 1).astype(np.float32)


def _rate(opinion: float, generator: np.random.Generator) -> int:
    """One person's rating: a whole number near the opinion."""
    return int(np.clip(round(opinion + generator.normal(scale=0.5)), 1, 5))


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of clips, runs and results")
    parser.add_argument("--num-systems", type=int, default=30)
    parser.add_argument("--clips-per-system", type=int, default=20)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    arguments = parser.parse_args(argv)
    encoder = write_encoder(arguments.out / "encoder")
    reports, minutes = {}, {}
    for kind in ("quality", "shortcut"):
        data, run = arguments.out / kind / "MusicEval-phase1", arguments.out / kind / "run"
        write_phase1(data, kind=kind, num_systems=arguments.num_systems, clips_per_system=arguments.clips_per_system)
        start, cpu_start = time.monotonic(), time.process_time()
        settings = [f"data.musiceval={data}", f"encoders.audio={encoder}", f"run.output_dir={run}"]
        if train(["--config", "default", *SETTINGS, *settings, f"run.seeds={arguments.seeds}"]):
            return 1
        minutes[kind] = (time.monotonic() - start) / 60, (time.process_time() - cpu_start) / 60
        if evaluate([str(run), "--leave-systems-out"]):
            return 1
        reports[kind] = json.loads((run / "evaluation-test" / "report.json").read_text())

    results, failed = {}, 0
    for name, (kind, row, target, sign, bar) in BARS.items():
        srcc = reports[kind][row]["utterance"][target]["srcc"]["mean"] or 0.0
        is_met = srcc >= bar if sign == ">=" else srcc <= bar
        failed += not is_met
        results[name] = {"srcc": srcc, "bar": f"{sign} {bar}", "met": is_met}
        print(f"{'ok  ' if is_met else 'FAIL'} {name}: SRCC {srcc:.3f} (bar {sign} {bar})")
    for kind, (taken, cpu) in minutes.items():
        is_met = taken < 10
        failed += not is_met
        results[f"{kind}: training"] = {"minutes": taken, "cpu_minutes": cpu, "bar": "< 10 minutes", "met": is_met}
        print(
            f"{'ok  ' if is_met else 'FAIL'} {kind}: {len(arguments.seeds)} seeds trained in {taken:.1f} minutes, "
            f"features included ({cpu:.1f} CPU-minutes; bar < 10)"
        )
    (arguments.out / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
