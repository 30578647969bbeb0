"""Evaluates a training run of the scorer against people's ratings and against controls that need no ear.

    python -m whisq.evaluate runs/whisq
    python -m whisq.evaluate runs/whisq --leave-systems-out

Ratings of generated music can be guessed from the generator: a table of system means does well on a test set that shares
its systems with training. So the figures come with controls, and `--leave-systems-out` trains again with whole systems
held out, until each was tested once; it resumes when it is started again.

    evaluation-test/report.md         figures of clips and systems: mean ± sd over seeds, [95 % bootstrap interval]
    evaluation-test/report.json       the same for programs
    evaluation-test/predictions.csv   ratings and predictions of each clip
    evaluation-test/answer.txt        the predictions as the AudioMOS challenge takes them
    evaluation-test/scatter.png, calibration.png
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from accelerate import Accelerator

from qamdt.complete_weights import load_complete
from qamdt.files import write_json, write_text
from qamdt.outputs import check_output_folder
from qamdt.run_control import StopSignal
from qamdt.settings import override
from whisq.evaluation.controls import (
    exchange_prompts,
    look_up_systems,
    one_person_against_others,
    quality_as_alignment,
)
from whisq.evaluation.plots import plot_calibration, plot_scatter
from whisq.evaluation.reports import Summary, format_tables, measure_predictions, summarize
from whisq.modeling_whisq import WhisQModel
from whisq.ratings import Predictions, RatedClip, write_faults
from whisq.train import build_accelerator, report_faults, train
from whisq.training.config import WhisQConfig, load_config
from whisq.training.finetuning import load_finetuned
from whisq.training.predictions import predict
from whisq.training.preparation import PreparedMusic, prepare


NUM_PERSON_DRAWS = 5
REPORTS = (
    "report.json",
    "report.md",
    "predictions.csv",
    "answer.txt",
    "scatter.png",
    "calibration.png",
    "faults.jsonl",
)


def load_models(config: WhisQConfig) -> list[WhisQModel]:
    """Loads the model of each seed of a run."""
    folders = [Path(config.run.output_dir) / f"seed-{seed}" / "model" for seed in config.run.seeds]
    for folder in folders:
        if not folder.is_dir():
            raise FileNotFoundError(f"{str(folder)!r} does not exist; train the run to its end first.")
    return [load_complete(WhisQModel, folder) for folder in folders]


def predict_all(
    models: Sequence[WhisQModel], music: PreparedMusic, clips: Sequence[RatedClip], config: WhisQConfig
) -> list[Predictions]:
    """Returns what each model says about the clips."""
    return [
        predict(
            model,
            music.cached,
            clips,
            batch_size=config.run.batch_size,
            device=model.device,
            encoders=load_finetuned(model),
        )
        for model in models
    ]


def average(predictions: Sequence[Predictions]) -> Predictions:
    """Averages what several models say."""
    return Predictions(
        overall_quality=np.mean([some.overall_quality for some in predictions], axis=0),
        text_alignment=np.mean([some.text_alignment for some in predictions], axis=0),
    )


def evaluate(
    config: WhisQConfig, music: PreparedMusic, models: Sequence[WhisQModel], split: str
) -> tuple[dict[str, Summary], Predictions]:
    """Measures the models of a run and the controls on one split.

    Returns:
        Figures by the names of their rows, and the mean predictions of the models.
    """
    clips = music.splits[split]
    if not clips:
        raise ValueError(f"there are no clips in the split {split!r}; choose another one with --split.")
    num_resamples = config.run.num_resamples

    def measure(predictions: Predictions, rated: Sequence[RatedClip] = clips) -> Summary:
        measures = measure_predictions(
            rated, predictions, system_ratings=music.system_ratings, num_resamples=num_resamples
        )
        return summarize([measures])

    said = predict_all(models, music, clips, config)
    mean = average(said)
    seeds = [measure_predictions(clips, some, system_ratings=music.system_ratings) for some in said]
    rows = {f"WhisQ, {len(models)} seeds": summarize(seeds), "WhisQ, seeds averaged": measure(mean)}

    exchanged = average(predict_all(models, music, exchange_prompts(clips), config))
    nothing = np.full_like(mean.overall_quality, np.nan)
    rows["control: prompts exchanged"] = measure(
        Predictions(overall_quality=nothing, text_alignment=exchanged.text_alignment)
    )
    rows["control: predicted OMQ as TA"] = measure(quality_as_alignment(clips, mean.overall_quality))
    rows["control: rated OMQ as TA"] = measure(quality_as_alignment(clips, [clip.overall_quality for clip in clips]))
    rows["control: mean of the system"] = measure(look_up_systems(music.splits["train"], clips))
    if music.person_ratings:
        draws = [one_person_against_others(clips, music.person_ratings, seed) for seed in range(NUM_PERSON_DRAWS)]
        rows["one person against the others"] = summarize([measure_predictions(*draw) for draw in draws])
    return rows, mean


def evaluate_unheard_systems(
    config: WhisQConfig, music: PreparedMusic, accelerator: Accelerator, stop: StopSignal
) -> dict[str, Summary] | None:
    """Trains with systems left out, fold by fold, and measures the predictions of all folds together.

    Returns:
        Figures by the names of their rows; `None` when training was asked to stop.
    """
    clips: list[RatedClip] = []
    said: list[list[Predictions]] = []
    for fold in range(config.data.num_folds):
        folder = Path(config.run.output_dir) / "systems-left-out" / f"fold-{fold}"
        fold_config = override(config, {"data.split": "systems", "data.fold": fold, "run.output_dir": str(folder)})
        fold_music = music.leave_systems_out(config.data.num_folds, fold)
        if train(fold_config, fold_music, accelerator, stop) is None:
            return None
        test = fold_music.splits["test"]
        models = [model.to(accelerator.device) for model in load_models(fold_config)]
        said.append(predict_all(models, fold_music, test, config))
        clips += test
    of_seeds = [
        Predictions(
            overall_quality=np.concatenate([some.overall_quality for some in folds]),
            text_alignment=np.concatenate([some.text_alignment for some in folds]),
        )
        for folds in zip(*said, strict=True)
    ]
    num_seeds = len(of_seeds)
    mean = measure_predictions(clips, average(of_seeds), num_resamples=config.run.num_resamples)
    return {
        f"WhisQ, systems left out, {num_seeds} seeds": summarize([measure_predictions(clips, s) for s in of_seeds]),
        "WhisQ, systems left out, seeds averaged": summarize([mean]),
    }


def write_report(folder: Path, clips: Sequence[RatedClip], predictions: Predictions, rows: dict[str, Summary]) -> None:
    """Writes figures, predictions and pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "report.json", rows)
    write_text(folder / "report.md", format_tables(rows))
    names = ("overall_quality", "text_alignment")
    with (folder / "predictions.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "system", "prompt", *(f"rated_{n}" for n in names), *(f"predicted_{n}" for n in names)])
        for clip, *values in zip(clips, predictions.overall_quality, predictions.text_alignment, strict=True):
            ratings = (clip.overall_quality, clip.text_alignment)
            writer.writerow([clip.id, clip.system, clip.prompt, *ratings, *(f"{value:.4f}" for value in values)])
    answers = zip(clips, predictions.overall_quality, predictions.text_alignment, strict=True)
    write_text(folder / "answer.txt", "".join(f"{clip.id},{omq:.4f},{ta:.4f}\n" for clip, omq, ta in answers))

    pairs = {"overall quality": ([clip.overall_quality for clip in clips], predictions.overall_quality)}
    rated = [i for i, clip in enumerate(clips) if clip.text_alignment is not None]
    if rated:
        pairs["text alignment"] = ([clips[i].text_alignment for i in rated], predictions.text_alignment[rated])
    plot_scatter(folder / "scatter.png", pairs)
    plot_calibration(folder / "calibration.png", pairs)


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="whisq eval", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="folder that `whisq train` wrote")
    parser.add_argument("--split", choices=("dev", "test"), default="test", help="clips to test on (%(default)s)")
    parser.add_argument(
        "--leave-systems-out", action="store_true", help="train again, with whole systems held out in turn"
    )
    parser.add_argument("--out", type=Path, help="folder of the report (evaluation-SPLIT in the run)")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="settings that replace the run's, such as data.musiceval"
    )
    arguments = parser.parse_intermixed_args(argv)
    try:
        config = load_config(arguments.run / "config.yaml", arguments.overrides)
        config = override(config, {"run.output_dir": str(arguments.run)})  # the run may have been moved
        out = arguments.out or arguments.run / f"evaluation-{arguments.split}"
        accelerator = build_accelerator(config)
        check_output_folder(out, REPORTS, is_ours=(out / "report.json").is_file())
        with StopSignal() as stop:
            music = prepare(config, accelerator)
            models = [model.to(accelerator.device) for model in load_models(config)]
            rows, predictions = evaluate(config, music, models, arguments.split)
            if arguments.leave_systems_out:
                more = evaluate_unheard_systems(config, music, accelerator, stop)
                if more is None:
                    return 130
                rows |= more
        if accelerator.is_main_process:
            write_report(out, music.splits[arguments.split], predictions, rows)
            write_faults(out / "faults.jsonl", music.faults)
            print(f"{format_tables(rows)}\nWrote {out}.")
            return report_faults(music, out)
    except (ValueError, OSError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return int(bool(music.faults))


if __name__ == "__main__":
    sys.exit(main())
