"""The `whisq` command: `score` music, then `stats`, `finalize` and `filter` what was scored; `train` and `eval` scorers.

Exit status: 0 when done, 1 when something failed or some clips could not be scored, 2 when the arguments make no
sense, 130 when interrupted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from qamdt.quality_words import QUALITY_WORDS
from qamdt.work_share import SHARD_HELP, read_shard


# Only what parsing needs is imported above: torch takes seconds, and `--help` should not.
METHODS = ("sigma", "quantile")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        if argv[:1] in (["train"], ["eval"]):  # they have parsers of their own
            return _run_module(argv[0], argv[1:])
        arguments = build_parser().parse_args(argv)
        return arguments.run(arguments)
    except argparse.ArgumentTypeError as error:
        return _report(argv[0], error, status=2)
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        return _report(argv[0], error, status=1)
    except KeyboardInterrupt:
        return _report(argv[0], "interrupted", status=130)


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="whisq", description="How good music sounds, and how well it follows its text."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_score(commands)
    _add_stats(commands)
    _add_finalize(commands)
    _add_filter(commands)
    commands.add_parser("eval", help="compare a scorer with human ratings", add_help=False)
    commands.add_parser("train", help="train a scorer", add_help=False)
    return parser


def _add_score(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "score",
        help="score clips",
        description="Scores clips: a JSON row for each, with its quality as a whole and along time, and how well it "
        "follows its prompt.",
        epilog="The same command again does only what is missing or has changed. Several processes share the work: "
        "accelerate launch -m whisq.cli score ... Jobs that do not know of each other take --shard 0/4 to 3/4, and "
        "python -m data_prep.merge_shards makes one file of theirs.",
    )
    parser.set_defaults(run=_score)
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="folder, pattern such as 'music/**/*.wav', manifest (.jsonl), list of files with an optional prompt after "
        "a tab (.txt, .lst, .tsv), or sound file",
    )
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="JSONL", help="file to write or to complete")
    parser.add_argument("--prompts", type=Path, metavar="TSV", help="a clip's id, a tab and its prompt per line")
    parser.add_argument("--model", help="folder or Hub id of a scorer (the embedded one)")
    parser.add_argument("--revision", help="branch, tag or commit of the Hub repository")
    parser.add_argument("--device", help='such as "cpu" or "cuda:1" (a GPU where there is one)')
    parser.add_argument(
        "--batch-seconds", type=float, default=160.0, metavar="S", help="audio scored at once (%(default)g)"
    )
    parser.add_argument("--num-workers", type=int, default=0, help="processes that decode ahead (%(default)s)")
    parser.add_argument("--retry-errors", action="store_true", help="try clips again that could not be scored")
    parser.add_argument("--shard", type=read_shard, help=SHARD_HELP)


def _add_stats(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "stats", help="statistics of a scored collection", description="Measures how scores are distributed."
    )
    parser.set_defaults(run=_stats)
    parser.add_argument("scores", nargs="+", type=Path, metavar="JSONL", help="files of `whisq score`")
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="JSON", help="statistics to write")
    parser.add_argument(
        "--method", choices=METHODS, help="how levels are set apart (sigma if scores are near a bell, else quantile)"
    )


def _add_finalize(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "finalize",
        help="turn scores into quality levels",
        description="Writes a Parquet table with levels, and beside it the thresholds that qamdt reads.",
    )
    parser.set_defaults(run=_finalize)
    parser.add_argument("scores", nargs="+", type=Path, metavar="JSONL", help="files of `whisq score`")
    parser.add_argument("--stats", type=Path, required=True, metavar="JSON", help="file of `whisq stats`")
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="PARQUET", help="table to write")
    add_threshold_options(parser)


def add_threshold_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that say how scores become levels."""
    parser.add_argument("--method", choices=METHODS, help="how levels are set apart (what the statistics say)")
    parser.add_argument("--edges", nargs=4, type=float, metavar="SCORE", help="where levels 2 to 5 begin")
    parser.add_argument(
        "--prefix-edges",
        nargs=len(QUALITY_WORDS) - 1,
        type=float,
        metavar="SCORE",
        help=f"where clips cease to be called {', then '.join(list(QUALITY_WORDS)[:-1])}; with --edges",
    )
    parser.add_argument("--per-source", action="store_true", help="compare a clip with its source, not with all clips")


def _add_filter(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "filter", help="keep the clips that score well enough", description="Keeps clips whose scores are good enough."
    )
    parser.set_defaults(run=_filter)
    parser.add_argument("scores", nargs="+", type=Path, metavar="JSONL", help="files of `whisq score`")
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="JSONL", help="what is kept")
    parser.add_argument("--manifest", type=Path, help="keep lines of this manifest, not score rows")
    parser.add_argument("--stats", type=Path, metavar="JSON", help="what percentiles refer to (these scores)")
    parser.add_argument("--min-omq", type=float, metavar="SCORE", help="least overall quality, 1 to 5")
    parser.add_argument("--min-ta", type=float, metavar="SCORE", help="least text alignment, 1 to 5")
    parser.add_argument("--omq-min-pct", type=float, metavar="P", help="drop the P %% with the worst quality")
    parser.add_argument("--ta-min-pct", type=float, metavar="P", help="drop the P %% whose text fits worst")
    parser.add_argument("--drop-flags", nargs="+", default=(), metavar="FLAG", help="drop clips with these flags")
    parser.add_argument("--overwrite", action="store_true", help="replace --out even if it holds other lines")


def _score(arguments: argparse.Namespace) -> int:
    if not arguments.batch_seconds > 0:
        raise argparse.ArgumentTypeError(f"--batch-seconds must be greater than 0, got {arguments.batch_seconds}")
    if arguments.num_workers < 0:
        raise argparse.ArgumentTypeError(f"--num-workers must be at least 0, got {arguments.num_workers}")
    if arguments.out.suffix != ".jsonl":
        raise argparse.ArgumentTypeError(f"--out must be a .jsonl file, got {str(arguments.out)!r}")
    from whisq.scoring.command import score

    return score(arguments)


def _stats(arguments: argparse.Namespace) -> int:
    from qamdt.outputs import check_output, is_readable_by
    from whisq.scoring.stats import ScoreStats, measure_scores

    check_output(arguments.out, inputs=arguments.scores, is_ours=partial(is_readable_by, ScoreStats.load))
    stats = measure_scores(arguments.scores, method=arguments.method)
    stats.save(arguments.out)
    quality = stats.overall_quality
    print(
        f"{quality.num_clips} clips of {len(stats.sources)} sources, quality {quality.mean:.2f} ± {quality.std:.2f}, "
        f"levels by {quality.method}; {stats.num_errors} clips without score. Wrote {arguments.out}."
    )
    return 0


def _finalize(arguments: argparse.Namespace) -> int:
    from qamdt.outputs import check_output
    from qamdt.quality import is_quality_file
    from whisq.scoring.labels import finalize, is_label_file, quality_stats_path
    from whisq.scoring.stats import ScoreStats

    for path, is_ours in ((arguments.out, is_label_file), (quality_stats_path(arguments.out), is_quality_file)):
        check_output(path, inputs=[*arguments.scores, arguments.stats], is_ours=is_ours)
    quality_path = finalize(
        arguments.scores,
        ScoreStats.load(arguments.stats),
        arguments.out,
        method=arguments.method,
        thresholds=read_thresholds(arguments),
        per_source=arguments.per_source,
    )
    print(f"Wrote {arguments.out} and {quality_path}.")
    return 0


def read_thresholds(arguments: argparse.Namespace):
    """The thresholds of `add_threshold_options`, `None` when they are to be derived."""
    from whisq.scoring.stats import Thresholds

    if (arguments.edges is None) != (arguments.prefix_edges is None):
        raise argparse.ArgumentTypeError("--edges and --prefix-edges go together")
    if arguments.edges is None:
        return None
    if arguments.method is not None:
        raise argparse.ArgumentTypeError("--edges takes the place of --method; give one of them")
    return Thresholds(edges=tuple(arguments.edges), prefix_edges=tuple(arguments.prefix_edges))


def _filter(arguments: argparse.Namespace) -> int:
    from qamdt.outputs import OVERWRITE_HINT, check_output
    from whisq.scoring.filter import Limits, filter_scores, holds_only_lines_of
    from whisq.scoring.stats import ScoreStats, measure_scores

    sources = arguments.scores if arguments.manifest is None else [arguments.manifest]
    check_output(
        arguments.out,
        inputs=[*arguments.scores, arguments.manifest, arguments.stats],
        is_ours=lambda path: arguments.overwrite or holds_only_lines_of(path, sources),
        hint=OVERWRITE_HINT,
    )
    limits = Limits(
        min_overall_quality=arguments.min_omq,
        min_text_alignment=arguments.min_ta,
        omq_min_pct=arguments.omq_min_pct,
        ta_min_pct=arguments.ta_min_pct,
        drop_flags=tuple(arguments.drop_flags),
    )
    stats = measure_scores(arguments.scores) if arguments.stats is None else ScoreStats.load(arguments.stats)
    counts, faults = filter_scores(arguments.scores, arguments.out, limits, stats, manifest=arguments.manifest)
    print(f"kept {counts.pop('kept')} clips in {arguments.out}")
    for reason, count in counts.most_common():
        print(f"dropped {count}: {reason}")
    for fault in faults:
        print(f"dropped: {fault}", file=sys.stderr)
    return int(bool(faults))


def _run_module(command: str, argv: list[str]) -> int:
    if command == "train":
        from whisq.train import main as run
    else:
        from whisq.evaluate import main as run
    return run(argv)


def _report(command: str, error: object, *, status: int) -> int:
    print(f"whisq {command}: error: {error}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
