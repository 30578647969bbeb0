"""Makes rich, true captions of weak ones: candidates are generated, aligned with the audio, and fused into one.

    python data_prep/refine_captions.py

refines the sample corpus that ships with the code, offline, and says where the results lie. With a manifest of your own
and a language model behind any server that speaks OpenAI's chat completions (the key comes from OPENAI_API_KEY):

    python data_prep/refine_captions.py --manifest corpus/manifest.jsonl --model NAME --base-url http://localhost:8000/v1

The refined manifest lies beside the manifest, since paths in it are relative; all else lies in a folder of its name. The
command may be killed at any moment; the same command again does what is missing and pays for nothing twice. Clips that
cannot be refined are listed with their reasons in `failures.jsonl`, left out of the refined manifest, and make the exit
status 1; `--retry-failed` tries them again. Without `--model` the captions are fused by rules.
"""

import argparse
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data_prep.refine.align import Thresholds
from data_prep.refine.async_engine import answer_questions
from data_prep.refine.batch_engine import BatchEngine
from data_prep.refine.clap import EMBEDDED
from data_prep.refine.estimate import estimate
from data_prep.refine.jobs import RULES, Job, RefineSettings
from data_prep.refine.llm_client import KEY_VARIABLE, RESPONSE_FORMATS, LlmClient, ModelConfig, RunStopped, Server
from data_prep.refine.local_engine import run_jobs
from data_prep.refine.manifest_rows import ManifestRows
from data_prep.refine.outcomes import MEASURED, TAGS
from data_prep.refine.own_thresholds import guess_thresholds, sample_positions, settle_thresholds
from data_prep.refine.questions import iterate_fusion_questions, iterate_suggestion_questions
from data_prep.refine.ray_engine import ask_on_ray, run_jobs_on_ray
from data_prep.refine.report import write_report
from data_prep.refine.run import RefineRun, Summary
from data_prep.refine.spending import CostLimitReached, Prices, Spending, Usage, sum_usage
from data_prep.refine.step_runner import StepRunner
from qamdt.cpu_memory import keep_freed_memory


SAMPLE_MANIFEST = Path(__file__).resolve().parent / "sample_corpus" / "manifest.jsonl"
SAMPLE_COPY = Path("data/sample_corpus")
BATCH_DISCOUNT = 0.5  # what the Batch API takes of the usual price


class Refinery:
    """One run of the command: the books, the models, and how the command line says to work.

    Args:
        options: The parsed command line.
    """

    def __init__(self, options: argparse.Namespace):
        self.options = options
        self.model = read_model(options, options.model)
        self.server = read_server(options)
        manifest = Path(options.manifest) if options.manifest else copy_sample_corpus()
        self.refined_manifest = read_out(options.out, manifest)
        rows = ManifestRows(manifest)
        settings = RefineSettings(
            captioners=tuple(options.captioners),
            clap=options.clap,
            thresholds=read_thresholds(options),
            num_paraphrases=options.num_paraphrases,
            model=self.model,
            suggester=read_model(options, options.suggester),
            suggest_from=options.suggest_from,
        )
        self.runner = StepRunner(manifest, settings, device=options.device)
        folder = self.refined_manifest.with_suffix("")
        self.run = RefineRun(rows, folder, settings, self.runner.clap.name, shard=options.shard)
        prices = Prices(
            input_price=options.input_price,
            output_price=options.output_price,
            discount=BATCH_DISCOUNT if options.engine == "batch" else 1.0,
        )
        self.spending = Spending(prices, options.max_cost, self._read_usage())

    def work(self) -> int:
        """Does what the command line asks for, says what came of it, and returns the exit status."""
        if self.options.dry_run:
            print(self.estimate())
            return 0
        if self.options.batch == "status":
            print("\n".join(self._start_batch_engine().describe()) or "nothing was submitted yet.")
            return 0
        with self.run:
            stop = self.refine()
            summary = self.run.finish(self.refined_manifest)
        if self.options.shard is None and summary.num_refined and not summary.num_pending:
            self.write_report()
        print(self.describe(summary))
        if stop is not None:
            print(f"error: {stop}", file=sys.stderr)
            return 2
        return int(summary.num_refined < summary.num_clips)

    def refine(self) -> Exception | None:
        """Runs all steps, and returns what stopped the language model from being asked further."""
        self.do_step("generate")
        self.settle_thresholds()
        stop = None
        try:
            if self.run.settings.suggester is not None:
                self.suggest()
            self.do_step("align")
            if self.model is None:
                self.do_step("fuse")
            elif self.options.engine == "batch":
                self.use_batches()
            else:
                self.ask()
        except (RunStopped, CostLimitReached) as error:
            stop = error
        self.do_step("check")
        return stop

    def write_report(self) -> None:
        """Writes the report on what the refined manifest holds."""
        thresholds = self.run.settings.thresholds.to_dict()
        settings = {
            "manifest": str(self.runner.manifest),
            "refined manifest": str(self.refined_manifest),
            "captioners": ", ".join(self.run.settings.captioners),
            "CLAP": self.run.clap_name,
            "thresholds": ", ".join(f"{name} {value:g}" for name, value in thresholds.items()),
            "fuser": RULES if self.model is None else self.model.model,
        }
        write_report(self.run.folder, self.run.iterate_refinements(), settings)

    def describe(self, summary: Summary) -> str:
        """Says what was done and where it lies."""
        parts = [f"{summary.num_refined} of {summary.num_clips} clips refined"]
        if summary.num_failed:
            parts.append(f"{summary.num_failed} failed, see {self.run.folder / 'failures.jsonl'}")
        if summary.num_pending:
            parts.append(f"{summary.num_pending} still to be done")
        lines = [", ".join(parts) + "."]
        if self.server is not None:
            lines.append("spent: " + ", ".join(f"{name} {value}" for name, value in self.spending.describe().items()))
        if self.options.shard is not None:
            lines.append("When all shards are done, run without `--shard` to join them.")
        elif summary.num_refined and not summary.num_pending:
            lines.append(f"refined manifest: {self.refined_manifest}\nreport: {self.run.folder / 'report.md'}")
        return "\n".join(lines)

    def settle_thresholds(self) -> None:
        """Takes the thresholds from the data set's own clips, unless the command line gives them."""
        if self.run.settings.thresholds is not None:
            return
        if self.options.shard is not None:  # every shard derives the same thresholds from the same clips
            self.do_step("generate", positions=sample_positions(self.run.manifest))
        thresholds, source = settle_thresholds(self.run, self.runner.clap, SAMPLE_MANIFEST)
        print(
            f"thresholds {source}: similarity with the audio {thresholds.audio_text:.3f}, near-duplicate "
            f"{thresholds.duplicate:.3f}, largest loss {thresholds.max_loss:.3f}"
        )
        self.run.settings = self.runner.settings = replace(self.run.settings, thresholds=thresholds)

    def do_step(self, step: str, positions: Sequence[int] | None = None) -> None:
        """Runs a step that needs no network, on this machine or on a cluster."""
        options = self.options
        positions = self.run.positions if positions is None else positions
        with tqdm(total=len(positions), desc=f"{step:8s}", unit="clip") as progress:
            jobs = self._iterate_jobs(step, progress, positions)
            if options.engine == "ray":
                batches = run_jobs_on_ray(
                    step,
                    jobs,
                    self.runner.manifest.resolve(),
                    self.run.settings,
                    num_actors=options.num_workers,
                    batch_size=options.batch_size,
                    device=options.device,
                )
            else:
                batches = run_jobs(
                    step,
                    jobs,
                    self.runner,
                    batch_size=options.batch_size,
                    num_workers=options.num_workers,
                    device=options.device,
                )
            for rows in batches:
                for row in rows:
                    self.run.stores[step].append(row)
                progress.update(len(rows))
        self.run.refresh(step)

    def suggest(self) -> None:
        """Runs step `suggest` by asking the language model, from this machine."""
        with self._asking("suggest") as (jobs, write):
            questions = iterate_suggestion_questions(jobs, self.run.settings, self.runner.manifest, write)
            client = LlmClient(self.run.settings.suggester, self.server, self.spending)
            answer_questions(questions, client, write)

    def ask(self) -> None:
        """Runs step `fuse` by asking the language model, from this machine or from a cluster."""
        with self._asking("fuse") as (jobs, write):
            if self.options.engine == "ray":
                num_actors = self.options.num_workers
                ask_on_ray(jobs, self.run.settings, self.server, self.spending, write, num_actors=num_actors)
            else:
                client = LlmClient(self.model, self.server, self.spending)
                answer_questions(iterate_fusion_questions(jobs, self.run.settings, write), client, write)

    @contextmanager
    def _asking(self, step: str) -> Iterator[tuple[Iterator[Job], Callable[[dict[str, Any]], None]]]:
        """Yields the jobs of a step and where its rows go, with a progress bar that shows what was spent."""
        with tqdm(total=len(self.run.positions), desc=f"{step:8s}", unit="clip") as progress:

            def write(row: dict[str, Any]) -> None:
                self.run.stores[step].append(row)
                progress.set_postfix(self.spending.describe(), refresh=False)
                progress.update()

            try:
                yield self._iterate_jobs(step, progress, self.run.positions), write
            finally:
                self.run.refresh(step)

    def use_batches(self) -> None:
        """Runs step `fuse` by the Batch API, which takes two commands: submit and, hours later, collect."""
        engine = self._start_batch_engine()
        write = self.run.stores["fuse"].append
        if self.options.batch == "collect":
            num_collected, num_open = engine.collect(write)
            print(f"{num_collected} batches collected, {num_open} under way.")
        else:
            jobs = self.run.iterate_jobs("fuse", retry_failed=self.options.retry_failed)
            questions = iterate_fusion_questions(jobs, self.run.settings, write)
            num_requests, num_batches = engine.submit(questions, self.spending)
            print(f"{num_requests} requests submitted in {num_batches} batches.")
        self.run.refresh("fuse")

    def _start_batch_engine(self) -> BatchEngine:
        return BatchEngine(self.run.folder / "batches", self.model, self.server)

    def estimate(self) -> str:
        """Says what is left to do and what it will cost."""
        if self.run.settings.thresholds is None:
            self.run.settings = replace(self.run.settings, thresholds=guess_thresholds(self.run))
        result = estimate(self.run, self.spending.prices, retry_failed=self.options.retry_failed)
        clips = f"{self.run.count_open('generate')} of {len(self.run.positions)} clips are still to be heard"
        if self.server is None:
            return f"{clips}; their captions are fused by rules, which costs nothing."
        tokens = f"about {result.usage.input_tokens:,} input and {result.usage.output_tokens:,} output tokens"
        cost = f", about {result.cost:.2f} at the given prices" if result.cost else ""
        return f"{clips}; {result.num_requests} requests are left, {tokens}{cost}."

    def _read_usage(self) -> Usage:
        """Returns what all runs have used, failed and repeated questions too."""
        return sum_usage(row for step in ("suggest", "fuse") for row in self.run.stores[step].history())

    def _iterate_jobs(self, step: str, progress: tqdm, positions: Sequence[int]) -> Iterator[Job]:
        return self.run.iterate_jobs(
            step, retry_failed=self.options.retry_failed, positions=positions, on_skip=progress.update
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


def read_server(options: argparse.Namespace) -> Server | None:
    """Returns where the language models run, `None` where none is asked for."""
    if options.model is None and options.suggester is None:
        return None
    server = Server(
        base_url=options.base_url,
        key_variable=options.key_variable,
        timeout_in_s=options.timeout,
        max_tries=options.max_tries,
        concurrency=options.concurrency,
        requests_per_minute=options.requests_per_minute,
        tokens_per_minute=options.tokens_per_minute,
    )
    server.read_key()  # a key that is missing should not come up after hours of listening
    return server


def copy_sample_corpus() -> Path:
    """Copies the sample corpus to where it may be written beside, and returns its manifest there."""
    if not SAMPLE_COPY.is_dir():
        temporary = SAMPLE_COPY.with_name(f".{SAMPLE_COPY.name}.tmp")
        shutil.copytree(SAMPLE_MANIFEST.parent, temporary, dirs_exist_ok=True)
        temporary.rename(SAMPLE_COPY)
    return SAMPLE_COPY / SAMPLE_MANIFEST.name


def read_out(out: str | None, manifest: Path) -> Path:
    """Returns where the refined manifest goes."""
    path = manifest.with_name("refined.jsonl") if out is None else Path(out)
    if path.suffix != ".jsonl" or path.resolve().parent != manifest.resolve().parent:
        raise ValueError(
            f"`--out` must be a .jsonl file beside the manifest, in {str(manifest.parent)!r}, because paths in it are "
            f"relative; got {str(path)!r}."
        )
    if path.resolve() == manifest.resolve():
        raise ValueError(f"`--out` must not be the manifest itself, got {str(path)!r}.")
    return path


def read_thresholds(options: argparse.Namespace) -> Thresholds | None:
    """Returns the thresholds that the command line gives, `None` where they are to be derived."""
    given = {"duplicate": options.duplicate, "max_loss": options.max_loss}
    given = {name: value for name, value in given.items() if value is not None}
    return None if options.min_similarity is None else Thresholds(audio_text=options.min_similarity, **given)


def read_shard(text: str) -> tuple[int, int]:
    """Reads "0/4" as the first of four parts."""
    number, slash, count = text.partition("/")
    if not (slash and number.isdecimal() and count.isdecimal() and int(number) < int(count)):
        raise argparse.ArgumentTypeError(f"must be i/n with 0 <= i < n, as in 0/4 for the first of four, got {text!r}")
    return int(number), int(count)


def build_parser() -> argparse.ArgumentParser:
    """The options of the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--manifest", help="manifest of the corpus (default: a copy of the sample corpus)")
    parser.add_argument("--out", help="refined manifest, beside the manifest (default: refined.jsonl)")
    parser.add_argument("--num-paraphrases", type=int, default=2, help="other wordings of each caption (default 2)")
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
    work.add_argument("--shard", type=read_shard, help="i/n: only this part; without it, later, all parts are joined")
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


def check_options(options: argparse.Namespace) -> None:
    """Refuses options that make no sense together."""
    if (options.engine == "batch") != (options.batch is not None):
        raise ValueError("`--engine batch` and `--batch submit|status|collect` need each other.")
    if options.engine == "batch" and options.model is None:
        raise ValueError("`--engine batch` needs a `--model`.")
    if options.model is None and options.suggester is None and options.base_url is not None:
        raise ValueError("`--base-url` needs a `--model`: the name by which the server knows it.")
    if options.min_similarity is None and (options.duplicate is not None or options.max_loss is not None):
        raise ValueError("`--duplicate` and `--max-loss` need `--min-similarity`; without it all three are derived.")
    if options.num_workers < 1 or options.batch_size < 1:
        raise ValueError(
            f"`--num-workers` and `--batch-size` must be at least 1, got {options.num_workers}, {options.batch_size}."
        )


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    options = build_parser().parse_args(argv)
    keep_freed_memory()
    try:
        check_options(options)
        return Refinery(options).work()
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on.", file=sys.stderr)
        return 130
    except (ValueError, OSError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
