"""Compares numbers of steps, guidance scales and guidance intervals: what each costs, and what the clips then do.

    python -m benchmarks.generation_settings --num-prompts 20 --output settings.jsonl

Every setting makes the same prompts from the same noise, prompt by prompt, so that a run that is stopped has treated all
settings alike; the same command goes on behind the lines of its output file. Beside each mean stands, in brackets, how
far it lies from the mean of the first setting in standard errors of the paired difference: below two in size is chance.
"""

import argparse
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from benchmarks.control_metrics import measure, write_prompts
from pipelines.evaluation.control import is_key, is_tempo
from pipelines.evaluation.wanted import Wanted
from qamdt.audio import SAMPLING_RATE
from whisq.clap import load_clap


MEASURES = ("cpu_s", "tempo", "key", "beat_contrast", "chords", "clap_similarity", "overall_quality", "noise_floor_db")


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How a clip is denoised; the names are those of a call of the pipeline."""

    num_inference_steps: int = 25
    guidance_scale: float = 3.5
    guidance_interval: tuple[float, float] = (0.0, 1.0)

    def __str__(self) -> str:
        first, last = self.guidance_interval
        return f"{self.num_inference_steps} steps, scale {self.guidance_scale:g} from {first:g} to {last:g}"


SETTINGS = (
    Setting(),
    *(Setting(num_inference_steps=steps) for steps in (6, 8, 10, 12)),
    *(Setting(num_inference_steps=12, guidance_scale=scale) for scale in (2.0, 5.0)),
    Setting(num_inference_steps=12, guidance_interval=(0.25, 1.0)),
    *(Setting(num_inference_steps=steps, guidance_interval=(0.0, 0.5)) for steps in (8, 10, 12)),
)


def measure_clip(pipe, clap, wanted: Wanted, setting: Setting, seconds: float) -> dict[str, float]:
    """Makes one clip and measures it; hits of tempo and key are 0 or 1."""
    started = time.process_time()
    generator = torch.Generator().manual_seed(int(wanted.pair))
    output = pipe(wanted.text, audio_length_in_s=seconds, generator=generator, **asdict(setting))
    cpu_s = time.process_time() - started
    measured = measure(output.audios[0], output.music[0] if output.music else None)
    similarity = clap.embed_audio([output.audios[0]], SAMPLING_RATE) @ clap.embed_text([wanted.text]).T
    chords = np.array(measured.get("chord_match", [np.nan] * 12))
    return {
        "cpu_s": cpu_s,
        "tempo": float(is_tempo(measured["tempo_bpm"], wanted.tempo_bpm, 1)),
        "key": float(is_key(measured["key"], wanted.key)),
        "beat_contrast": measured.get("beat_contrast", np.nan),
        "chords": float(chords[0] - chords[1:].mean()),
        "clap_similarity": float(similarity[0, 0]),
        "overall_quality": measured["overall_quality"],
        "noise_floor_db": measured["noise_floor_db"],
    }


def format_table(rows: list[dict]) -> str:
    """A line for each setting, over the prompts that it and the first setting have made."""
    values = {(row["setting"], row["prompt"]): row["measured"] for row in rows}
    first = str(SETTINGS[0])
    lines = [f"| setting | prompts | {' | '.join(MEASURES)} |", "|---" * (len(MEASURES) + 2) + "|"]
    for setting in dict.fromkeys(setting for setting, _ in values):
        prompts = [prompt for some, prompt in values if some == setting and (first, prompt) in values]
        cells = []
        for name in MEASURES:
            own, reference = (np.array([values[some, p][name] for p in prompts]) for some in (setting, first))
            error = np.nanstd(own - reference) / max(np.sqrt(len(prompts) - 1), 1)
            away = f" ({np.nanmean(own - reference) / error:+.1f})" if error > 0 else ""
            cells.append(f"{np.nanmean(own):.3g}{away}")
        lines.append(f"| {setting} | {len(prompts)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder or Hub id; the embedded model when left out")
    parser.add_argument("--num-prompts", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=10.0, help="length of each clip")
    parser.add_argument(
        "--only", nargs="+", choices=list(map(str, SETTINGS)), metavar="SETTING", help="of the settings"
    )
    parser.add_argument("--output", type=Path, required=True, help="JSON lines, one a clip, to go on with")
    arguments = parser.parse_args(argv)

    from pipelines.pipeline_qamdt import QAMDTPipeline

    pipe = QAMDTPipeline.from_pretrained(arguments.model)
    pipe.set_progress_bar_config(disable=True)
    clap = load_clap()
    source = {"model": arguments.model, "seconds": arguments.seconds}
    lines = arguments.output.read_text(encoding="utf-8").splitlines() if arguments.output.is_file() else []
    rows = [row for row in map(json.loads, lines) if row["source"] == source]
    done = {(row["setting"], row["prompt"]) for row in rows}
    prompts = [wanted for wanted in write_prompts(arguments.num_prompts) if wanted.quality == "high"]
    with arguments.output.open("a", encoding="utf-8") as file:
        for wanted in tqdm(prompts, desc="prompts"):
            for setting in SETTINGS:
                if (str(setting), wanted.text) in done or (arguments.only and str(setting) not in arguments.only):
                    continue
                measured = measure_clip(pipe, clap, wanted, setting, arguments.seconds)
                rows.append({"setting": str(setting), "prompt": wanted.text, "measured": measured, "source": source})
                print(json.dumps(rows[-1]), file=file, flush=True)
    print(format_table(rows))


if __name__ == "__main__":
    main()
