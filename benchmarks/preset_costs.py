"""What training each preset costs on this machine: memory, time of a full and of a masked step, against the estimate.

    python -m benchmarks.preset_costs
    python -m benchmarks.preset_costs --presets base lora-base --steps 6 run.batch_size=1

Every preset runs in a process of its own: `train_qamdt.py` itself, as a user starts it, on random latents and text
states of the preset's shapes. `lora-base` is the published network with adapters of rank 16, whose weights are random.
Full and masked steps take turns (`loss.passes=alternate`), with exactly half of the patches hidden. Times are medians
over the steps of a kind without the first two; memory is the process's peak, or what PyTorch allocated on a GPU. The
estimate is that of `--dry-run`. Settings such as `run.batch_size=1` hold for every preset.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from tqdm import tqdm

from qamdt.latent_writing import write_index
from qamdt.manifest import Record
from qamdt.models.transformer_qamdt import QAMDTTransformer2DModel
from qamdt.quality import PUBLISHED_QUALITY_STATS
from qamdt.shards import find_entries, write_latent_shard, write_text_shard
from qamdt.training.config import load_config
from qamdt.training.launch import choose_precision
from qamdt.training.run_estimate import TEXT_TOKENS, describe_run


TRAINER = Path(__file__).resolve().parents[1] / "train_qamdt.py"
NUM_CLIPS = 64
NUM_WARMUP_STEPS = 2  # of each kind


def write_random_latents(folder: Path, model: dict) -> None:
    """Writes a folder of shards with noise in the shapes that a network takes."""
    frames, bins = model["sample_size"]
    shape = (model["in_channels"], frames, bins)
    records = [
        Record(id=f"{i}", path=f"{i}.wav", duration_in_s=1.0, captions=("noise",), quality_score=3.0)
        for i in range(NUM_CLIPS)
    ]
    means = [torch.randn(shape) for _ in records]
    texts = ["", *(f"{prefix}noise" for prefix in ("", "low quality, ", "medium quality, ", "high quality, "))]
    folder.mkdir(parents=True)
    write_latent_shard(folder, list(range(NUM_CLIPS)), means, [torch.full(shape, 0.1)] * NUM_CLIPS)
    states = [torch.randn(TEXT_TOKENS, model["cross_attention_dim"]) for _ in texts]
    write_text_shard(folder, list(range(len(texts))), states)
    places, text_places = find_entries(folder, "latents"), find_entries(folder, "text")
    write_index(
        folder,
        [(record, places[number]) for number, record in enumerate(records)],
        {text: text_places[number] for number, text in enumerate(texts)},
        lambda record, num_frames: {"quality": torch.full((num_frames,), 3.0)},
        {
            "vae_scaling_factor": 1.0,
            "scaling_factor": 1.0,
            "latent_frames_per_second": 12.5,
            "quality": PUBLISHED_QUALITY_STATS.to_dict(),
            "max_captions": None,
        },
    )


def run_settings(preset: str, folder: Path, overrides: list[str]) -> list[str]:
    """Prepares what a preset trains on and from, and returns the arguments of the trainer."""
    name = preset.removeprefix("lora-")
    config = load_config(name)
    write_random_latents(folder / "latents", config.model)
    settings = [
        "data.manifest=null",
        f"data.latents={folder / 'latents'}",
        f"data.crop_in_frames={config.model['sample_size'][0]}",
        "data.num_workers=0",
        f"run.output_dir={folder / 'run'}",
        "run.pipeline=null",
        "run.max_steps=100000",
        "run.log_steps=1",
        "run.checkpoint_minutes=100000",
        "loss.passes=alternate",
        "loss.min_mask_ratio=0.5",
        "loss.max_mask_ratio=0.5",
        *overrides,
    ]
    if preset != name:
        QAMDTTransformer2DModel(**config.model).save_pretrained(folder / "init" / "transformer")
        settings += ["lora.rank=16", f"run.init_from={folder / 'init'}"]
    return ["--config", name, *settings]


def train_until(settings: list[str], output_dir: Path, num_steps: int) -> list[dict]:
    """Runs the trainer until it has logged so many steps, and returns the lines that it logged."""
    with (output_dir.parent / "log").open("w") as log:
        trainer = subprocess.Popen([sys.executable, str(TRAINER), *settings], stdout=log, stderr=log)
    lines: list[str] = []
    with tqdm(total=num_steps, unit="step", desc=settings[1], leave=False) as progress:
        while len(lines) < num_steps:
            time.sleep(0.5)
            if trainer.poll() is not None:
                raise RuntimeError(f"the trainer ended early:\n{(output_dir.parent / 'log').read_text()}")
            path = output_dir / "loss.jsonl"
            lines = [line for line in path.read_text().splitlines() if line.endswith("}")] if path.is_file() else []
            progress.update(min(len(lines), num_steps) - progress.n)
    os.kill(trainer.pid, signal.SIGKILL)  # what it would save now is of no use
    trainer.wait()
    return [json.loads(line) for line in lines[:num_steps]]


def measure(preset: str, num_steps: int, overrides: list[str]) -> dict:
    """Trains a preset for a few steps and returns what they took."""
    with tempfile.TemporaryDirectory() as temporary:
        settings = run_settings(preset, Path(temporary), overrides)
        config, _ = choose_precision(load_config(settings[1], settings[2:]))
        estimate = describe_run(config)
        lines = train_until(settings, Path(temporary) / "run", num_steps)
    seconds = {"full": [], "masked": []}
    for line in lines[2 * NUM_WARMUP_STEPS :]:
        # Updates count from one in the file, and the first one is a full pass.
        seconds["masked" if line["step"] % 2 == 0 else "full"].append(config.run.batch_size / line["clips_per_s"])
    medians = {kind: statistics.median(values) for kind, values in seconds.items()}
    grid = [size // patch for size, patch in zip(config.model["sample_size"], config.model["patch_size"], strict=True)]
    return {
        "preset": preset,
        "batch_size": config.run.batch_size,
        "precision": config.run.mixed_precision,
        "optimizer": config.optim.optimizer,
        "tokens_per_crop": grid[0] * grid[1],
        "full_step_s": round(medians["full"], 3),
        "masked_step_s": round(medians["masked"], 3),
        "masked_to_full": round(medians["masked"] / medians["full"], 3),
        "tokens_per_s": round(config.run.batch_size * grid[0] * grid[1] / medians["full"]),
        "peak_memory_gib": max(line["peak_memory_gib"] for line in lines),
        "estimate": estimate.splitlines(),
    }


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", default=["tiny", "mini", "small", "base", "lora-base"])
    parser.add_argument("--steps", type=int, default=16, help="updates, at least 6 (default %(default)s)")
    parser.add_argument("--out", type=Path, help="JSON file for the numbers")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that replace those of the presets")
    arguments = parser.parse_args(argv)
    if arguments.steps < 2 * NUM_WARMUP_STEPS + 2:
        parser.error(f"--steps must be at least {2 * NUM_WARMUP_STEPS + 2}, got {arguments.steps}")
    results = []
    for preset in arguments.presets:
        results.append(measure(preset, arguments.steps, arguments.overrides))
        row = results[-1]
        print(
            f"{preset:<10} batch {row['batch_size']:>3} {row['precision']:<5} "
            f"full {row['full_step_s']:8.3f} s  masked {row['masked_step_s']:8.3f} s ({row['masked_to_full']:.2f} x)  "
            f"{row['tokens_per_s']:>7} tokens/s  peak {row['peak_memory_gib']:6.2f} GiB",
            flush=True,
        )
        print("\n".join(f"    {line}" for line in row["estimate"]), flush=True)
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(results, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
