"""Whether restoring brings recordings nearer to what they were before they were damaged.

    python -m benchmarks.restoration data/corpus/manifest.jsonl --split test --output restoration.jsonl

Degraded clips are restored whose undamaged twins are in the same manifest, and both are compared with the twin by the
full-reference measure of `data_prep/degradation_score.py` (5 is no audible difference, 1 is ruin), and by WhisQ, which
hears the recording alone. Beside them stands what plain re-denoising at high quality makes of it, and what the
autoencoder alone does. The same command goes on behind the lines of its output.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from data_prep.degradation_score import degradation_mos
from pipelines.pipeline_audio_to_audio import QAMDTAudioToAudioPipeline
from pipelines.pipeline_qamdt import QAMDTPipeline
from pipelines.recordings import level_recordings
from qamdt.audio import read_audio
from qamdt.manifest import Record, read_manifest, resolve_clip_path


WAYS = ("as it was", "autoencoder", "re-denoised", "restored")


def find_pairs(manifest: Path, split: str | None, below: float) -> list[tuple[Record, Record]]:
    """Degraded clips that score less than `below`, each with its undamaged twin."""
    records = [record for record in read_manifest(manifest) if split is None or record.tags["split"] == split]
    clean = {record.tags["piece_id"]: record for record in records if not record.tags["degradation"]}
    return [
        (record, clean[record.tags["piece_id"]])
        for record in records
        if record.tags["degradation"] and record.tags["piece_id"] in clean and record.quality_score < below
    ]


def measure_pair(
    pipe: QAMDTPipeline, damaged: torch.Tensor, original: np.ndarray, num_steps: int
) -> dict[str, tuple[float, float]]:
    """For each way the likeness to the original, and WhisQ's score."""
    rate = pipe.sampling_rate
    restored = pipe.restore(damaged, sampling_rate=rate, num_inference_steps=num_steps)
    levelled, gain = level_recordings(damaged[None])
    with torch.no_grad():
        latents = pipe.encode(levelled, pipe.num_latent_frames(len(damaged) / rate))
        decoded = (pipe.decode(latents) * gain)[0, : len(damaged)]
    denoised = QAMDTAudioToAudioPipeline.from_pipe(pipe)(
        "",
        audio=damaged,
        sampling_rate=rate,
        strength=max(restored.strength, 1 / num_steps),
        num_inference_steps=num_steps,
        generator=torch.Generator().manual_seed(0),
    ).audios[0]
    sounds = dict(zip(WAYS, (damaged.numpy(), decoded.numpy(), denoised, restored.audio), strict=True))
    return {
        way: (
            degradation_mos(original, np.asarray(sound, np.float32), rate)[0],
            pipe.scorer.score(sound, rate)[0].overall_quality,
        )
        for way, sound in sounds.items()
    }


def format_table(rows: list[dict]) -> str:
    """Means for each kind of damage, and how many came nearer."""
    lines = [
        f"| damage | clips | {' | '.join(f'{way}: likeness, WhisQ' for way in WAYS)} | nearer |",
        "|---" * (len(WAYS) + 3) + "|",
    ]
    kinds = sorted({row["kind"] for row in rows})
    for kind in (*kinds, "all") if len(kinds) > 1 else kinds:
        some = [row["measured"] for row in rows if kind in (row["kind"], "all")]
        cells = [
            f"{np.mean([measured[way][0] for measured in some]):.2f}, "
            f"{np.mean([measured[way][1] for measured in some]):.2f}"
            for way in WAYS
        ]
        nearer = sum(measured["restored"][0] > measured["as it was"][0] for measured in some)
        lines.append(f"| {kind} | {len(some)} | {' | '.join(cells)} | {nearer} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=Path, help="a corpus with degraded clips and their originals")
    parser.add_argument("--split", help="only clips whose tag `split` has this value")
    parser.add_argument("--below", type=float, default=3.8, help="only clips of a lower quality score (%(default)s)")
    parser.add_argument("--kinds", nargs="+", help="only these kinds of damage")
    parser.add_argument("--seconds", type=float, default=5.0, help="how much of each clip (%(default)s)")
    parser.add_argument("--steps", type=int, default=12, help="denoising steps of the whole schedule (%(default)s)")
    parser.add_argument("--model", help="folder or Hub id; the embedded model when left out")
    parser.add_argument("--output", type=Path, required=True, help="JSON lines, one a clip, to go on with")
    arguments = parser.parse_args(argv)

    pipe = QAMDTPipeline.from_pretrained(arguments.model)
    pipe.set_progress_bar_config(disable=True)
    settings = {"model": arguments.model, "seconds": arguments.seconds, "steps": arguments.steps}
    lines = arguments.output.read_text(encoding="utf-8").splitlines() if arguments.output.is_file() else []
    rows = [row for row in map(json.loads, lines) if row["settings"] == settings]
    pairs = find_pairs(arguments.manifest, arguments.split, arguments.below)
    pairs = [pair for pair in pairs if not arguments.kinds or pair[0].tags["degradation"]["kind"] in arguments.kinds]
    done = {row["id"] for row in rows}
    with arguments.output.open("a", encoding="utf-8") as file:
        for record, twin in tqdm([pair for pair in pairs if pair[0].id not in done], desc="clips"):
            damaged, original = (
                read_audio(resolve_clip_path(arguments.manifest, clip), duration_in_s=arguments.seconds)
                for clip in (record, twin)
            )
            length = min(len(damaged), len(original))
            measured = measure_pair(pipe, damaged[:length], original[:length].numpy(), arguments.steps)
            kind = record.tags["degradation"]["kind"]
            rows.append({"id": record.id, "kind": kind, "measured": measured, "settings": settings})
            print(json.dumps(rows[-1]), file=file, flush=True)
    print(format_table(rows))


if __name__ == "__main__":
    main()
