"""Memory and time of the steps that know every clip of a corpus, without its audio: each in a process of its own.

    python -m benchmarks.manifest_scale /tmp/scale --rows 1000000 --steps write list stats label index train

`write` makes a manifest, a score file and latents of one frame, as large a corpus would have them; `list` is what `whisq
score` does before it scores; `stats` is `whisq stats`; `label` is `label_quality`; `index` is `encode_latents` when all
latents are there and texts are online; `train` is the start of a rank of a training, up to its first batches. `columns`
takes the place of the steps before `train` where these would take hours: it writes the files that `index` would leave.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from data_prep.label_quality import label_manifest
from data_prep.latent_encoders import describe_autoencoder
from data_prep.latent_update import EncodingOptions, encode_corpus
from qamdt import embedded
from qamdt.audio import write_audio
from qamdt.files import encode_json_line, write_json
from qamdt.keyed_rows import hash_text, make_key
from qamdt.latent_columns import CLIP, TEXT
from qamdt.latent_folder import FORMAT, INDEX_NAME
from qamdt.manifest import clip_identity, iterate_manifest
from qamdt.quality import QualityStats
from qamdt.shards import Place, list_shards, write_latent_shard, write_text_shard
from qamdt.training.config import DataConfig
from qamdt.training.dataset import LatentDataset
from qamdt.training.sampling import EpochSampler
from whisq.scoring.clips import list_clips, probe_durations
from whisq.scoring.collection import append_rows, row_key
from whisq.scoring.plan import plan_groups
from whisq.scoring.rows import open_keyed_rows
from whisq.scoring.stats import measure_scores


STEPS = ("write", "list", "stats", "label", "index", "columns", "train")
SETTINGS = {"scorer": "synthetic@0", "audio_encoder": "none"}


def write(folder: Path, num_rows: int, clips_per_shard: int) -> None:
    """Writes the corpus; all clips are spans of one file, which is never read."""
    folder.mkdir(parents=True, exist_ok=True)
    write_audio(folder / "audio.wav", torch.zeros(16_000), 16_000)
    rng = np.random.default_rng(0)
    with (folder / "manifest.jsonl").open("wb") as manifest:
        for number in range(num_rows):
            manifest.write(encode_json_line(make_record(number)))
    with (folder / "scores.jsonl").open("wb") as scores:
        for number in range(num_rows):
            scores.write(encode_json_line(make_score(number, folder, rng)))
    write_latents(folder, clips_per_shard)


def make_record(number: int) -> dict:
    """Returns what a line of a manifest of a lab holds."""
    return {
        "id": f"track-{number // 20:07d}/{number % 20:02d}",
        "path": "audio.wav",
        "start_in_s": 10.0 * number,
        "duration_in_s": 10.0,
        "captions": [
            f"a slow blues with an electric guitar, number {number}, recorded in a small room",
            f"take {number}: somebody plays the guitar with feeling, drums and bass come in later",
        ],
        "tags": {"genre": "blues", "tempo_bpm": 92, "key": "A minor", "split": "train"},
        "source": f"collection-{number % 7}",
        "license": "CC-BY-4.0",
    }


def make_score(number: int, folder: Path, rng: np.random.Generator) -> dict:
    """Returns a row of a score file with a curve of ten values."""
    curve = rng.normal(3.4, 0.6, size=10).clip(1, 5).round(3)
    record = make_record(number)
    return {
        "key": f"{make_key(record['id']):016x}",
        "id": record["id"],
        "path": str(folder / "audio.wav"),
        "start_in_s": record["start_in_s"],
        "source": record["source"],
        "prompt": record["captions"][0],
        "status": "ok",
        "error": None,
        "flags": [],
        "duration_in_s": 10.0,
        "sampling_rate": 16_000,
        "overall_quality": round(float(curve.mean()), 4),
        "text_alignment": 3.0,
        "frame_hop_in_s": 1.0,
        "frame_overall_quality": curve.tolist(),
        "scorer": SETTINGS["scorer"],
    }


def write_latents(folder: Path, clips_per_shard: int) -> None:
    """Writes a latent frame of each clip, under the key that the encoder would give it."""
    (folder / "latents").mkdir(exist_ok=True)
    made_by = describe_autoencoder(embedded.default_model_dir() / "vae", "float32")
    mean, std, keys, number = torch.ones(1, 1, 1), torch.ones(1, 1, 1), [], 0
    for record in iterate_manifest(folder / "manifest.jsonl"):
        keys.append(make_key("latents", clip_identity(folder / "manifest.jsonl", record), made_by))
        if len(keys) == clips_per_shard:
            write_latent_shard(folder / "latents", keys, [mean] * len(keys), [std] * len(keys), number=number)
            keys, number = [], number + 1
    if keys:
        write_latent_shard(folder / "latents", keys, [mean] * len(keys), [std] * len(keys), number=number)


def list_all(folder: Path) -> None:
    """Does what `whisq score` does until the first batch is read, as the second of four shards."""
    clips = probe_durations(list_clips([folder / "manifest.jsonl"])[0])
    keys = np.fromiter((row_key(clip, SETTINGS) for clip in clips), np.uint64, len(clips))
    plan_groups(clips, 160.0)
    with open_keyed_rows(folder / "none" / "scores.jsonl", (1, 4)) as rows:
        try:
            append_rows(rows, clips, keys, None, batch_seconds=160.0, shard=(1, 4))
        except AttributeError:  # there is no scorer
            pass


def write_columns(folder: Path, num_rows: int, clips_per_shard: int) -> None:
    """Writes a folder of latents as `index` leaves it: clips of a frame each, with their lines, columns and shards."""
    latents = folder / "latents"
    latents.mkdir(parents=True, exist_ok=True)
    values = make_record(0) | {"quality_score": 3.5, "quality_scorer": SETTINGS["scorer"]}
    line = encode_json_line({"record": values, "latents": vars(Place("latents-00000-000000000000.safetensors", 0, 1))})
    with (latents / "clips-000000000000.jsonl").open("wb") as file:
        for start in range(0, num_rows, 100_000):
            file.write(line * min(100_000, num_rows - start))
    numbers, columns = np.arange(num_rows), np.zeros(num_rows, CLIP)
    columns["offset"], columns["length"] = numbers * len(line), 1
    columns["shard"], columns["start"] = numbers // clips_per_shard, numbers % clips_per_shard
    columns["source"] = numbers % 7
    columns["quality_score"] = np.random.default_rng(0).normal(3.4, 0.6, size=num_rows).clip(1, 5)
    np.save(latents / "clips-000000000000.npy", columns)
    for number, start in enumerate(range(0, num_rows, clips_per_shard)):
        length = min(clips_per_shard, num_rows - start)
        frames, offsets = torch.ones(length, 1, 1, dtype=torch.float16), torch.arange(length + 1)
        tensors = {"mean": frames, "std": frames.clone(), "keys": offsets[:-1] + start, "offsets": offsets}
        save_file(tensors, latents / f"latents-{number:05d}-000000000000.safetensors")
        save_file({"quality": torch.ones(length)}, latents / f"curves-{number:05d}-000000000000.safetensors")
    write_text_shard(latents, [0], [torch.ones(2, 384)])
    text = np.zeros(1, TEXT)
    text["text"], text["length"] = hash_text(""), 2
    np.save(latents / "texts-000000000000.npy", text)
    (latents / "texts-000000000000.jsonl").write_text("")
    names = [path.name for path in list_shards(latents, "latents")]
    stats = QualityStats(
        mean=3.4,
        std=0.6,
        edges=(2.3, 3.1, 3.8, 4.4),
        prefix_edges=(3.1, 4.4),
        scorer="synthetic@0",
        num_clips=num_rows,
    )
    index = {"format": FORMAT, "num_clips": num_rows, "num_texts": 1, "vae_scaling_factor": 1.0, "scaling_factor": 1.0}
    index |= {
        "latent_frames_per_second": 12.5,
        "max_captions": None,
        "quality": stats.to_dict(),
        "curves": {"quality": []},
    }
    curves = {name: f"curves-{number:05d}-000000000000.safetensors" for number, name in enumerate(names)}
    index["files"] = {"clips": "clips-000000000000.jsonl", "texts": "texts-000000000000.jsonl", "curves": curves}
    index["columns"] = {"clips": "clips-000000000000.npy", "texts": "texts-000000000000.npy", "latents": names}
    index["columns"]["text"] = [path.name for path in list_shards(latents, "text")]
    write_json(latents / INDEX_NAME, index)


def train(folder: Path) -> None:
    """Starts the data side of a rank and takes eight batches."""
    config = DataConfig(
        latents=str(folder / "latents"),
        text="online",
        crop_in_frames=1,
        scaling_factor=1.0,
        level_weights=[1, 1, 2, 3, 4],
    )
    dataset = LatentDataset(config, seed=0)
    sampler = EpochSampler(
        dataset.buckets(), batch_size=32, seed=0, weights=dataset.weights(), shards=dataset.shards(), num_ranks=8
    )
    for _, draws in zip(range(8), sampler, strict=False):
        for draw in draws:
            dataset[draw]


def run_step(step: str, folder: Path, num_rows: int, clips_per_shard: int) -> None:
    """Runs one step and prints what it took, as a line of JSON."""
    start, cpu, before = time.monotonic(), time.process_time(), peak_in_gib()
    if step == "write":
        write(folder, num_rows, clips_per_shard)
    elif step == "list":
        list_all(folder)
    elif step == "stats":
        measure_scores([folder / "scores.jsonl"]).save(folder / "stats.json")
    elif step == "label":
        label_manifest(folder / "manifest.jsonl", [folder / "scores.jsonl"], folder / "labelled.jsonl")
    elif step == "index":
        encode_corpus(folder / "labelled.jsonl", folder / "latents", EncodingOptions(text="online"), device="cpu")
    elif step == "columns":
        write_columns(folder, num_rows, clips_per_shard)
    else:
        train(folder)
    figures = {
        "step": step,
        "rows": num_rows,
        "peak_gib": round(peak_in_gib(), 3),
        "before_gib": round(before, 3),
        "gib_per_million": round((peak_in_gib() - before) * 1e6 / num_rows, 3),
        "cpu_s": round(time.process_time() - cpu, 1),
        "wall_s": round(time.monotonic() - start, 1),
    }
    print(json.dumps(figures), flush=True)


def peak_in_gib() -> float:
    """Returns the most memory that this process ever had, pages of files that it shares with others included."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> int:
    """Runs the command and returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the corpus is written")
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--clips-per-shard", type=int, default=512)
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=[step for step in STEPS if step != "columns"])
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.here:
        run_step(arguments.steps[0], arguments.folder, arguments.rows, arguments.clips_per_shard)
        return 0
    for step in arguments.steps:
        command = [sys.executable, "-m", "benchmarks.manifest_scale", str(arguments.folder), "--here", "--steps", step]
        command += ["--rows", str(arguments.rows), "--clips-per-shard", str(arguments.clips_per_shard)]
        subprocess.run(command, check=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
