"""Trains variants of one run at equal budget, from one file of settings, and tables what each choice is worth.

    python -m data_prep.encode_latents --manifest corpus/labelled.jsonl --split train --out corpus/latents
    python -m data_prep.encode_latents --manifest corpus/labelled.jsonl --split test --out corpus/latents_test
    python -m benchmarks.ablation benchmarks/ablations/tiny.yaml

Every variant trains with every seed, and is then asked for the noise in clips that none was trained on: the same clips,
noise and times for all (`benchmarks.held_out_loss`). With `num_prompts` each also plays prompts at high and at low
quality, which WhisQ hears. Differences are taken clip by clip from the first variant of each group, with intervals of a
bootstrap over clips. The same command again goes on where it was; what has changed is done anew.

    output_dir/VARIANT-seed-S/     the runs, as `train_qamdt.py` writes them
    output_dir/results.jsonl       what was measured, under keys of settings and data
    output_dir/ablation.md         the tables
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.held_out_loss import VARIANTS as CONDITIONS
from benchmarks.held_out_loss import measure, read_batches
from pipelines.evaluation.generation import control_prompts
from pipelines.evaluation.intervals import Figure, mean_figure
from qamdt.files import write_text
from qamdt.keyed_rows import KeyedRows, file_identity, make_key, make_row
from qamdt.latent_folder import INDEX_NAME
from qamdt.models.transformer_qamdt import QAMDTTransformer2DModel
from qamdt.run_control import StopSignal
from qamdt.settings import load_settings
from qamdt.training.config import TrainConfig, load_config
from train_qamdt import train


BUDGET = ("max_steps", "max_minutes", "batch_size", "gradient_accumulation_steps")
CONTROL_STEPS = 25


@dataclass(frozen=True, kw_only=True)
class VariantSettings:
    """One run of the ablation.

    Args:
        name: Name of its row and of its folder.
        group: Title of its table; differences are taken from the first variant of the group.
        overrides: Settings that replace those of the base, such as `loss.passes=full`.
    """

    name: str
    group: str
    overrides: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class AblationSettings:
    """A whole ablation.

    Args:
        config: Preset or YAML file that all runs start from.
        overrides: Settings that replace those of the preset in all runs.
        held_out: Folder of encoded clips to measure on, which nothing trains on.
        output_dir: Folder of runs and tables.
        variants: The runs.
        seeds: Seeds that each of them trains with.
        repeats: How often each held-out clip is measured, with other noise.
        num_prompts: How many prompts each variant plays at high and at low quality; none when 0.
    """

    config: str
    held_out: str
    output_dir: str
    variants: list[VariantSettings]
    overrides: list[str] = field(default_factory=list)
    seeds: list[int] = field(default_factory=lambda: [0])
    repeats: int = 4
    num_prompts: int = 0

    def __post_init__(self):
        names = [variant.name for variant in self.variants]
        if len(names) < 2 or len({slug(name) for name in names}) < len(names):
            raise ValueError(f"`variants` must be at least two, each with a name of its own, got {names}.")
        if not self.seeds or self.repeats < 1 or self.num_prompts < 0:
            raise ValueError(
                f"`seeds` must be at least one, `repeats` at least 1 and `num_prompts` at least 0, got {self.seeds}, "
                f"{self.repeats} and {self.num_prompts}."
            )


def plan_runs(settings: AblationSettings) -> dict[tuple[str, int], TrainConfig]:
    """Returns the run of every variant and seed.

    Raises:
        ValueError: The runs do not have one budget.
    """
    runs = {}
    for variant in settings.variants:
        for seed in settings.seeds:
            folder = Path(settings.output_dir) / f"{slug(variant.name)}-seed-{seed}"
            own = [f"run.seed={seed}", f"run.output_dir={folder}"]
            runs[variant.name, seed] = load_config(settings.config, [*settings.overrides, *variant.overrides, *own])
    for name in BUDGET:
        values = {getattr(config.run, name) for config in runs.values()}
        if len(values) > 1:
            raise ValueError(f"all variants must have the same budget, and `run.{name}` is {sorted(values, key=str)}.")
    return runs


def slug(name: str) -> str:
    """A name that a folder can have."""
    return "".join(character if character.isalnum() or character in "+." else "-" for character in name.lower())


def run_key(config: TrainConfig, settings: AblationSettings) -> int:
    """Everything that the figures of a run depend on."""
    values = dataclasses.asdict(config)
    values["run"].pop("output_dir")
    places = [Path(folder) / INDEX_NAME for folder in (config.data.latents, settings.held_out)]
    for place in places:
        if not place.is_file():
            raise FileNotFoundError(
                f"there is no encoded music in {str(place.parent)!r}; run data_prep.encode_latents."
            )
    indexes = [file_identity(place) for place in places]
    return make_key(values, indexes, str(Path(settings.held_out).resolve()), settings.repeats, settings.num_prompts)


def measure_losses(config: TrainConfig, settings: AblationSettings) -> dict[str, list[float]]:
    """Returns the squared error of every held-out draw, with what was said of the clip and with other conditions."""
    export = Path(config.run.output_dir) / "export"
    state = json.loads((export / "training.json").read_text(encoding="utf-8"))
    batches = read_batches(
        settings.held_out,
        state["scaling_factor"],
        settings.repeats,
        clean_only=False,
        prefix_probability=float(config.data.prefix_probability > 0),
        crop_in_frames=config.data.crop_lengths[-1],
    )
    model = QAMDTTransformer2DModel.from_pretrained(export, subfolder="transformer").eval()
    return {name: values.tolist() for name, values in measure(model, batches, config.loss).items()}


def measure_control(config: TrainConfig, num_prompts: int) -> list[float]:
    """Plays prompts at high and at low quality from the same noise; returns by how much WhisQ hears the difference."""
    from pipelines.pipeline_qamdt import QAMDTPipeline
    from whisq.scorer import WhisQScorer

    pipe = QAMDTPipeline.from_pretrained(str(Path(config.run.output_dir) / "export"))
    pipe.set_progress_bar_config(disable=True)
    scorer = WhisQScorer.from_pretrained()
    differences = []
    for number, (text, *_) in enumerate(control_prompts(num_prompts)):
        audios = [
            pipe(
                text,
                quality=quality,
                num_inference_steps=CONTROL_STEPS,
                generator=torch.Generator().manual_seed(number),
            ).audios[0]
            for quality in ("high", "low")
        ]
        high, low = (score.overall_quality for score in scorer.score(audios, pipe.sampling_rate))
        if high is not None and low is not None:
            differences.append(high - low)
    return differences


def run_ablation(settings: AblationSettings, stop: StopSignal) -> dict[tuple[str, int], dict[str, Any]] | None:
    """Trains and measures whatever is missing; returns all measurements, or `None` when asked to stop."""
    runs = plan_runs(settings)
    keys = {name: run_key(config, settings) for name, config in runs.items()}
    with KeyedRows(Path(settings.output_dir), "results") as rows:
        for (variant, seed), config in runs.items():
            key = keys[variant, seed]
            if rows.status(key) is not None:
                continue
            print(f"{variant}, seed {seed}", flush=True)
            state = train(config, stop)
            if stop.is_requested:
                return None
            row = make_row(key, f"{variant}, seed {seed}") | {"steps": state["step"], "minutes": state["minutes"]}
            row["losses"] = measure_losses(config, settings)
            if settings.num_prompts:
                row["control"] = measure_control(config, settings.num_prompts)
            rows.append(row)
            rows.refresh()  # variants of several groups may be one run
        return {name: rows.read(key) for name, key in keys.items()}


def format_tables(settings: AblationSettings, results: dict[tuple[str, int], dict[str, Any]]) -> str:
    """Returns a table for each group of variants."""
    lines = []
    for group in dict.fromkeys(variant.group for variant in settings.variants):
        names = [variant.name for variant in settings.variants if variant.group == group]
        lines += [f"## {group}", "", *_format_group(settings, names, results), ""]
    return "\n".join(lines)


def _format_group(
    settings: AblationSettings, names: Sequence[str], results: dict[tuple[str, int], dict[str, Any]]
) -> Iterable[str]:
    heads = ["", "held-out loss", "less than the first", "another text adds", "quality turned round adds"]
    heads += ["high above low, WhisQ"] if settings.num_prompts else []
    yield f"| {' | '.join(heads)} |"
    yield "|---" * len(heads) + "|"
    losses = {name: _mean_over_seeds([results[name, seed] for seed in settings.seeds]) for name in names}
    first = losses[names[0]]["given"]
    for name in names:
        own = losses[name]
        cells = [name, _format(mean_figure(own["given"]), signed=False)]
        cells.append("" if name == names[0] else _format(mean_figure(first - own["given"])))
        cells += [_format(mean_figure(own[condition] - own["given"])) for condition in ("text", "quality")]
        if settings.num_prompts:
            heard = [value for seed in settings.seeds for value in results[name, seed]["control"]]
            cells.append(_format(mean_figure(heard)) if heard else "silent")
        yield f"| {' | '.join(cells)} |"


def _mean_over_seeds(rows: Sequence[dict[str, Any]]) -> dict[str, np.ndarray]:
    """The error of every held-out draw by the conditions, `(draws,)`."""
    return {name: np.mean([row["losses"][name] for row in rows], axis=0) for name in CONDITIONS}


def _format(figure: Figure, *, signed: bool = True) -> str:
    sign = "+" if signed else ""
    low, high = figure.interval or (figure.value, figure.value)
    return f"{figure.value:{sign}.4f} [{low:{sign}.4f}, {high:{sign}.4f}]"


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", type=Path, help="YAML file, such as benchmarks/ablations/tiny.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that replace those of the file")
    arguments = parser.parse_args(argv)
    try:
        settings = load_settings(AblationSettings, arguments.settings, arguments.overrides)
        with StopSignal() as stop:
            results = run_ablation(settings, stop)
    except (ValueError, OSError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if results is None:
        return 130
    text = format_tables(settings, results)
    write_text(Path(settings.output_dir) / "ablation.md", text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
