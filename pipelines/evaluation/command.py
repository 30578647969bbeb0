"""The command `qamdt evaluate`: its options, and what it does with them."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import yaml

from pipelines.evaluation.request import METRICS, EvaluationRequest
from pipelines.input_checks import check_count, check_number
from qamdt.files import read_text_lines
from qamdt.outputs import check_output


DEFAULT_NUM_PROMPTS = 20


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the command to those of `qamdt`."""
    parser = commands.add_parser(
        "evaluate",
        help="measure generated music: distances, prompts, control, memory",
        description="Measures generated clips, or a model, and writes a report as JSON and Markdown, with a picture.",
        epilog="The same command again measures only what is new or has changed. What cannot be measured is named in the "
        "report, and the exit status is then 1.",
    )
    parser.set_defaults(run=run)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--generated", type=Path, metavar="PLACE", help="folder or manifest of clips to measure")
    source.add_argument(
        "--model", help="folder or Hub id of a model that makes the clips; `embedded` for the embedded one"
    )
    parser.add_argument(
        "--prompts",
        type=Path,
        metavar="FILE",
        help="with --model, a prompt a line (prompts that name instrument, key and tempo); with --generated, a clip's "
        "name, a tab and its prompt a line, or the file given to `qamdt generate` (what lies beside the clips)",
    )
    parser.add_argument("--reference", type=Path, metavar="PLACE", help="folder or manifest of real music")
    parser.add_argument("--training", type=Path, metavar="PLACE", help="folder or manifest of the training music")
    for name in ("reference", "training"):
        parser.add_argument(
            f"--{name}-tags",
            nargs="+",
            default=(),
            metavar="TAG=VALUE",
            help=f"only clips of the {name} manifest with these tags, such as split=test degradation=null",
        )
    parser.add_argument(
        "--metrics",
        type=lambda text: tuple(text.split(",")),
        metavar="WHAT",
        help=f"some of {', '.join(METRICS)} with commas between (all that there are clips for)",
    )
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="JSON", help="report to write")
    parser.add_argument("--no-picture", dest="picture", action="store_false", help="leave the picture out")
    _add_model_options(parser)
    _add_measure_options(parser)


def _add_model_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("with --model")
    group.add_argument(
        "--num-prompts", type=int, metavar="N", help=f"prompts, without --prompts ({DEFAULT_NUM_PROMPTS})"
    )
    group.add_argument("--seconds", type=float, help="length of the clips (what the model was built for)")
    group.add_argument("--steps", type=int, help="denoising steps (12)")
    group.add_argument("--out-dir", type=Path, metavar="DIR", help="folder of the clips (beside the report)")


def _add_measure_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what measures")
    group.add_argument(
        "--embedder",
        default=EvaluationRequest.embedder,
        metavar="MODEL",
        help="CLAP by folder, Hub id or checkpoint, or FILE.py:FUNCTION of samples and rate (%(default)s)",
    )
    group.add_argument("--revision", help="version of an embedder on the Hub")
    group.add_argument(
        "--classifier", metavar="FILE.py:FUNCTION", help="logits for is and kl (texts and the embedder)"
    )
    group.add_argument(
        "--classes", type=Path, metavar="FILE", help="texts for is and kl, one a line (30 of instruments)"
    )
    group.add_argument("--scorer", metavar="MODEL", help="folder or Hub id of a WhisQ scorer (the embedded one)")
    group.add_argument("--ceiling", type=Path, metavar="MODEL", help="also send the reference through its autoencoder")
    group.add_argument("--max-clips", type=int, metavar="N", help="draw at most so many clips of each collection")
    group.add_argument(
        "--num-resamples", type=int, default=EvaluationRequest.num_resamples, metavar="N", help="%(default)s"
    )
    group.add_argument("--num-workers", type=int, default=0, metavar="N", help="processes that measure (%(default)s)")
    group.add_argument("--device", help='such as "cpu" or "cuda:1" (a GPU where there is one)')
    group.add_argument("--seed", type=int, default=0, help="seed of clips and of all that is drawn (%(default)s)")


def run(arguments: argparse.Namespace) -> None:
    """Measures and writes the report.

    Raises:
        argparse.ArgumentTypeError: Arguments make no sense.
        RuntimeError: Something was left out or could not be measured; the report, which names it, is written.
    """
    if arguments.output.suffix.lower() != ".json":
        raise argparse.ArgumentTypeError(f"-o must end in .json, got {str(arguments.output)!r}")
    try:
        request = read_request(arguments)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    from pipelines.evaluation.run import evaluate

    is_ours = arguments.output.with_suffix(".rows").exists()
    inputs = [arguments.prompts, arguments.classes, arguments.reference, arguments.training]
    for suffix in (".json", ".md", ".png"):
        check_output(arguments.output.with_suffix(suffix), inputs=inputs, is_ours=lambda path: is_ours)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    only = (lambda path: True) if arguments.model is None else _make_clips(arguments, request)
    evaluation = evaluate(request, arguments.output.with_suffix(".rows"), only=only)
    _write(arguments.output, evaluation, draws=arguments.picture)
    problems = len(evaluation.faults) + len(evaluation.not_measured if request.metrics else ())
    if problems:
        raise RuntimeError(f"{problems} things were left out; {arguments.output.with_suffix('.md')} names them.")


def read_request(arguments: argparse.Namespace) -> EvaluationRequest:
    """The request that the options make."""
    if arguments.model is None:
        for name in ("num_prompts", "seconds", "steps", "out_dir"):
            if getattr(arguments, name) is not None:
                raise ValueError(f"--{name.replace('_', '-')} goes with --model; --generated makes no clips.")
    elif arguments.num_prompts is not None:
        check_count("num_prompts", arguments.num_prompts)
        if arguments.prompts is not None:
            raise ValueError("--num-prompts goes without --prompts, which says how many there are.")
    if arguments.seconds is not None:
        check_number("seconds", arguments.seconds, is_open=True)
    if arguments.steps is not None:
        check_count("steps", arguments.steps)
    return EvaluationRequest(
        generated=arguments.generated or arguments.out_dir or arguments.output.with_suffix(".clips"),
        reference=arguments.reference,
        training=arguments.training,
        prompts=None if arguments.model is not None else arguments.prompts,
        reference_tags=_read_tags(arguments.reference_tags),
        training_tags=_read_tags(arguments.training_tags),
        metrics=arguments.metrics,
        embedder=arguments.embedder,
        revision=arguments.revision,
        classifier=arguments.classifier,
        classes=None if arguments.classes is None else _read_lines("--classes", arguments.classes),
        scorer=arguments.scorer,
        ceiling=arguments.ceiling,
        max_clips=arguments.max_clips,
        num_resamples=arguments.num_resamples,
        num_workers=arguments.num_workers,
        device=arguments.device,
        seed=arguments.seed,
    )


def _read_tags(pairs: list[str]) -> dict[str, object]:
    tags = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise ValueError(f"tags must read TAG=VALUE, got {pair!r}.")
        tags[name] = yaml.safe_load(value)
    return tags


def _read_lines(option: str, path: Path) -> tuple[str, ...]:
    if not path.is_file():
        raise ValueError(f"{option} must be a file, got {str(path)!r}, which does not exist.")
    return tuple(line.strip() for line in read_text_lines(path) if line.strip())


def _make_clips(arguments: argparse.Namespace, request: EvaluationRequest):
    """Makes the clips of the model, and returns which sound files of their folder they are."""
    from pipelines.evaluation.generation import control_prompts, make_clips, plan_clips
    from pipelines.generate import read_prompts
    from pipelines.request import GenerationRequest

    if arguments.prompts is None:
        prompts = [text for text, *_ in control_prompts(arguments.num_prompts or DEFAULT_NUM_PROMPTS)]
    elif arguments.prompts.is_file():
        prompts = [text for _, text in read_prompts(arguments.prompts)]
    else:
        raise argparse.ArgumentTypeError(f"--prompts must be a file, got {str(arguments.prompts)!r}")
    model = None if arguments.model == "embedded" else arguments.model
    base = GenerationRequest(
        prompt="", model=model, seconds=arguments.seconds, steps=arguments.steps, seed=arguments.seed
    )
    takes = plan_clips(base, prompts, request.generated, request.asks_for("quality", "curve"))
    make_clips(takes, device=arguments.device)
    made = {path for path, _ in takes}
    return lambda path: path in made


def _write(output: Path, evaluation, *, draws: bool) -> None:
    from pipelines.evaluation.plots import draw_report
    from pipelines.evaluation.report import format_report, to_json
    from qamdt.files import write_json, write_text

    write_json(output, to_json(evaluation))
    text = format_report(evaluation)
    picture = output.with_suffix(".png")
    try:
        if draws and draw_report(picture, evaluation):
            text += f"\n![]({picture.name})\n"
    except ImportError as error:
        print(f"no picture: {error}; pip install 'qamdt[evaluate]' brings what draws it", file=sys.stderr)
    write_text(output.with_suffix(".md"), text)
    print(text)
