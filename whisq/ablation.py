"""Trains the variants of a run and tables them: what co-attention, optimal transport and fine-tuning are worth.

    accelerate launch -m whisq.ablation --config default data.musiceval=MusicEval-phase1 run.output_dir=runs/ablation

One row for each variant, and a grid over weight (lambda) and blur of the optimal transport. Every cell is a whole run with
all seeds; finished ones are kept, so the same command again resumes.

    output_dir/variants/NAME/       the runs, as `whisq train` writes them
    output_dir/ablation.md          the tables: mean ± sd over the seeds
    output_dir/ablation.json        the same for programs

The overall quality of a variant that changes only how audio and text meet differs by chance alone: no text reaches it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from qamdt.files import write_json, write_text
from qamdt.run_control import StopSignal
from qamdt.settings import override
from whisq.evaluation.reports import Summary, format_tables
from whisq.ratings import write_faults
from whisq.train import build_accelerator, report_faults, say, train
from whisq.training.config import WhisQConfig, load_config
from whisq.training.preparation import PreparedMusic, prepare


VARIANTS: dict[str, dict[str, Any]] = {
    "as configured": {},
    "no alignment loss": {"loss.alignment": "none"},
    "vanilla co-attention": {"model.coattention_type": "vanilla"},
    "cross-attention": {"model.coattention_type": "cross"},
    "Gromov-Wasserstein": {"loss.alignment": "gromov_wasserstein"},
    "contrastive": {"loss.alignment": "contrastive"},
    "fine-tuned encoders": {"encoders.finetune": "both"},
}
# Around the configured weight as the values 1e-6, 1e-5, 4e-5 and 1e-4 lie around the paper's 4e-5.
WEIGHT_FACTORS = (0.025, 0.25, 1.0, 2.5)
BLURS = (0.01, 0.05, 0.1)


def list_sweep(
    config: WhisQConfig, weights: list[float] | None, blurs: list[float] | None
) -> dict[str, dict[str, Any]]:
    """Returns the cells of the grid over weight and blur of the optimal transport.

    Args:
        config: Its alignment weight is the middle of the grid.
        weights: Weights to try; multiples of the configured one when `None`.
        blurs: Blurs to try; `BLURS` when `None`.
    """
    weights = weights or [float(f"{factor * config.loss.alignment_weight:.3g}") for factor in WEIGHT_FACTORS]
    return {
        f"weight {weight:g}, blur {blur:g}": {
            "loss.alignment": "sinkhorn",
            "loss.alignment_weight": weight,
            "loss.blur": blur,
        }
        for weight in weights
        for blur in blurs or BLURS
    }


def run_variants(
    config: WhisQConfig,
    variants: Mapping[str, Mapping[str, Any]],
    music: PreparedMusic,
    accelerator: Accelerator,
    stop: StopSignal,
    split: str,
) -> dict[str, Summary] | None:
    """Trains every variant and returns their figures, or `None` when training was asked to stop."""
    rows: dict[str, Summary] = {}
    for name, changes in variants.items():
        folder = Path(config.run.output_dir) / "variants" / slug(name)
        say(accelerator, f"{name} ({len(rows) + 1} of {len(variants)})")
        results = train(override(config, {**changes, "run.output_dir": str(folder)}), music, accelerator, stop)
        if results is None:
            return None
        rows[name] = results[split]
    return rows


def slug(name: str) -> str:
    """Returns a name that a folder can have."""
    return "".join(character if character.isalnum() or character == "." else "-" for character in name.lower())


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="default", help="YAML file or preset (%(default)s)")
    parser.add_argument("--split", choices=("dev", "test"), default="test", help="clips to measure on (%(default)s)")
    parser.add_argument("--only", choices=("variants", "sweep"), help="one of the two tables")
    parser.add_argument(
        "--weights", nargs="+", type=float, help="weights of the grid (multiples of the configured one)"
    )
    parser.add_argument("--blurs", nargs="+", type=float, help=f"blurs of the grid {BLURS}")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that replace those of the file")
    arguments = parser.parse_intermixed_args(argv)
    try:
        config = load_config(arguments.config, arguments.overrides)
        tables = {
            "variants": VARIANTS,
            "sweep": list_sweep(config, arguments.weights, arguments.blurs),
        }
        accelerator = build_accelerator(config)
        results: dict[str, dict[str, Summary]] = {}
        with StopSignal() as stop:
            music = prepare(config, accelerator)
            if not music.splits[arguments.split]:
                raise ValueError(f"there are no clips in the split {arguments.split!r}; choose another with --split.")
            for title, variants in tables.items():
                if arguments.only in (None, title):
                    rows = run_variants(config, variants, music, accelerator, stop, arguments.split)
                    if rows is None:
                        return 130
                    results[title] = rows
    except (ValueError, OSError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if not accelerator.is_main_process:
        return int(bool(music.faults))
    output_dir = Path(config.run.output_dir)
    text = "\n".join(f"## {title.capitalize()}\n\n{format_tables(rows)}" for title, rows in results.items())
    write_json(output_dir / "ablation.json", results)
    write_text(output_dir / "ablation.md", text)
    write_faults(output_dir / "faults.jsonl", music.faults)
    print(text)
    return report_faults(music, output_dir)


if __name__ == "__main__":
    sys.exit(main())
