"""The command `qamdt listening-test`: writes the page of a test, or analyses the answers of one."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, is_dataclass
from pathlib import Path

from pipelines.input_checks import check_count
from pipelines.listening import KINDS


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the command to those of `qamdt`."""
    parser = commands.add_parser(
        "listening-test",
        help="a page that asks people how clips sound, and what their answers say",
        description="Writes a listening test as one web page that works offline, and beside it its key, which says whose "
        "sound is which; keep it from the listeners. With --analyse, reads the files that the page saved.",
    )
    parser.set_defaults(run=run)
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="page to write (.html), or analysis (.json)")
    parser.add_argument(
        "--systems",
        nargs="+",
        metavar="NAME=PLACE",
        help="folders or manifests to compare; clips are of one item where their prompts or file names are the same",
    )
    parser.add_argument("--reference", type=Path, metavar="PLACE", help="real music: hidden reference and anchors")
    parser.add_argument(
        "--kind",
        choices=KINDS,
        help="each sound by itself from 1 to 5, side by side from 0 to 100, or which is X (mos)",
    )
    parser.add_argument("--num-items", type=int, metavar="N", help="draw so many items (all)")
    parser.add_argument("--title", help="what the page is called (Listening test)")
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the draw and of the names of sounds (%(default)s)"
    )
    parser.add_argument("--analyse", nargs="+", type=Path, metavar="JSON", help="files that the page saved")
    parser.add_argument("--key", type=Path, metavar="JSON", help="with --analyse: the key of the test")


def run(arguments: argparse.Namespace) -> None:
    """Writes a page, or an analysis.

    Raises:
        argparse.ArgumentTypeError: Arguments make no sense.
        RuntimeError: Something was left out; the rest is written.
    """
    left_out = _analyse(arguments) if arguments.analyse is not None else _write_page(arguments)
    for fault in left_out:
        print(f"left out: {fault}", file=sys.stderr)
    if left_out:
        raise RuntimeError(f"{len(left_out)} things were left out, named above.")


def _write_page(arguments: argparse.Namespace) -> list[str]:
    if not arguments.systems or arguments.output is None or arguments.output.suffix.lower() != ".html":
        raise argparse.ArgumentTypeError(
            "name --systems NAME=PLACE and a page -o FILE.html, or --analyse FILES --key FILE"
        )
    if arguments.key is not None:
        raise argparse.ArgumentTypeError("--key goes with --analyse")
    if not arguments.output.absolute().parent.is_dir():
        raise argparse.ArgumentTypeError(f"the folder of -o must exist, got {str(arguments.output)!r}")
    try:
        check_count("seed", arguments.seed, minimum=0)
        if arguments.num_items is not None:
            check_count("num_items", arguments.num_items)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    systems = dict(_read_system(pair) for pair in arguments.systems)
    if len(systems) < len(arguments.systems):
        raise argparse.ArgumentTypeError(f"each system needs a name of its own, got {arguments.systems}")
    from pipelines.listening.page import build_test, format_page
    from pipelines.listening.stimuli import collect_stimuli
    from qamdt.files import read_json, write_json, write_text
    from qamdt.outputs import check_output, has_fields

    key_path = arguments.output.with_suffix(".key.json")
    is_ours = has_fields(key_path, ["id", "kind", "clips", "trials"])
    for path in (arguments.output, key_path):
        check_output(path, is_ours=lambda path: is_ours)
    stimuli, left_out = collect_stimuli(
        systems, arguments.reference, num_items=arguments.num_items, seed=arguments.seed
    )
    title = arguments.title or "Listening test"
    test, key = build_test(arguments.kind or "mos", stimuli, title=title, seed=arguments.seed)
    if key_path.exists() and read_json(key_path)["id"] != key["id"]:
        raise ValueError(
            f"{str(key_path)!r} is the key of another test, without which its answers mean nothing; choose another -o."
        )
    write_json(key_path, key)
    write_text(arguments.output, format_page(test))
    print(f"Wrote {arguments.output} with {len(test['trials'])} trials, and its key {key_path}.")
    return left_out


def _read_system(pair: str) -> tuple[str, Path]:
    name, equals, place = pair.partition("=")
    if not (equals and name and place):
        raise argparse.ArgumentTypeError(f"--systems must read NAME=PLACE, got {pair!r}")
    return name, Path(place)


def _analyse(arguments: argparse.Namespace) -> list[str]:
    given = [name for name in ("systems", "reference", "kind", "num_items", "title") if getattr(arguments, name)]
    if given:
        raise argparse.ArgumentTypeError(
            f"--{given[0].replace('_', '-')} is for writing a page, and goes without --analyse"
        )
    if arguments.key is None or not arguments.key.is_file():
        raise argparse.ArgumentTypeError(f"--key must be the key of the test, got {str(arguments.key)!r}")
    if arguments.output is not None and arguments.output.suffix.lower() != ".json":
        raise argparse.ArgumentTypeError(f"-o must end in .json with --analyse, got {str(arguments.output)!r}")
    from pipelines.listening.analysis import analyse, format_analysis, read_answers
    from qamdt.files import read_json, write_json
    from qamdt.outputs import check_output, has_fields

    key = read_json(arguments.key)
    if not isinstance(key, dict) or not {"id", "kind", "clips", "trials"} <= key.keys():
        raise ValueError(f"{str(arguments.key)!r} is no key of a listening test.")
    answers, faults = read_answers(arguments.analyse, key)
    report = analyse(answers, key, seed=arguments.seed)
    if arguments.output is not None:
        values = json.loads(json.dumps(report, default=_as_dict))
        inputs = [arguments.key, *arguments.analyse]
        check_output(arguments.output, inputs=inputs, is_ours=lambda path: has_fields(path, values.keys()))
        write_json(arguments.output, values)
    print(format_analysis(report))
    return faults


def _as_dict(value: object) -> dict:
    if not is_dataclass(value):
        raise TypeError(f"no JSON for {value!r}")
    return asdict(value)
