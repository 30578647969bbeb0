"""Refines the captions of a manifest as a request asks: the steps in their order, the models, the books."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data_prep.refine.async_engine import answer_questions
from data_prep.refine.batch_engine import BatchEngine
from data_prep.refine.estimate import Estimate, estimate
from data_prep.refine.jobs import RULES, Job
from data_prep.refine.llm_client import LlmClient, RunStopped, Server
from data_prep.refine.local_engine import run_jobs
from data_prep.refine.manifest_rows import ManifestRows
from data_prep.refine.own_thresholds import guess_thresholds, sample_positions, settle_thresholds
from data_prep.refine.questions import iterate_fusion_questions, iterate_suggestion_questions
from data_prep.refine.ray_engine import ask_on_ray, run_jobs_on_ray
from data_prep.refine.report import write_report
from data_prep.refine.request import RefineRequest
from data_prep.refine.run import RefineRun, Summary
from data_prep.refine.spending import CostLimitReached, Spending, sum_usage
from data_prep.refine.step_runner import StepRunner
from data_prep.refine.thresholds import MIN_OWN_WINS
from qamdt.outputs import check_output, check_output_folder


SAMPLE_MANIFEST = Path(__file__).resolve().parent.parent / "sample_corpus" / "manifest.jsonl"


@dataclass(frozen=True, kw_only=True)
class RefineResult:
    """What came of a refinement.

    Args:
        summary: How many clips came out how.
        num_made: How many results each step made in this run; all others were there before.
        is_whole: Whether the refined manifest and the report are written, which takes that no clip is pending.
        refined_manifest: Where the refined manifest lies, once it is.
        folder: Where all else lies: `report.md`, `failures.jsonl`, the results of the steps.
        spending: What the language model has cost, over all runs; `None` where none is asked.
        stopped: Why the language model was not asked further; `None` where nothing stopped it.
    """

    summary: Summary
    num_made: Counter[str]
    is_whole: bool
    refined_manifest: Path
    folder: Path
    spending: Spending | None
    stopped: str | None


def refine_captions(request: RefineRequest, *, say: Callable[[str], object] = print) -> RefineResult:
    """Refines the captions of a manifest, or what is missing of it.

    Args:
        request: What to do.
        say: Takes what is worth knowing while it runs, a line at a time.
    """
    return Refinery(request, say=say).refine()


class Refinery:
    """One refinement: its books and its models.

    Args:
        request: What to do.
        say: Takes what is worth knowing while it runs, a line at a time.
    """

    def __init__(self, request: RefineRequest, *, say: Callable[[str], object] = print):
        self.request = request
        self.say = say
        settings = request.settings
        self.server = (request.server or Server()) if settings.asks else None
        if self.server is not None:
            self.server.read_key()  # a key that is missing should not come up after hours of listening
        rows = ManifestRows(request.manifest)
        self.runner = StepRunner(rows.path, settings, device=request.device)
        folder = request.refined_manifest.with_suffix("")
        self.run = RefineRun(rows, folder, settings, self.runner.clap.name, shard=request.shard)
        usage = sum_usage(row for step in ("suggest", "fuse") for row in self.run.stores[step].history())
        self.spending = Spending(request.prices, request.max_cost, usage)
        self.num_made: Counter[str] = Counter()

    def refine(self) -> RefineResult:
        """Runs all steps and writes what came of them."""
        folder = self.run.folder
        is_ours = (folder / "steps").is_dir()
        check_output(self.request.refined_manifest, inputs=[self.request.manifest], is_ours=lambda path: is_ours)
        check_output_folder(folder, ["failures.jsonl", "refinements.jsonl", "report.md"], is_ours=is_ours)
        with self.run:
            stopped = self._run_steps()
            summary = self.run.finish(self.request.refined_manifest, keeps_originals=not self.request.drop_originals)
        is_whole = self.request.shard is None and summary.num_refined > 0 and not summary.num_pending
        if is_whole:
            self._write_report()
        return RefineResult(
            summary=summary,
            num_made=self.num_made,
            is_whole=is_whole,
            refined_manifest=self.request.refined_manifest,
            folder=self.run.folder,
            spending=None if self.server is None else self.spending,
            stopped=None if stopped is None else str(stopped),
        )

    def estimate(self) -> Estimate:
        """Returns what is left to do and what it will cost; nothing is done."""
        if self.run.settings.thresholds is None:
            self.run.settings = replace(self.run.settings, thresholds=guess_thresholds(self.run))
        return estimate(self.run, self.spending.prices, retry_failed=self.request.retry_failed)

    def describe_batches(self) -> list[str]:
        """Says in a line for each batch of the Batch API how far it is."""
        return self._start_batch_engine().describe()

    def _run_steps(self) -> Exception | None:
        """Runs all steps, and returns what stopped the language model from being asked further."""
        self._do_step("generate")
        self._settle_thresholds()
        stop = None
        try:
            if self.run.settings.suggester is not None:
                self._suggest()
            self._do_step("align")
            if self.run.settings.model is None:
                self._do_step("fuse")
            elif self.request.engine == "batch":
                self._use_batches()
            else:
                self._ask()
        except (RunStopped, CostLimitReached) as error:
            stop = error
        self._do_step("check")
        return stop

    def _settle_thresholds(self) -> None:
        """Takes the thresholds from the data set's own clips, unless the request gives them."""
        if self.run.settings.thresholds is not None:
            return
        if self.request.shard is not None:  # every shard derives the same thresholds from the same clips
            self._do_step("generate", positions=sample_positions(self.run.manifest))
        thresholds, source = settle_thresholds(self.run, self.runner.clap, SAMPLE_MANIFEST)
        self.say(
            f"thresholds {source}: similarity with the audio {thresholds.audio_text:.3f}, near-duplicate "
            f"{thresholds.duplicate:.3f}, largest loss {thresholds.max_loss:.3f}"
        )
        if not thresholds.judges:
            self.say(
                f"{self.runner.clap.name} does not tell the captions of this data set from exchanged ones (it must prefer "
                f"a clip's own in {MIN_OWN_WINS:.0%} of the pairs), so no caption is dropped for what it hears."
            )
        self.run.settings = self.runner.settings = replace(self.run.settings, thresholds=thresholds)

    def _do_step(self, step: str, positions: Sequence[int] | None = None) -> None:
        """Runs a step that needs no network, on this machine or on a cluster."""
        request = self.request
        positions = self.run.positions if positions is None else positions
        with tqdm(total=len(positions), desc=f"{step:8s}", unit="clip", disable=None) as progress:
            jobs = self._iterate_jobs(step, progress, positions)
            if request.engine == "ray":
                batches = run_jobs_on_ray(
                    step,
                    jobs,
                    self.runner.manifest.resolve(),
                    self.run.settings,
                    num_actors=request.num_workers,
                    batch_size=request.batch_size,
                    device=request.device,
                )
            else:
                batches = run_jobs(
                    step,
                    jobs,
                    self.runner,
                    batch_size=request.batch_size,
                    num_workers=request.num_workers,
                    device=request.device,
                )
            for rows in batches:
                for row in rows:
                    self._store(step, row)
                progress.update(len(rows))
        self.run.refresh(step)

    def _suggest(self) -> None:
        """Runs step `suggest` by asking the language model, from this machine."""
        with self._asking("suggest") as (jobs, write):
            questions = iterate_suggestion_questions(jobs, self.run.settings, self.runner.manifest, write)
            client = LlmClient(self.run.settings.suggester, self.server, self.spending)
            answer_questions(questions, client, write)

    def _ask(self) -> None:
        """Runs step `fuse` by asking the language model, from this machine or from a cluster."""
        settings = self.run.settings
        with self._asking("fuse") as (jobs, write):
            if self.request.engine == "ray":
                num_actors = self.request.num_workers
                ask_on_ray(jobs, settings, self.server, self.spending, write, num_actors=num_actors)
            else:
                client = LlmClient(settings.model, self.server, self.spending)
                answer_questions(iterate_fusion_questions(jobs, settings, write), client, write)

    @contextmanager
    def _asking(self, step: str) -> Iterator[tuple[Iterator[Job], Callable[[dict[str, Any]], None]]]:
        """Yields the jobs of a step and where its rows go, with a progress bar that shows what was spent."""
        with tqdm(total=len(self.run.positions), desc=f"{step:8s}", unit="clip", disable=None) as progress:

            def write(row: dict[str, Any]) -> None:
                self._store(step, row)
                progress.set_postfix(self.spending.describe(), refresh=False)
                progress.update()

            try:
                yield self._iterate_jobs(step, progress, self.run.positions), write
            finally:
                self.run.refresh(step)

    def _use_batches(self) -> None:
        """Runs step `fuse` by the Batch API, which takes two runs: submit and, hours later, collect."""
        engine = self._start_batch_engine()

        def write(row: dict[str, Any]) -> None:
            self._store("fuse", row)

        if self.request.batch == "collect":
            num_collected, num_open = engine.collect(write)
            self.say(f"{num_collected} batches collected, {num_open} under way.")
        else:
            jobs = self.run.iterate_jobs("fuse", retry_failed=self.request.retry_failed)
            questions = iterate_fusion_questions(jobs, self.run.settings, write)
            num_requests, num_batches = engine.submit(questions, self.spending)
            self.say(f"{num_requests} requests submitted in {num_batches} batches.")
        self.run.refresh("fuse")

    def _start_batch_engine(self) -> BatchEngine:
        return BatchEngine(self.run.folder / "batches", self.run.settings.model, self.server)

    def _store(self, step: str, row: dict[str, Any]) -> None:
        self.run.stores[step].append(row)
        self.num_made[step] += 1

    def _iterate_jobs(self, step: str, progress: tqdm, positions: Sequence[int]) -> Iterator[Job]:
        return self.run.iterate_jobs(
            step, retry_failed=self.request.retry_failed, positions=positions, on_skip=progress.update
        )

    def _write_report(self) -> None:
        """Writes the report on what the refined manifest holds."""
        settings = self.run.settings
        thresholds = settings.thresholds.to_dict()
        facts = {
            "manifest": str(self.runner.manifest),
            "refined manifest": str(self.request.refined_manifest),
            "captioners": ", ".join(settings.captioners),
            "CLAP": self.run.clap_name,
            "thresholds": ", ".join(f"{name} {value:g}" for name, value in thresholds.items()),
            "fuser": RULES if settings.model is None else settings.model.model,
        }
        write_report(self.run.folder, self.run.iterate_refinements(), facts)
