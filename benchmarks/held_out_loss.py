"""The denoising loss of models on clips they never saw, and what the conditions take off it.

    python -m data_prep.encode_latents --manifest corpus/labelled.jsonl --split test --out corpus/latents_test
    python -m benchmarks.held_out_loss --latents corpus/latents_test --models embedded runs/mini/export

Every model meets the same clips with the same noise, at the same times, through the full network, four times:

    given       caption and quality of the clip
    text        the captions of the batch, moved on by one clip
    no text     the empty caption
    quality     levels of quality turned round (1 for 5, 2 for 4, …)

The first number judges models that predict the same thing; what the others add to it says how much of what a model knows
comes from the text and from the quality. Models are compared pairwise, clip by clip: the sign test's p-value stands
beside the share of clips on which the later model is better. `--clean-only` keeps the clips that no damage was done to,
for models whose levels come from different scorers.
"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

import torch
from scipy.stats import binomtest
from tqdm import tqdm

from qamdt.conditions import Conditions
from qamdt.embedded import default_model
from qamdt.models.transformer_qamdt import QAMDTTransformer2DModel
from qamdt.training.config import DataConfig, LossConfig
from qamdt.training.dataset import Batch, LatentDataset, collate
from qamdt.training.loss import NoiseSchedule, draw


BATCH_SIZE = 16
VARIANTS = ("given", "text", "no text", "quality")


def read_batches(
    folder: str,
    scaling_factor: float | None,
    repeats: int,
    clean_only: bool,
    *,
    prefix_probability: float = 0.0,
    crop_in_frames: int = DataConfig.crop_in_frames,
) -> list[tuple[Batch, torch.Tensor]]:
    """Returns the batches, each clip `repeats` times with other noise, and with each the states of the empty text."""
    config = DataConfig(
        latents=folder,
        crop_in_frames=crop_in_frames,
        scaling_factor=scaling_factor,
        text_dropout=0.0,
        quality_dropout=0.0,
        clip_quality_dropout=0.0,
        frame_quality_dropout=0.0,
        global_quality_dropout=0.0,
        prefix_probability=prefix_probability,
    )
    dataset = LatentDataset(config, seed=0)
    records = [dataset.latents.records[clip] for clip in dataset.clips]
    numbers = [
        number for number, record in enumerate(records) if not clean_only or record.tags.get("degradation") is None
    ]
    draws = [(epoch, number, 0) for epoch in range(repeats) for number in numbers]
    samples = [dataset[chosen] for chosen in draws]
    if not samples:
        raise ValueError(f"there are no clips to measure in {folder!r}.")
    empty = dataset.texts.read("")
    return [(collate(samples[i : i + BATCH_SIZE]), empty) for i in range(0, len(samples), BATCH_SIZE)]


def change(told: Conditions, empty: torch.Tensor, variant: str) -> Conditions:
    """Returns other conditions."""
    if variant == "text":
        return replace(told, texts=told.texts.roll(1, 0), mask=told.mask.roll(1, 0))
    if variant == "no text":
        mask = torch.ones(len(told), len(empty), dtype=torch.bool)
        return replace(told, texts=empty.float().expand(len(told), -1, -1), mask=mask)
    if variant == "quality":
        levels = {name: turn(level) for name, level in told.levels.items()}
        return replace(told, levels=levels, curves=told.curves | {"quality": turn(told.curves["quality"])})
    return told


def turn(level: torch.Tensor) -> torch.Tensor:
    """Returns levels turned round, unknown ones left alone."""
    return torch.where(level > 0, 6 - level, level)


@torch.inference_mode()
def measure(
    model: QAMDTTransformer2DModel, batches: list[tuple[Batch, torch.Tensor]], config: LossConfig
) -> dict[str, torch.Tensor]:
    """Returns the squared error of each clip, by variant of the conditions."""
    schedule = NoiseSchedule(config)
    errors: dict[str, list[torch.Tensor]] = {variant: [] for variant in VARIANTS}
    for batch, empty in tqdm(batches, unit="batch", leave=False):
        num_patches = 1  # nothing is hidden
        draws = draw(batch, num_patches, config, mask_seed=0)
        noisy_latents = schedule.add_noise(batch.latents, draws.noise, draws.timesteps)
        target = schedule.target(batch.latents, draws.noise, draws.timesteps)
        for variant in VARIANTS:
            told = change(batch.conditions, empty, variant).for_model(model.config)
            prediction = model(noisy_latents, draws.timesteps, **told).sample
            errors[variant].append((prediction - target).square().mean(dim=(1, 2, 3)))
    return {variant: torch.cat(values) for variant, values in errors.items()}


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latents", required=True, help="encoded clips that no model was trained on")
    parser.add_argument(
        "--models", nargs="+", default=["embedded"], help="folders of pipelines (default: the embedded)"
    )
    parser.add_argument("--scaling-factor", type=float, help="of the latents (default: the autoencoder's)")
    parser.add_argument("--repeats", type=int, default=4, help="draws of noise and time for each clip")
    parser.add_argument("--clean-only", action="store_true", help="leave out clips with a `degradation` tag")
    parser.add_argument("--out", type=Path, help="JSON file for the numbers")
    arguments = parser.parse_args(argv)
    batches = read_batches(arguments.latents, arguments.scaling_factor, arguments.repeats, arguments.clean_only)
    results, before, config = [], None, None
    for name in arguments.models:
        folder = default_model() if name == "embedded" else name
        model = QAMDTTransformer2DModel.from_pretrained(folder, subfolder="transformer").eval()
        scheduler = json.loads((Path(folder) / "scheduler" / "scheduler_config.json").read_text())
        other = LossConfig(prediction_type=scheduler["prediction_type"])
        if config not in (None, other):
            raise ValueError(
                f"{folder} predicts {other.prediction_type}, the models before it {config.prediction_type}."
            )
        config = other
        errors = measure(model, batches, config)
        row = {"model": name, **{variant: round(values.mean().item(), 5) for variant, values in errors.items()}}
        if before is not None:
            wins = int((errors["given"] < before).sum())
            row |= {"better_on": wins / len(before), "p_value": binomtest(wins, len(before)).pvalue}
        before = errors["given"]
        results.append(row)
        print(json.dumps(row), flush=True)
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(results, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
