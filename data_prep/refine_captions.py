"""Makes rich, true captions of weak ones: candidates are generated, aligned with the audio, and fused into one.

    python data_prep/refine_captions.py

refines the sample corpus that ships with the code, offline, and says where the results lie. With a manifest of your own
and a language model behind any server that speaks OpenAI's chat completions (the key comes from OPENAI_API_KEY):

    python data_prep/refine_captions.py --manifest corpus/manifest.jsonl --model NAME --base-url http://localhost:8000/v1

The refined manifest lies beside the manifest, since paths in it are relative; all else lies in a folder of its name. The
command may be killed at any moment; the same command again does what is missing and pays for nothing twice. Clips that
cannot be refined are listed with their reasons in `failures.jsonl`, left out of the refined manifest, and make the exit
status 1; `--retry-failed` tries them again. Without `--model` the captions are fused by rules.

From a program: `refine_captions(RefineRequest(manifest="corpus/manifest.jsonl"))`.
"""

import argparse
import shutil
import sys
from pathlib import Path

from tqdm import tqdm

from data_prep.refine.fusion_prompt import FUSION_TASK
from data_prep.refine.jobs import RefineSettings
from data_prep.refine.llm_client import KEY_VARIABLE, RESPONSE_FORMATS, ModelConfig, Server
from data_prep.refine.outcomes import MEASURED, TAGS
from data_prep.refine.refinery import SAMPLE_MANIFEST, RefineResult, Refinery, refine_captions
from data_prep.refine.request import RefineRequest
from data_prep.refine.thresholds import Thresholds
from qamdt.cpu_memory import keep_freed_memory
from qamdt.files import read_text_lines
from qamdt.work_share import SHARD_HELP, read_shard
from whisq.clap import EMBEDDED


SAMPLE_COPY = Path("data/sample_corpus")


def read_request(options: argparse.Namespace) -> RefineRequest:
    """Returns what the command line asks for."""
    settings = RefineSettings(
        captioners=tuple(options.captioners),
        clap=options.clap,
        thresholds=read_thresholds(options),
        num_paraphrases=options.num_paraphrases,
        model=read_model(options, options.model),
        fusion_task=read_task(options),
        suggester=read_model(options, options.suggester),
        suggest_from=options.suggest_from,
    )
    if options.base_url is not None and not settings.asks:
        raise ValueError("`--base-url` needs a `--model`: the name by which the server knows it.")
    server = Server(
        base_url=options.base_url,
        key_variable=options.key_variable,
        timeout_in_s=options.timeout,
        max_tries=options.max_tries,
        concurrency=options.concurrency,
        requests_per_minute=options.requests_per_minute,
        tokens_per_minute=options.tokens_per_minute,
    )
    return RefineRequest(
        manifest=options.manifest or str(copy_sample_corpus()),
        out=options.out,
        settings=settings,
        server=server if settings.asks else None,
        input_price=options.input_price,
        output_price=options.output_price,
        max_cost=options.max_cost,
        engine=options.engine,
        batch="collect" if options.batch == "status" else options.batch,
        shard=options.shard,
        num_workers=options.num_workers,
        batch_size=options.batch_size,
        device=options.device,
        retry_failed=options.retry_failed,
        drop_originals=options.drop_originals,
    )


def read_model(options: argparse.Namespace, name: str | None) -> ModelConfig | None:
    """Returns how a language model is asked, `None` for none."""
    if name is None:
        return None
    return ModelConfig(
        model=name,
        response_format=options.response_format,
        temperature=options.temperature,
        max_tokens=options.max_tokens,
    )


def read_task(options: argparse.Namespace) -> str:
    """Returns what the language model is told to do."""
    if options.task is None:
        return FUSION_TASK
    if options.model is None:
        raise ValueError("`--task` needs a `--model`, which is told it.")
    return "\n".join(read_text_lines(options.task))


def read_thresholds(options: argparse.Namespace) -> Thresholds | None:
    """Returns the thresholds that the command line gives, `None` where they are to be derived."""
    given = {"duplicate": options.duplicate, "max_loss": options.max_loss}
    given = {name: value for name, value in given.items() if value is not None}
    if options.min_similarity is None and given:
        raise ValueError("`--duplicate` and `--max-loss` need `--min-similarity`; without it all three are derived.")
    return None if options.min_similarity is None else Thresholds(audio_text=options.min_similarity, **given)


def copy_sample_corpus() -> Path:
    """Copies the sample corpus to where it may be written beside, and returns its manifest there."""
    if not SAMPLE_COPY.is_dir():
        temporary = SAMPLE_COPY.with_name(f".{SAMPLE_COPY.name}.tmp")
        shutil.copytree(SAMPLE_MANIFEST.parent, temporary, dirs_exist_ok=True)
        temporary.rename(SAMPLE_COPY)
    return SAMPLE_COPY / SAMPLE_MANIFEST.name


def build_parser() -> argparse.ArgumentParser:
    """The options of the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--manifest", help="manifest of the corpus (default: a copy of the sample corpus)")
    parser.add_argument("--out", help="refined manifest, beside the manifest (default: refined.jsonl)")
    parser.add_argument("--num-paraphrases", type=int, default=2, help="other wordings of each caption (default 2)")
    parser.add_argument(
        "--drop-originals",
        action="store_true",
        help="keep the refined captions alone (default: the original ones too)",
    )
    parser.add_argument(
        "--captioners",
        nargs="*",
        default=[MEASURED, TAGS],
        help="who writes candidates: measured, tags, or models that hear audio (default: measured tags)",
    )
    parser.add_argument(
        "--clap", default=EMBEDDED, help="folder, Hub id or LAION checkpoint (default: the embedded one)"
    )
    parser.add_argument(
        "--device", default="cpu", help="where CLAP and captioner models compute (default %(default)s)"
    )

    thresholds = parser.add_argument_group("thresholds, CLAP similarities (default: derived from the data set itself)")
    thresholds.add_argument("--min-similarity", type=float, help="a candidate less similar to the audio is dropped")
    thresholds.add_argument("--duplicate", type=float, help="a text at least this similar to another is its duplicate")
    thresholds.add_argument("--max-loss", type=float, help="how much less similar the fused caption may be")

    model = parser.add_argument_group("language model (default: fusion by rules)")
    model.add_argument("--model", help="name of the model on the server")
    model.add_argument(
        "--task",
        type=Path,
        metavar="FILE",
        help="text that tells it what to do (default: the one in fusion_prompt.py)",
    )
    model.add_argument("--suggester", metavar="MODEL", help="name of a model that suggests captions (default: none)")
    model.add_argument("--suggest-from", choices=["tags", "audio"], default="tags", help="what the suggester is given")
    model.add_argument("--base-url", help="address of an OpenAI-compatible API (default: OpenAI's)")
    model.add_argument("--key-variable", default=KEY_VARIABLE, help="where the key stands (default %(default)s)")
    model.add_argument("--response-format", choices=RESPONSE_FORMATS, default="json_schema")
    model.add_argument("--temperature", type=float, help="default: the server's")
    model.add_argument("--max-tokens", type=int, default=800, help="of an answer (default %(default)s)")

    work = parser.add_argument_group("how to work")
    work.add_argument("--engine", choices=["async", "batch", "ray"], default="async")
    work.add_argument("--batch", choices=["submit", "status", "collect"], help="what to do with `--engine batch`")
    work.add_argument("--shard", type=read_shard, help=f"{SHARD_HELP}; without it, later, all parts are joined")
    work.add_argument("--num-workers", type=int, default=1, help="processes that hear audio (default %(default)s)")
    work.add_argument("--batch-size", type=int, default=16, help="clips heard at once (default %(default)s)")
    work.add_argument("--retry-failed", action="store_true", help="try failed clips again")
    work.add_argument("--dry-run", action="store_true", help="say what is left and what it will cost, and do nothing")

    limits = parser.add_argument_group("limits of the server and of the purse")
    limits.add_argument("--concurrency", type=int, default=16, help="requests under way (default %(default)s)")
    limits.add_argument("--requests-per-minute", type=float)
    limits.add_argument("--tokens-per-minute", type=float)
    limits.add_argument("--timeout", type=float, default=120.0, help="seconds to wait for an answer (default 120)")
    limits.add_argument("--max-tries", type=int, default=8, help="requests for one clip at most (default %(default)s)")
    limits.add_argument("--input-price", type=float, default=0.0, help="of a million tokens")
    limits.add_argument("--output-price", type=float, default=0.0, help="of a million tokens")
    limits.add_argument("--max-cost", type=float, help="stop before all runs together cost more than this")
    return parser


def describe_estimate(refinery: Refinery) -> str:
    """Says what is left to do and what it will cost."""
    result = refinery.estimate()
    run = refinery.run
    clips = f"{run.count_open('generate')} of {len(run.positions)} clips are still to be heard"
    if refinery.server is None:
        return f"{clips}; their captions are fused by rules, which costs nothing."
    tokens = f"about {result.usage.input_tokens:,} input and {result.usage.output_tokens:,} output tokens"
    cost = f", about {result.cost:.2f} at the given prices" if result.cost else ""
    return f"{clips}; {result.num_requests} requests are left, {tokens}{cost}."


def describe_result(result: RefineResult, *, is_shard: bool) -> str:
    """Says what was done and where it lies."""
    summary = result.summary
    parts = [f"{summary.num_refined} of {summary.num_clips} clips refined"]
    if summary.num_failed:
        parts.append(f"{summary.num_failed} failed, see {result.folder / 'failures.jsonl'}")
    if summary.num_pending:
        parts.append(f"{summary.num_pending} still to be done")
    made = ", ".join(f"{step} {count}" for step, count in result.num_made.items()) or "nothing"
    lines = [", ".join(parts) + ".", f"done in this run: {made}; the rest was there."]
    if result.spending is not None:
        lines.append("spent: " + ", ".join(f"{name} {value}" for name, value in result.spending.describe().items()))
    if is_shard:
        lines.append("When all shards are done, run without `--shard` to join them.")
    elif result.is_whole:
        lines.append(f"refined manifest: {result.refined_manifest}\nreport: {result.folder / 'report.md'}")
    return "\n".join(lines)


def work(options: argparse.Namespace) -> int:
    """Does what the command line asks for, says what came of it, and returns the exit status."""
    request = read_request(options)
    if options.dry_run:
        print(describe_estimate(Refinery(request)))
        return 0
    if options.batch == "status":
        print("\n".join(Refinery(request).describe_batches()) or "nothing was submitted yet.")
        return 0
    result = refine_captions(request, say=tqdm.write)
    print(describe_result(result, is_shard=request.shard is not None))
    if result.stopped is not None:
        print(f"error: {result.stopped}", file=sys.stderr)
        return 2
    return int(result.summary.num_refined < result.summary.num_clips)


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    options = build_parser().parse_args(argv)
    keep_freed_memory()
    try:
        return work(options)
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on.", file=sys.stderr)
        return 130
    except (ValueError, OSError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
