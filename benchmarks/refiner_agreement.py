"""How far the refined captions of one corpus depend on who refined them: agreement, faults, cost.

    python data_prep/refine_captions.py --manifest corpus/manifest.jsonl --model A --base-url URL --out corpus/refined-a.jsonl
    python data_prep/refine_captions.py --manifest corpus/manifest.jsonl --model B --base-url URL --out corpus/refined-b.jsonl
    python -m benchmarks.refiner_agreement corpus/refined-a.jsonl corpus/refined-b.jsonl

takes refined manifests of the same clips, by several language models, settings or runs, and prints for each how many
captions contradict what is known of their clip (tempo, key and instruments, which rendered music has in its manifest),
how many fell back, and what it cost in tokens; and for each pair how alike their captions are: the facts that they
state, and the cosine of their sentence embeddings, beside that of captions of different clips.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path

import numpy as np

from data_prep.refine.fact_check import find_instruments, find_keys, find_tempi, names_instrument, plain
from data_prep.refine.spending import Prices, Usage, sum_usage
from pipelines.evaluation.intervals import Figure, mean_figure
from qamdt.files import read_json_lines, write_json
from qamdt.manifest import Record, read_manifest
from qamdt.music import parse_key
from whisq.sentence_encoder import sentence_embeddings


TEMPO_TOLERANCE_BPM = 1.0


@dataclass(frozen=True, kw_only=True)
class Refined:
    """The captions of one refiner.

    Args:
        name: What it is called.
        captions: Its caption of each clip.
        records: What is known of the clips.
        num_fallbacks: How many captions are not the language model's.
        usage: Tokens that it took.
    """

    name: str
    captions: dict[str, str]
    records: dict[str, Record]
    num_fallbacks: int
    usage: Usage


def read_refined(manifest: Path) -> Refined:
    """Reads a refined manifest, and from the folder of its name what the answers cost.

    Raises:
        ValueError: A clip has no refined caption.
    """
    records = {record.id: record for record in read_manifest(manifest)}
    if raw := [
        name for name, record in records.items() if "caption_source" not in record.extra or not record.captions
    ]:
        raise ValueError(
            f"{str(manifest)!r} must be a manifest that refine_captions wrote, and the clip {raw[0]!r} has no refined "
            "caption."
        )
    answers = manifest.with_suffix("") / "steps" / "fuse.jsonl"
    return Refined(
        name=manifest.stem,
        captions={name: record.captions[0] for name, record in records.items()},
        records=records,
        num_fallbacks=sum(record.extra.get("caption_source") == "fallback" for record in records.values()),
        usage=sum_usage(read_json_lines(answers)) if answers.is_file() else Usage(),
    )


def stated_facts(caption: str) -> set[str]:
    """The tempi, keys and instruments that a caption names."""
    keys = {f"{tonic} {mode}" for tonic, mode in find_keys(caption)}
    return keys | {f"{bpm:g} bpm" for bpm in find_tempi(caption)} | set(find_instruments(caption))


def find_faults(caption: str, record: Record) -> list[str]:
    """Lists which of tempo, key and instruments a caption states otherwise than they are known; unknown ones pass."""
    faults = []
    if record.tempo_bpm is not None:
        faults += ["tempo" for bpm in find_tempi(caption) if abs(bpm - record.tempo_bpm) > TEMPO_TOLERANCE_BPM]
    if record.key is not None:
        faults += ["key" for key in find_keys(caption) if key != parse_key(record.key)]
    if instruments := record.tags.get("instruments"):
        known = plain(
            " ; ".join([*instruments, *(str(record.tags.get(name) or "") for name in ("ensemble", "style"))])
        )
        faults += ["instrument" for name in find_instruments(caption) if not names_instrument(known, name)]
    return faults


def describe(refined: Refined, prices: Prices) -> dict[str, object]:
    """The figures of one refiner."""
    faults = {name: find_faults(caption, refined.records[name]) for name, caption in refined.captions.items()}
    kinds = ("tempo", "key", "instrument")
    return {
        "clips": len(faults),
        "with_faults": mean_figure([bool(found) for found in faults.values()]),
        **{f"wrong_{kind}": sum(kind in found for found in faults.values()) for kind in kinds},
        "fallbacks": refined.num_fallbacks,
        "words": float(np.mean([len(caption.split()) for caption in refined.captions.values()])),
        "usage": refined.usage,
        "cost": prices.cost(refined.usage),
    }


def compare(first: Refined, second: Refined) -> dict[str, Figure | float]:
    """How alike two refiners describe the clips that both have.

    Raises:
        ValueError: They have no clip in common.
    """
    names = [name for name in first.captions if name in second.captions]
    if not names:
        raise ValueError(f"{first.name!r} and {second.name!r} have no clip in common.")
    facts = [(stated_facts(first.captions[name]), stated_facts(second.captions[name])) for name in names]
    shares = [len(one & other) / len(one | other) if one | other else 1.0 for one, other in facts]
    embeddings = [
        sentence_embeddings([side.captions[name] for name in names]).double().numpy() for side in (first, second)
    ]
    cosines = embeddings[0] @ embeddings[1].T
    others = cosines[~np.eye(len(names), dtype=bool)]
    return {
        "same_facts": mean_figure(shares),
        "same_words": mean_figure([first.captions[name] == second.captions[name] for name in names]),
        "similarity": mean_figure(np.diag(cosines)),
        "similarity_of_other_clips": float(others.mean()) if len(others) else float("nan"),
    }


def make_report(refiners: Sequence[Refined], prices: Prices) -> dict[str, dict]:
    return {
        "refiners": {refined.name: describe(refined, prices) for refined in refiners},
        "pairs": {f"{a.name} and {b.name}": compare(a, b) for a, b in combinations(refiners, 2)},
    }


def format_report(report: dict[str, dict]) -> str:
    lines = [
        "| | clips | with faults | wrong tempo, key, instrument | fell back | words | tokens in, out | cost |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in report["refiners"].items():
        wrong = ", ".join(str(row[f"wrong_{kind}"]) for kind in ("tempo", "key", "instrument"))
        tokens = f"{row['usage'].input_tokens}, {row['usage'].output_tokens}"
        lines.append(
            f"| {name} | {row['clips']} | {_format(row['with_faults'])} | {wrong} | {row['fallbacks']} | {row['words']:.1f} "
            f"| {tokens} | {row['cost']:.4f} |"
        )
    lines += ["", "| | same facts | word for word | similarity | of other clips |", "|---|---|---|---|---|"]
    for name, row in report["pairs"].items():
        figures = " | ".join(_format(row[figure]) for figure in ("same_facts", "same_words", "similarity"))
        lines.append(f"| {name} | {figures} | {row['similarity_of_other_clips']:.2f} |")
    return "\n".join(lines)


def _format(figure: Figure) -> str:
    low, high = figure.interval or (figure.value, figure.value)
    return f"{figure.value:.2f} [{low:.2f}, {high:.2f}]"


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifests", nargs="+", type=Path, help="refined manifests, at least two of the same clips")
    parser.add_argument("--input-price", type=float, default=0.0, help="price of a million tokens of prompts")
    parser.add_argument("--output-price", type=float, default=0.0, help="price of a million tokens of answers")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    arguments = parser.parse_args(argv)
    try:
        refiners = [read_refined(manifest) for manifest in arguments.manifests]
        if len({refined.name for refined in refiners}) < max(2, len(refiners)):
            raise ValueError(f"name at least two refined manifests of different names, got {arguments.manifests}.")
        prices = Prices(input_price=arguments.input_price, output_price=arguments.output_price)
        report = make_report(refiners, prices)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if arguments.output is not None:
        write_json(arguments.output, json.loads(json.dumps(report, default=asdict)))
    print(format_report(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
