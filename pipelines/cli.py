"""The `qamdt` command: `generate` music, show `info` about a model, `convert` the published checkpoint.

Exit status: 0 when done, 1 when something failed, 2 when the arguments make no sense, 130 when interrupted.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from qamdt import __version__
from qamdt.quality_words import QUALITY_WORDS, list_words


# Only what parsing needs is imported above: torch and diffusers take seconds, and `--help` should not.
SAMPLER_NAMES = ("dpm++", "unipc", "euler", "euler-ancestral", "ddim", "paper")
CRITERIA = ("quality", "alignment", "clap")
AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status."""
    arguments = build_parser().parse_args(argv)
    try:
        arguments.run(arguments)
    except argparse.ArgumentTypeError as error:
        return _report(arguments.command, error, status=2)
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        return _report(arguments.command, error, status=1)
    except KeyboardInterrupt:
        return _report(arguments.command, "interrupted", status=130)
    return 0


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(prog="qamdt", description="Music from text, at the quality you ask for.")
    parser.add_argument("--version", action="version", version=f"qamdt {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_generate(commands)
    _add_info(commands)
    _add_convert(commands)
    return parser


def _add_generate(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "generate",
        help="make music from a prompt, or from a file of prompts",
        description="Makes music from text. Beside each sound file goes a JSON file with how it was made.",
        epilog="A file of prompts is done prompt by prompt; the same command again does only what is missing.",
    )
    parser.set_defaults(run=_generate)
    parser.add_argument("prompt", nargs="?", help='what to play, such as "calm piano ballad, slow"')
    parser.add_argument("-o", "--output", type=Path, help="sound file to write: wav, flac, ogg or mp3 (music.wav)")
    parser.add_argument("--prompts", type=Path, metavar="FILE", help="text file with one prompt per line")
    parser.add_argument("--out-dir", type=Path, metavar="DIR", help="folder for the sound files of --prompts")
    parser.add_argument(
        "--quality",
        type=parse_quality,
        default="high",
        help=f"{list_words(quote='')}, unknown, a score from 1 to 5, or a curve: scores spread over the clip such as "
        "2,4.5 or second:score pairs such as 0:2,5:4.5 (%(default)s)",
    )
    parser.add_argument("--seconds", type=_positive_number, help="length (what the model was built for)")
    parser.add_argument("--seed", type=_count_from_zero, default=0, help="same seed, same music (%(default)s)")
    parser.add_argument("--num", type=_count_from_one, default=1, help="takes of each prompt, seeds counting up (1)")
    parser.add_argument("--best-of", type=_count_from_one, default=1, metavar="N", help="make N and keep the best (1)")
    parser.add_argument(
        "--best-by",
        type=parse_criteria,
        metavar="WHAT",
        help="what is best: quality (how good it sounds), alignment, clap (how well it follows the prompt), or several "
        "with commas between (quality,clap; clap unless --quality is high)",
    )
    parser.add_argument("--scorer", metavar="MODEL", help="folder or Hub id of a WhisQ scorer (the embedded one)")
    parser.add_argument("--negative-prompt", default="", metavar="TEXT", help="what to move away from")
    parser.add_argument("--steps", type=_count_from_one, help="denoising steps (25; 200 for --sampler paper)")
    parser.add_argument(
        "--guidance", type=_number_from_zero, default=3.5, help="guidance scale; 1 is off (%(default)s)"
    )
    parser.add_argument("--sampler", choices=SAMPLER_NAMES, help="how to denoise (the model's own scheduler)")
    parser.add_argument("--spectrogram", type=Path, metavar="PNG", help="also draw what was made")
    parser.add_argument("--model", help="folder or Hub id (QAMDT_MODEL, or the embedded model)")
    parser.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16"),
        default="auto",
        help="precision of the transformer; auto is bfloat16 where the processor has instructions for it (%(default)s)",
    )
    parser.add_argument("--device", help='such as "cpu" or "cuda:1" (a GPU where there is one)')


def _add_info(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("info", help="show what a model is made of", description="Shows facts about a model.")
    parser.set_defaults(run=_info)
    parser.add_argument("--model", help="folder (QAMDT_MODEL, or the embedded model)")


def _add_convert(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "convert",
        help="turn the published QA-MDT checkpoint into a model folder",
        description="Turns a published Lightning checkpoint into a folder for --model.",
    )
    parser.set_defaults(run=_convert)
    parser.add_argument("checkpoint", type=Path, metavar="CKPT")
    parser.add_argument("output_dir", type=Path, metavar="OUT_DIR", help="folder to write; must not exist or be empty")
    parser.add_argument("--config", type=Path, metavar="YAML", help="the checkpoint's own configuration file")
    parser.add_argument("--no-ema", action="store_true", help="take the last weights, not their moving average")
    parser.add_argument(
        "--text-encoder",
        default="google/flan-t5-large",
        metavar="MODEL",
        help="folder or Hub id of the tokenizer, and of the encoder if the checkpoint has none (%(default)s)",
    )
    parser.add_argument(
        "--allow-pickle",
        action="store_true",
        help="let the checkpoint run code while it is read; only for files from people you trust",
    )


def _generate(arguments: argparse.Namespace) -> None:
    _check_generate(arguments)
    from pipelines.generate import generate

    generate(arguments)


def _info(arguments: argparse.Namespace) -> None:
    from pipelines.model_info import describe_model
    from qamdt.embedded import default_model

    print(describe_model(Path(arguments.model or default_model())))


def _convert(arguments: argparse.Namespace) -> None:
    if not arguments.checkpoint.is_file():
        raise argparse.ArgumentTypeError(
            f"CKPT must be a file, got {str(arguments.checkpoint)!r}, which does not exist."
        )
    from qamdt.convert import convert_checkpoint, read_unet_params

    folder = convert_checkpoint(
        arguments.checkpoint,
        arguments.output_dir,
        unet_params=None if arguments.config is None else read_unet_params(arguments.config),
        use_ema=not arguments.no_ema,
        text_encoder=arguments.text_encoder,
        allow_pickle=arguments.allow_pickle,
    )
    print(f'Wrote {folder}. Try: qamdt generate "a prompt" --model {folder}')


def _check_generate(arguments: argparse.Namespace) -> None:
    """Refuses combinations of arguments that make no sense, before anything slow is imported."""
    if (arguments.prompt is None) == (arguments.prompts is None):
        raise argparse.ArgumentTypeError("pass either a prompt or --prompts FILE")
    if arguments.prompts is None:
        if arguments.out_dir is not None:
            raise argparse.ArgumentTypeError("--out-dir goes with --prompts; use -o for one prompt")
        arguments.output = arguments.output or Path("music.wav")
        if arguments.output.suffix.lower() not in AUDIO_SUFFIXES:
            raise argparse.ArgumentTypeError(
                f"-o must end in {', '.join(AUDIO_SUFFIXES)}, got {str(arguments.output)!r}"
            )
    else:
        if arguments.out_dir is None or arguments.output is not None or arguments.spectrogram is not None:
            raise argparse.ArgumentTypeError("--prompts needs --out-dir, and takes neither -o nor --spectrogram")
        if not arguments.prompts.is_file():
            raise argparse.ArgumentTypeError(
                f"--prompts must be a text file, got {str(arguments.prompts)!r}, which does not exist"
            )
    if arguments.best_of == 1 and not (arguments.best_by is None and arguments.scorer is None):
        raise argparse.ArgumentTypeError("--best-by and --scorer go with --best-of")
    for name, path in (("-o", arguments.output), ("--spectrogram", arguments.spectrogram)):
        if path is not None and not path.absolute().parent.is_dir():
            raise argparse.ArgumentTypeError(f"the folder of {name} must exist, got {str(path)!r}")


def parse_quality(text: str) -> str | float | list[float] | list[tuple[float, float]] | None:
    """Reads `--quality`: a word, a score, a list of scores, or a list of `second:score` pairs."""
    if text == "unknown":
        return None
    if text in QUALITY_WORDS:
        return text
    try:
        points = [tuple(float(number) for number in point.split(":")) for point in text.split(",")]
    except ValueError:
        points = []
    scores = [point[-1] for point in points]
    if (
        len({len(point) for point in points}) != 1
        or len(points[0]) > 2
        or not all(1 <= score <= 5 for score in scores)
    ):
        raise argparse.ArgumentTypeError(
            f"expected {list_words(quote='')}, unknown, a score from 1 to 5, or a curve such as 2,4.5 or 0:2,5:4.5, got {text!r}"
        )
    if len(points[0]) == 2:
        return points
    return scores[0] if len(scores) == 1 else scores


def parse_criteria(text: str) -> list[str]:
    """Reads `--best-by`: names with commas between."""
    criteria = text.split(",")
    if not set(criteria) <= set(CRITERIA) or len(set(criteria)) < len(criteria):
        raise argparse.ArgumentTypeError(f"expected some of {', '.join(CRITERIA)} with commas between, got {text!r}")
    return criteria


def _positive_number(text: str) -> float:
    return _number(text, float, "a number greater than 0", lambda number: 0 < number < math.inf)


def _number_from_zero(text: str) -> float:
    return _number(text, float, "a number of at least 0", lambda number: 0 <= number < math.inf)


def _count_from_one(text: str) -> int:
    return _number(text, int, "a whole number of at least 1", lambda number: number >= 1)


def _count_from_zero(text: str) -> int:
    return _number(text, int, "a whole number of at least 0", lambda number: 0 <= number < 2**63)


def _number(text: str, kind: type, expected: str, is_allowed) -> float:
    try:
        number = kind(text)
    except ValueError:
        number = None
    if number is None or not is_allowed(number):
        raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}")
    return number


def _report(command: str, error: object, *, status: int) -> int:
    print(f"qamdt {command}: error: {error}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
