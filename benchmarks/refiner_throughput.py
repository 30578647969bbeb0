"""Measures how many clips a second the caption refiner asks a language model about, its CPU time and its memory.

    python -m benchmarks.refiner_throughput --num-clips 10000 --concurrency 64

The server is `benchmarks.openai_server`, a process of its own that answers at once. The clips are made up and already
through stage 2, so that asking alone is measured: reading the manifest and the earlier rows, writing the prompt, the
request over a socket, checking the answer against its schema, storing it.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from data_prep.refine.async_engine import answer_questions
from data_prep.refine.jobs import RefineSettings
from data_prep.refine.llm_client import LlmClient, ModelConfig, RunStopped, Server
from data_prep.refine.manifest_rows import ManifestRows
from data_prep.refine.outcomes import MEASURED, ORIGINAL, Alignment, KeptCandidate
from data_prep.refine.questions import iterate_fusion_questions
from data_prep.refine.run import RefineRun
from data_prep.refine.spending import Spending, sum_usage
from data_prep.refine.thresholds import Thresholds
from qamdt.keyed_rows import make_row
from qamdt.manifest import Record, write_manifest


SERVER = Path(__file__).with_name("openai_server.py")
CLAP_NAME = "made-up"
SETTINGS = RefineSettings(thresholds=Thresholds(audio_text=0.1), model=ModelConfig(model="local"))
EMBEDDING = "A" * 1366  # 512 zeros in half precision, as base64


@contextmanager
def running_server(*options: str):
    """Starts a server process and yields the address of its API."""
    process = subprocess.Popen([sys.executable, str(SERVER), *options], stdout=subprocess.PIPE, text=True)
    try:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}/v1"
    finally:
        process.kill()
        process.wait()


def write_prepared_corpus(folder: Path, num_clips: int) -> Path:
    """Writes a manifest of made-up clips, with the rows of their first two steps, and returns its path."""
    records = (
        Record(
            id=f"clip-{number:07d}",
            path=f"audio/{number:07d}.flac",
            duration_in_s=10.0,
            captions=(f"slow sad jazz with piano and double bass, take {number}",),
            tags={"style": "jazz", "instruments": ["piano", "double bass"], "tempo_bpm": 72},
        )
        for number in range(num_clips)
    )
    manifest = folder / "manifest.jsonl"
    write_manifest(manifest, records)
    with open_run(manifest) as run:
        for _, record in run.manifest.read_good(run.positions):
            keys = run.make_keys(record)
            texts = ((record.captions[0], ORIGINAL), ("music in A minor at 72 bpm", MEASURED))
            kept = tuple(KeptCandidate(text=text, source=source, similarity=0.3) for text, source in texts)
            heard = {"candidates": texts, "audio_embedding": EMBEDDING}
            run.stores["generate"].append(make_row(keys["generate"], record.id) | heard)
            alignment = {"alignment": asdict(Alignment(kept=kept, dropped=()))}
            run.stores["align"].append(make_row(keys["align"], record.id) | alignment)
    return manifest


def open_run(manifest: Path) -> RefineRun:
    """Opens the books of a prepared corpus."""
    return RefineRun(ManifestRows(manifest), manifest.with_name("refined"), SETTINGS, CLAP_NAME)


def ask(
    manifest: Path,
    server: Server,
    *,
    num_asked: int | None = None,
    on_row: Callable[[int], None] = lambda num_rows: None,
) -> Spending:
    """Asks about the clips that have no answer yet, and returns what it took.

    Args:
        manifest: A prepared corpus.
        server: Whom to ask.
        num_asked: Only so many clips.
        on_row: Called with the number of rows after each.
    """
    with open_run(manifest) as run:
        spending = Spending(usage=sum_usage(run.stores["fuse"].history()))
        num_rows = 0

        def write(row: dict[str, Any]) -> None:
            nonlocal num_rows
            run.stores["fuse"].append(row)
            num_rows += 1
            on_row(num_rows)

        jobs = islice(run.iterate_jobs("fuse"), num_asked)
        questions = iterate_fusion_questions(jobs, SETTINGS, write)
        answer_questions(questions, LlmClient(SETTINGS.model, server, spending), write)
    return spending


def measure(manifest: Path, server: Server, num_clips: int, num_asked: int) -> None:
    """Asks about a fresh corpus and prints what it took."""
    resident = {}

    def note_memory(num_rows: int) -> None:
        if num_rows in (num_asked // 4, num_asked):
            resident[num_rows] = _resident_in_mb()

    started, started_cpu = time.perf_counter(), time.process_time()
    spending = ask(manifest, server, num_asked=num_asked, on_row=note_memory)
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - started_cpu
    assert spending.usage.requests == num_asked, "every clip takes one request"
    memory = ", ".join(f"{value:.0f} MB after {number} requests" for number, value in resident.items())
    print(
        f"{num_asked} of {num_clips} clips at concurrency {server.concurrency}: {num_asked / seconds:.0f} requests/s, "
        f"{1000 * cpu_seconds / num_asked:.2f} CPU-ms a request; resident memory {memory}, "
        f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB at most; "
        f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
    )


def _resident_in_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize() / 2**20


def main(argv: list[str] | None = None) -> int:
    """Runs the benchmark, or asks about a prepared corpus that is there already."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-clips", type=int, default=10_000)
    parser.add_argument("--num-asked", type=int, help="ask about only so many of them (default: all)")
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--manifest", type=Path, help="a prepared corpus to go on with, for tests of kills")
    parser.add_argument("--base-url", help="its server")
    options = parser.parse_args(argv)
    if options.manifest is not None:
        try:
            ask(options.manifest, Server(base_url=options.base_url, concurrency=options.concurrency))
        except RunStopped as error:
            print(error, file=sys.stderr)
            return 2
        return 0
    with tempfile.TemporaryDirectory() as folder, running_server() as base_url:
        manifest = write_prepared_corpus(Path(folder), options.num_clips)
        server = Server(base_url=base_url, concurrency=options.concurrency)
        measure(manifest, server, options.num_clips, options.num_asked or options.num_clips)
    return 0


if __name__ == "__main__":
    sys.exit(main())
