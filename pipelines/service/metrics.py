"""What Prometheus is told."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipelines.service.jobs import FINAL, Job


if TYPE_CHECKING:
    from pipelines.service.generation_queue import GenerationQueue


class Metrics:
    """Counters of a service, in a registry of its own."""

    def __init__(self):
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

        self.registry = CollectorRegistry()
        named = {"namespace": "qamdt", "registry": self.registry}
        self.generations = Counter("generations", "Generations that ended, by status.", ["status"], **named)
        for status in FINAL:
            self.generations.labels(status)
        self.refused = Counter("refused", "Generations that found the queue full.", **named)
        self.scored = Counter("scored", "Sound files that were scored.", **named)
        self.generation_seconds = Histogram(
            "generation_seconds", "Time to make a generation.", buckets=(0.5, 1, 2, 5, 10, 30, 60, 300), **named
        )
        self.waiting = Gauge("waiting", "Generations that wait.", **named)

    def count(self, job: Job) -> None:
        """Counts a job that ended."""
        self.generations.labels(job.status).inc()
        if job.status == "complete":
            self.generation_seconds.observe(job.finished_at - job.started_at)

    def watch(self, queue: GenerationQueue) -> None:
        """Reads the length of a queue whenever it is asked for."""
        self.waiting.set_function(lambda: queue.num_waiting)

    def render(self) -> bytes:
        """The metrics in Prometheus's text format."""
        from prometheus_client import generate_latest

        return generate_latest(self.registry)
