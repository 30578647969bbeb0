"""Refines against a server that misbehaves, kills the refiner again and again, and counts what was lost or asked twice.

    python -m benchmarks.refiner_robustness --num-clips 1000 --num-kills 10 --concurrency 8

The clips are made up and already through stage 2. The server answers slowly and badly before it answers well. Each run
of the refiner is a process of its own, ended by SIGKILL at a random moment; the last one may finish.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from benchmarks.refiner_throughput import open_run, running_server, write_prepared_corpus
from qamdt.keyed_rows import DONE


BAD_SCRIPT = ["429", "500", "cut", "malformed", "wrong-schema", "ok"]
ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of it.

    Args:
        num_done: Clips with an answer.
        num_rows: Rows in the store; more than clips if one was stored twice.
        asked_again: After each kill, how many clips were asked for again that had been answered well before.
        num_requests: All requests.
    """

    num_done: int
    num_rows: int
    asked_again: list[int]
    num_requests: int


def refine_and_kill(
    folder: Path,
    *,
    num_clips: int,
    num_kills: int,
    concurrency: int,
    script: list[str],
    latency_in_s: float,
    seed: int,
) -> Outcome:
    """Refines a made-up corpus with kills at random moments.

    Args:
        folder: An empty folder to work in.
        num_clips: Size of the corpus.
        num_kills: How often to kill.
        concurrency: Most requests under way.
        script: How the server answers the first, second, … try.
        latency_in_s: How long it takes over every answer.
        seed: Seed of the moments.
    """
    manifest = write_prepared_corpus(folder, num_clips)
    log = folder / "requests.jsonl"
    store = folder / "refined" / "steps" / "fuse.jsonl"
    rng = random.Random(seed)
    moments = sorted(rng.sample(range(1, num_clips), num_kills))  # in rows, so that a slow machine is no excuse
    killed_at = []
    server = ("--script", json.dumps(script), "--latency", str(latency_in_s), "--log", str(log))
    with running_server(*server) as base_url:
        command = [sys.executable, "-m", "benchmarks.refiner_throughput", "--manifest", str(manifest)]
        command += ["--base-url", base_url, "--concurrency", str(concurrency)]
        for moment in moments:
            process = subprocess.Popen(command, cwd=ROOT)
            while _count_lines(store) < moment and process.poll() is None:
                time.sleep(0.05)
            process.kill()
            process.wait()
            killed_at.append(time.monotonic())
        subprocess.run(command, cwd=ROOT, check=True)

    run = open_run(manifest)
    keys = [run.make_keys(record)["fuse"] for _, record in run.manifest.read_good(run.positions)]
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    return Outcome(
        num_done=sum(run.stores["fuse"].status(key) == DONE for key in keys),
        num_rows=_count_lines(store),
        asked_again=count_asked_again(entries, killed_at),
        num_requests=len(entries),
    )


def count_asked_again(entries: list[dict], killed_at: list[float]) -> list[int]:
    """Counts for each kill the prompts that the next run asked for although they had been answered well before it."""
    counts: Counter[int] = Counter()
    answered: set[str] = set()
    run_number = 0
    for entry in sorted(entries, key=lambda entry: entry["time"]):
        while run_number < len(killed_at) and entry["time"] > killed_at[run_number]:
            run_number += 1
        counts[run_number] += entry["behaviour"] == "ok" and entry["prompt"] in answered
        if entry["behaviour"] == "ok":
            answered.add(entry["prompt"])
    return [counts[number + 1] for number in range(len(killed_at))]


def _count_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def main(argv: list[str] | None = None) -> int:
    """Runs the benchmark and returns 0 if nothing was lost, stored twice, or asked again without need."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-clips", type=int, default=1000)
    parser.add_argument("--num-kills", type=int, default=10)
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--script", type=json.loads, default=BAD_SCRIPT, help="see benchmarks.openai_server")
    parser.add_argument("--latency", type=float, default=0.02, help="seconds that every answer takes")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        outcome = refine_and_kill(
            Path(folder),
            num_clips=options.num_clips,
            num_kills=options.num_kills,
            concurrency=options.concurrency,
            script=options.script,
            latency_in_s=options.latency,
            seed=options.seed,
        )
    print(outcome)
    is_good = outcome.num_done == outcome.num_rows == options.num_clips
    return int(not (is_good and max(outcome.asked_again, default=0) <= options.concurrency))


if __name__ == "__main__":
    sys.exit(main())
