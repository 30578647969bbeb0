"""The `qamdt` command: `generate`, `restore` and `evaluate` music, show `info` about a model, `convert` one, `serve`.

Exit status: 0 when done, 1 when something failed, 2 when the arguments make no sense, 130 when interrupted.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from pipelines.evaluation import command as evaluation
from pipelines.input_checks import check_count
from pipelines.listening import command as listening
from pipelines.request import CRITERIA, DTYPES, RESTORING, SAMPLER_NAMES, GenerationRequest
from qamdt import __version__
from qamdt.audio_formats import find_audio_format
from qamdt.quality_words import QUALITY_WORDS, list_words


# Only what parsing needs is imported above: torch and diffusers take seconds, and `--help` should not.


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
    _add_restore(commands)
    evaluation.add_parser(commands)
    listening.add_parser(commands)
    _add_info(commands)
    _add_convert(commands)
    _add_serve(commands)
    return parser


def _add_generate(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "generate",
        help="make music from a prompt, or from a file of prompts",
        description="Makes music from text. Beside each sound file goes a JSON file with how it was made.",
        epilog="A file of prompts is done prompt by prompt; the same command again does only what is missing.",
        argument_default=argparse.SUPPRESS,  # so that a request from a file is changed only by what is given
    )
    files = dict.fromkeys(("output", "prompts", "out_dir", "request", "spectrogram"))
    parser.set_defaults(run=_generate, num=1, device=None, overwrite=False, quiet=False, **files)
    parser.add_argument("prompt", nargs="?", help='what to play, such as "calm piano ballad, slow"')
    parser.add_argument(
        "-o", "--output", type=Path, help="sound file to write: wav, flac, ogg, opus or mp3 (music.wav)"
    )
    parser.add_argument("--prompts", type=Path, metavar="FILE", help="text file with one prompt per line")
    parser.add_argument("--out-dir", type=Path, metavar="DIR", help="folder for the sound files of --prompts")
    parser.add_argument(
        "--request",
        type=Path,
        metavar="JSON",
        help="what to make: a request, or the JSON file beside a clip; what is given beside it replaces what it says",
    )
    parser.add_argument("--num", type=int, help="takes of each prompt, seeds counting up (1)")
    parser.add_argument("--spectrogram", type=Path, metavar="PNG", help="also draw what was made")
    parser.add_argument("-q", "--quiet", action="store_true", help="print nothing but errors")
    parser.add_argument("--device", help='such as "cpu" or "cuda:1" (a GPU where there is one)')
    parser.add_argument("--overwrite", action="store_true", help="replace files that were not made by this command")
    _add_request_options(parser)


def _add_request_options(parser: argparse.ArgumentParser) -> None:
    """Adds an option for each field of a request but the prompt."""
    default = GenerationRequest
    parser.add_argument(
        "--quality",
        type=parse_quality,
        help=f"{list_words(quote='')}, unknown, a score from 1 to 5, or a curve: scores spread over the clip such as "
        f"2,4.5 or second:score pairs such as 0:2,5:4.5 ({default.quality})",
    )
    parser.add_argument(
        "--then",
        nargs=2,
        action="append",
        metavar=("SECOND", "PROMPT"),
        help="what to play from a second on; may be said several times",
    )
    parser.add_argument(
        "--seconds", type=float, help="length (what the model was built for, or that of the recording)"
    )
    parser.add_argument("--loop", action="store_true", help="make a clip that can be played over and over")
    parser.add_argument("--init-audio", metavar="FILE", help="change this recording as the prompt says")
    parser.add_argument("--strength", type=float, help="how much of it is changed, from 0 to 1 (0.5)")
    parser.add_argument(
        "--inpaint-audio",
        metavar="FILE",
        help="keep this recording, play spans of it anew, and go on where it ends if --seconds says so",
    )
    parser.add_argument("--inpaint-start", type=float, nargs="+", metavar="SECOND", help="where each span begins")
    parser.add_argument("--inpaint-end", type=float, nargs="+", metavar="SECOND", help="where each span ends")
    parser.add_argument("--audio-start", type=float, metavar="SECOND", help="where --inpaint-audio begins (0)")
    parser.add_argument("--seed", type=int, help=f"same seed, same music ({default.seed})")
    parser.add_argument("--best-of", type=int, metavar="N", help=f"make N and keep the best ({default.best_of})")
    parser.add_argument(
        "--best-by",
        type=lambda text: text.split(","),
        metavar="WHAT",
        help=f"what is best: some of {', '.join(CRITERIA)} with commas between; the first is how good it sounds, the "
        "others how well it follows the prompt (overall_quality,clap; clap unless --quality is the best word)",
    )
    parser.add_argument("--scorer", metavar="MODEL", help="folder or Hub id of a WhisQ scorer (the embedded one)")
    parser.add_argument("--negative-prompt", metavar="TEXT", help="what to move away from")
    parser.add_argument("--bpm", type=float, help="tempo; this and the next three for models that know music")
    parser.add_argument("--key", help='such as "A minor"')
    parser.add_argument("--chords", help='a bar each, such as "Am F C G" or "Am | F G"')
    parser.add_argument("--time-signature", help="4/4 or 3/4")
    parser.add_argument(
        "--no-plan",
        dest="plan_music",
        action="store_false",
        help="leave what nobody said of tempo, key and chords to the network, instead of drawing it",
    )
    parser.add_argument(
        "--steps", type=int, help="denoising steps (12; 25 with --init-audio; 200 for --sampler paper)"
    )
    parser.add_argument("--guidance", type=float, help=f"guidance scale; 1 is off ({default.guidance})")
    parser.add_argument("--sampler", choices=SAMPLER_NAMES, help="how to denoise (the model's own scheduler)")
    parser.add_argument(
        "--eta", type=float, help="share of fresh noise in every step, for --sampler ddim and paper (0; 1 for paper)"
    )
    parser.add_argument("--sampling-rate", type=int, metavar="HZ", help="of the sound file (the model's own)")
    parser.add_argument(
        "--loudness", type=float, metavar="LUFS", help="loudness of the sound file, such as -14 (as it was made)"
    )
    parser.add_argument("--fade-ms", type=float, metavar="MS", help=f"fades at both ends ({default.fade_ms:g} ms)")
    parser.add_argument("--model", help="folder or Hub id (QAMDT_MODEL, or the embedded model)")
    parser.add_argument(
        "--lora",
        action="append",
        type=parse_lora,
        metavar="PATH[:SCALE]",
        help="folder or Hub id of an adapter on top of the model, and how strong it is (1); may be given several times",
    )
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        help="precision of the transformer; auto is bfloat16 where the processor has instructions for it "
        f"({default.dtype})",
    )


def _add_restore(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "restore",
        help="raise the quality of a recording where it scores low",
        description="Raises the quality of a recording where its own curve of WhisQ scores is low; what scores high is "
        "left alone. It is brought to the model's rate and to mono. A JSON file beside the result says what was changed.",
    )
    default = GenerationRequest
    parser.set_defaults(run=_restore)
    parser.add_argument("audio", type=Path, help="sound file: wav, flac, ogg, opus or mp3")
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("restored.wav"), help="sound file to write (%(default)s)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace files that were not made by this command")
    parser.add_argument("--prompt", default="", metavar="TEXT", help="what is played, if you like to say it")
    parser.add_argument("--strength", type=float, help="how much is changed, from 0 to 1 (chosen from the scores)")
    parser.add_argument("--good-score", type=float, help='from here on it is left alone (where "high" begins)')
    parser.add_argument("--scorer", metavar="MODEL", help="folder or Hub id of a WhisQ scorer (the embedded one)")
    parser.add_argument("--steps", type=int, help="denoising steps of the whole schedule (25)")
    parser.add_argument(
        "--guidance", type=float, default=RESTORING["guidance"], help="guidance scale; 1 is off (%(default)s)"
    )
    parser.add_argument("--seed", type=int, default=default.seed, help="same seed, same result (%(default)s)")
    parser.add_argument("--sampling-rate", type=int, metavar="HZ", help="of the sound file (the model's own)")
    parser.add_argument("--loudness", type=float, metavar="LUFS", help="loudness of the sound file (the recording's)")
    parser.add_argument(
        "--fade-ms", type=float, default=RESTORING["fade_ms"], metavar="MS", help="fades at both ends (none)"
    )
    parser.add_argument("--model", help="folder or Hub id (QAMDT_MODEL, or the embedded model)")
    parser.add_argument(
        "--dtype", choices=DTYPES, default=default.dtype, help="precision of the transformer (%(default)s)"
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


def _add_serve(commands: argparse._SubParsersAction) -> None:
    for name, port, text, description in (
        ("serve", 8000, "answer over HTTP", "Makes and scores music over HTTP. Its routes are told by /openapi.json."),
        ("studio", 7860, "open a page in the browser", "A page in the browser, with everything that `serve` has."),
    ):
        key = "Asks for the key in the environment variable QAMDT_API_KEY, if it is set."
        service = commands.add_parser(name, help=text, description=f"{description} {key}")
        service.set_defaults(run=_serve)
        service.add_argument("--port", type=int, default=port, help="port to answer at (%(default)s)")
        _add_service_options(service)


def _add_service_options(service: argparse.ArgumentParser) -> None:
    service.add_argument("--host", default="127.0.0.1", help="address to answer at (%(default)s: this machine alone)")
    service.add_argument(
        "--folder", type=Path, default=Path("qamdt-files"), help="where what is made is kept (%(default)s)"
    )
    service.add_argument("--model", help="folder or Hub id (QAMDT_MODEL, or the embedded model)")
    service.add_argument("--device", help='such as "cpu" or "cuda:1" (a GPU where there is one)')
    service.add_argument(
        "--max-waiting", type=int, default=16, metavar="N", help="generations that wait (%(default)s)"
    )
    service.add_argument(
        "--max-seconds", type=float, default=60.0, metavar="S", help="longest clip, in seconds (%(default)s)"
    )
    service.add_argument(
        "--keep-hours", type=float, default=24.0, metavar="H", help="how long it is kept (%(default)s)"
    )


def _generate(arguments: argparse.Namespace) -> None:
    _check_files(arguments)
    request = read_request(arguments)
    if arguments.prompts is None:
        _check_output(arguments.output, request.sampling_rate)
    from pipelines.generate import generate_one, generate_prompts

    if arguments.prompts is None:
        generate_one(
            request,
            arguments.output,
            num_takes=arguments.num,
            spectrogram=arguments.spectrogram,
            device=arguments.device,
            inputs=(arguments.request,),
            overwrite=arguments.overwrite,
            is_quiet=arguments.quiet,
        )
    else:
        generate_prompts(
            request,
            arguments.prompts,
            arguments.out_dir,
            num_takes=arguments.num,
            device=arguments.device,
            inputs=(arguments.request,),
            overwrite=arguments.overwrite,
            is_quiet=arguments.quiet,
        )


def _restore(arguments: argparse.Namespace) -> None:
    if not arguments.audio.is_file():
        raise argparse.ArgumentTypeError(f"AUDIO must be a file, got {str(arguments.audio)!r}, which does not exist")
    if not arguments.output.absolute().parent.is_dir():
        raise argparse.ArgumentTypeError(f"the folder of -o must exist, got {str(arguments.output)!r}")
    _check_output(arguments.output, arguments.sampling_rate)
    names = ("prompt", "strength", "good_score", "steps", "guidance", "seed", "scorer")
    names += ("sampling_rate", "loudness", "fade_ms", "model", "dtype")
    try:
        given = {name: getattr(arguments, name) for name in names}
        request = GenerationRequest(restore_audio=str(arguments.audio), **given)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    from pipelines.restore import restore_file

    restore_file(request, arguments.output, device=arguments.device, overwrite=arguments.overwrite)


def _info(arguments: argparse.Namespace) -> None:
    from pipelines.model_info import describe_model
    from qamdt.embedded import default_model

    print(describe_model(Path(arguments.model or default_model())))


def _serve(arguments: argparse.Namespace) -> None:
    from pipelines.service.settings import ServiceSettings, allowed_hosts

    try:
        settings = ServiceSettings(
            folder=arguments.folder,
            model=arguments.model,
            device=arguments.device,
            max_waiting=arguments.max_waiting,
            max_seconds=arguments.max_seconds,
            keep_hours=arguments.keep_hours,
            api_key=os.environ.get("QAMDT_API_KEY") or None,
            hosts=allowed_hosts(arguments.host),
        )
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    from pipelines.service.command import serve

    serve(settings, host=arguments.host, port=arguments.port, with_studio=arguments.command == "studio")


def _convert(arguments: argparse.Namespace) -> None:
    if not arguments.checkpoint.is_file():
        raise argparse.ArgumentTypeError(
            f"CKPT must be a file, got {str(arguments.checkpoint)!r}, which does not exist."
        )
    from qamdt.published.convert import convert_checkpoint, read_unet_params

    folder = convert_checkpoint(
        arguments.checkpoint,
        arguments.output_dir,
        unet_params=None if arguments.config is None else read_unet_params(arguments.config),
        use_ema=not arguments.no_ema,
        text_encoder=arguments.text_encoder,
        allow_pickle=arguments.allow_pickle,
    )
    print(f'Wrote {folder}. Try: qamdt generate "a prompt" --model {folder}')


def _check_files(arguments: argparse.Namespace) -> None:
    """Refuses files that do not go together or cannot be, before anything slow is imported."""
    has_prompt = "prompt" in arguments
    has_one = has_prompt or arguments.prompts is not None or arguments.request is not None
    if not has_one or (has_prompt and arguments.prompts is not None):
        raise argparse.ArgumentTypeError("pass either a prompt or --prompts FILE, or a --request that has a prompt")
    if arguments.prompts is None:
        if arguments.out_dir is not None:
            raise argparse.ArgumentTypeError("--out-dir goes with --prompts; use -o for one prompt")
        arguments.output = arguments.output or Path("music.wav")
    elif "then" in arguments:
        raise argparse.ArgumentTypeError("--then goes with one prompt, not with --prompts")
    elif arguments.out_dir is None or arguments.output is not None or arguments.spectrogram is not None:
        raise argparse.ArgumentTypeError("--prompts needs --out-dir, and takes neither -o nor --spectrogram")
    recordings = [
        (f"--{name.replace('_', '-')}", vars(arguments).get(name)) for name in ("init_audio", "inpaint_audio")
    ]
    for name, path in (("--prompts", arguments.prompts), ("--request", arguments.request), *recordings):
        if path is not None and not Path(path).is_file():
            raise argparse.ArgumentTypeError(f"{name} must be a file, got {str(path)!r}, which does not exist")
    for name, path in (("-o", arguments.output), ("--spectrogram", arguments.spectrogram)):
        if path is not None and not path.absolute().parent.is_dir():
            raise argparse.ArgumentTypeError(f"the folder of {name} must exist, got {str(path)!r}")


def _check_output(path: Path, sampling_rate: int | None) -> None:
    """Refuses a sound file of no known kind, or one that cannot hold the rate."""
    try:
        find_audio_format(path, sampling_rate, name="-o")
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def read_request(arguments: argparse.Namespace) -> GenerationRequest:
    """The request that the options make, on top of the one in a file; each prompt of --prompts takes its place in it."""
    names = [field.name for field in fields(GenerationRequest)]
    given = {name: value for name, value in vars(arguments).items() if name in names}
    try:
        check_count("num", arguments.num)
        base = {"prompt": ""} if arguments.request is None else GenerationRequest.load(arguments.request).to_dict()
        if "then" in arguments:
            first = given.get("prompt", base["prompt"])
            given["prompt"] = [(0.0, first), *((float(second), text) for second, text in arguments.then)]
        return GenerationRequest.from_dict(base | given)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


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
    if len({len(point) for point in points}) != 1 or len(points[0]) > 2:
        raise argparse.ArgumentTypeError(
            f"expected {list_words(quote='')}, unknown, a score from 1 to 5, or a curve such as 2,4.5 or 0:2,5:4.5, "
            f"got {text!r}"
        )
    if len(points[0]) == 2:
        return points
    scores = [score for (score,) in points]
    return scores[0] if len(scores) == 1 else scores


def parse_lora(text: str) -> tuple[str, float]:
    """Reads `--lora`: a folder or Hub id, and behind a colon its scale; without one it is 1."""
    name, colon, scale = text.rpartition(":")
    if not colon or Path(text).exists():
        return text, 1.0
    try:
        return name, float(scale)
    except ValueError:
        return text, 1.0  # such as a Windows drive


def _report(command: str, error: object, *, status: int) -> int:
    print(f"qamdt {command}: error: {error}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
