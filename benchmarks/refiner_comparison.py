"""Refines one corpus by several language models, each told its task in several wordings, and compares what came of it.

    python -m benchmarks.refiner_comparison corpus/manifest.jsonl \
        --models small=Qwen3-0.6B@http://localhost:8000/v1 large=Qwen3-8B@http://localhost:8001/v1 \
        --tasks short.txt strict.txt --output refiners.json -- --min-similarity 0.2 --concurrency 4

A model is a name for the tables, the name by which its server knows it (for a local server that is often the path of
its weights), and the address. Every model is told the task as it ships and, with `--tasks`, as each file words it. What
stands behind `--` goes to `data_prep/refine_captions.py`. The refined manifests lie beside the manifest, as
`refined-MODEL-TASK.jsonl`; audio is heard once for all of them, and the same command again pays for nothing twice.

The tables are those of `benchmarks.refiner_agreement`, and beside them how alike captions are where only the model, and
where only the wording differs.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path

import numpy as np

from benchmarks.refiner_agreement import Refined, compare, describe, format_report, read_refined
from data_prep.refine.spending import Prices
from data_prep.refine_captions import main as refine_captions
from qamdt.files import read_text_lines, write_json


SHIPPED_TASK = "shipped"
STEPS_BEFORE_ASKING = ("generate", "suggest", "align")
FIGURES = ("same_facts", "same_words", "similarity")


@dataclass(frozen=True, kw_only=True)
class Refiner:
    """A language model that is told its task in one wording.

    Args:
        name: What the tables call the model.
        model: Name by which its server knows it.
        base_url: Address of an OpenAI-compatible API.
        task: File of the wording; the one that ships when `None`.
    """

    name: str
    model: str
    base_url: str
    task: Path | None = None

    @property
    def task_name(self) -> str:
        return SHIPPED_TASK if self.task is None else self.task.stem


def read_model(text: str) -> Refiner:
    """Reads "name=model@address"."""
    name, equals, place = text.partition("=")
    model, at, base_url = place.rpartition("@")
    if not (equals and at and model and base_url and name.replace("-", "").replace(".", "").isalnum()):
        raise argparse.ArgumentTypeError(
            f"must be NAME=MODEL@ADDRESS, as in small=Qwen3-0.6B@http://localhost:8000/v1, got {text!r}"
        )
    return Refiner(name=name, model=model, base_url=base_url)


def plan_refiners(models: Sequence[Refiner], tasks: Sequence[Path]) -> list[Refiner]:
    """Returns every model with every wording.

    Raises:
        ValueError: There is nothing to compare, two of them have one name, or a wording says nothing.
    """
    for task in tasks:
        if not "".join(read_text_lines(task)).strip():
            raise ValueError(f"`--tasks` must be texts that say what to do, and {str(task)!r} is empty.")
    refiners = [
        Refiner(name=model.name, model=model.model, base_url=model.base_url, task=task)
        for model in models
        for task in (None, *tasks)
    ]
    names = [(refiner.name, refiner.task_name) for refiner in refiners]
    if len(names) < 2 or len(set(names)) < len(names):
        raise ValueError(f"name at least two `--models` or a `--tasks`, each with a name of its own, got {names}.")
    return refiners


def refine(manifest: Path, refiners: Sequence[Refiner], options: Sequence[str]) -> list[Path]:
    """Refines the corpus by each of them and returns the refined manifests.

    Raises:
        RuntimeError: One of them could not go on.
    """
    outputs: list[Path] = []
    for refiner in refiners:
        out = manifest.with_name(f"refined-{refiner.name}-{refiner.task_name}.jsonl")
        if outputs:
            _copy_steps(outputs[0], out)
        arguments = ["--manifest", str(manifest), "--out", str(out), *options]
        arguments += ["--model", refiner.model, "--base-url", refiner.base_url]
        arguments += [] if refiner.task is None else ["--task", str(refiner.task)]
        status = refine_captions(arguments)
        if status not in (0, 1):  # 1: clips failed, are listed, and are not in the manifest
            raise RuntimeError(f"{refiner.name} with the task {refiner.task_name!r} stopped; see above.")
        outputs.append(out)
    return outputs


def _copy_steps(first: Path, out: Path) -> None:
    """Gives a run what another found before it asked; rows have keys, so that what does not fit is made again."""
    for step in STEPS_BEFORE_ASKING:
        source, target = (path.with_suffix("") / "steps" / f"{step}.jsonl" for path in (first, out))
        if source.is_file() and not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)


def average_pairs(
    refiners: Sequence[Refiner], pairs: dict[tuple[int, int], dict]
) -> dict[str, dict[str, float | int]]:
    """The mean figures of the pairs in which only the model, and of those in which only the wording differs."""
    kinds = {
        "another model": [pair for pair in pairs if refiners[pair[0]].task_name == refiners[pair[1]].task_name],
        "another wording": [pair for pair in pairs if refiners[pair[0]].name == refiners[pair[1]].name],
    }
    return {
        kind: {"pairs": len(chosen)}
        | {figure: float(np.mean([pairs[pair][figure].value for pair in chosen])) for figure in FIGURES}
        for kind, chosen in kinds.items()
        if chosen
    }


def make_report(refiners: Sequence[Refiner], refined: Sequence[Refined], prices: Prices) -> dict[str, dict]:
    """The figures of each refiner, of each pair, and of what differs."""
    pairs = {
        (first, second): compare(refined[first], refined[second])
        for first, second in combinations(range(len(refined)), 2)
    }
    return {
        "refiners": {each.name: describe(each, prices) for each in refined},
        "pairs": {f"{refined[a].name} and {refined[b].name}": row for (a, b), row in pairs.items()},
        "differs": average_pairs(refiners, pairs),
    }


def format_differences(rows: dict[str, dict[str, float | int]]) -> str:
    lines = ["| what differs | pairs | same facts | word for word | similarity |", "|---|---|---|---|---|"]
    for kind, row in rows.items():
        lines.append(f"| {kind} | {row['pairs']} | {' | '.join(f'{row[figure]:.2f}' for figure in FIGURES)} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    argv = sys.argv[1:] if argv is None else argv
    own, options = (argv[: argv.index("--")], argv[argv.index("--") + 1 :]) if "--" in argv else (argv, [])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=Path, help="manifest of the corpus")
    parser.add_argument("--models", nargs="+", type=read_model, required=True, metavar="NAME=MODEL@ADDRESS")
    parser.add_argument("--tasks", nargs="*", type=Path, default=[], metavar="FILE", help="other wordings of the task")
    parser.add_argument("--input-price", type=float, default=0.0, help="price of a million tokens of prompts")
    parser.add_argument("--output-price", type=float, default=0.0, help="price of a million tokens of answers")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    arguments = parser.parse_args(own)
    try:
        refiners = plan_refiners(arguments.models, arguments.tasks)
        refined = [read_refined(path) for path in refine(arguments.manifest, refiners, options)]
        prices = Prices(input_price=arguments.input_price, output_price=arguments.output_price)
        report = make_report(refiners, refined, prices)
    except (ValueError, OSError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if arguments.output is not None:
        write_json(arguments.output, json.loads(json.dumps(report, default=asdict)))
    print(f"{format_report(report)}\n\n{format_differences(report['differs'])}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
