"""The Prometheus metrics of a service."""

from collections.abc import Sequence
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from gadfly.records import Critique, Interaction, Refinement

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """One registry per app, so that two apps in one process do not share metrics.

    In one of several workers (`gadfly/service/workers.py`), `folder` is where the metrics of all of them are.
    """

    def __init__(self, *, folder: Path | None = None) -> None:
        self._folder = folder
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "gadfly_http_requests_total", "Requests by outcome.", ("method", "route", "status"), registry=self.registry
        )
        self.latency = Histogram(
            "gadfly_http_request_duration_seconds",
            "Time to the last byte of the answer.",
            ("route",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.in_flight = Gauge(
            "gadfly_critic_in_flight",
            "Requests in flight by critic version.",
            ("critic",),
            registry=self.registry,
            multiprocess_mode="livesum",
        )
        self.live = Gauge(
            "gadfly_live_critic",
            "Version that this replica answers with by default.",
            ("task",),
            registry=self.registry,
            multiprocess_mode="livemax",
        )
        self.watch_failing = Gauge(
            "gadfly_watch_failing",
            "1 when automatic rollback has been failing for a minute.",
            registry=self.registry,
            multiprocess_mode="livemax",
        )
        self.swaps = Counter(
            "gadfly_swaps_total", "Swaps that this replica finished.", ("kind", "outcome", "task"),
            registry=self.registry,
        )  # fmt: skip
        self.adoptions = Counter(
            "gadfly_critic_adoptions_total", "Attempts of this replica to answer with a new live critic.",
            ("outcome",), registry=self.registry,
        )  # fmt: skip
        self.loads = Counter(
            "gadfly_critic_loads_total", "Attempts to load a critic into an engine and prove it.", ("outcome",),
            registry=self.registry,
        )  # fmt: skip
        self.verdicts = Counter(
            "gadfly_verdicts_total", "Verdicts by critic.", ("critic", "verdict", "source", "task"),
            registry=self.registry,
        )  # fmt: skip
        self.grades = Counter(
            "gadfly_grades_total",
            "Answers graded against a reference.",
            ("critic", "answer", "grade", "task"),
            registry=self.registry,
        )
        self.tokens = Counter(
            "gadfly_tokens_total", "Tokens by role.", ("critic", "role", "task"), registry=self.registry
        )
        self.durable = Histogram(
            "gadfly_record_duration_seconds",
            "Time until a record is durable.",
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5),
            registry=self.registry,
        )
        self.spool_depth = Gauge(
            "gadfly_spool_records",
            "Acknowledged records that wait for Postgres.",
            registry=self.registry,
            multiprocess_mode="livesum",
        )
        self.spool_bytes = Gauge(
            "gadfly_spool_bytes", "Bytes of the spool on disk.", registry=self.registry, multiprocess_mode="livesum"
        )
        self.rejected = Gauge(
            "gadfly_spool_rejected_records",
            "Spooled records that Postgres permanently refused.",
            registry=self.registry,
            multiprocess_mode="livesum",
        )
        self.pending = Gauge(
            "gadfly_records_pending",
            "Records that wait for a commit.",
            registry=self.registry,
            multiprocess_mode="livesum",
        )
        self.run_followers = Gauge(
            "gadfly_run_followers",
            "Open event streams of training runs.",
            registry=self.registry,
            multiprocess_mode="livesum",
        )
        self.webhooks = Counter(
            "gadfly_webhook_attempts_total",
            "Attempts to deliver to a webhook: delivered, failed (tried again later), or dead (the last one failed).",
            ("outcome",),
            registry=self.registry,
        )
        for outcome in ("delivered", "failed", "dead"):
            self.webhooks.labels(outcome)  # from 0 on, so that the first of each is an increase
        self.webhooks_pending = Gauge(
            "gadfly_webhook_deliveries_pending",
            "Deliveries that wait for an attempt; only the eldest replica counts them.",
            registry=self.registry,
            multiprocess_mode="livemax",
        )
        self.ready = Gauge(
            "gadfly_ready",
            "1 when engine, database and live critic answer.",
            registry=self.registry,
            multiprocess_mode="livemin",
        )

    def observe(self, interaction: Interaction) -> None:
        """Count one answered interaction."""
        critic = "actor" if interaction.critic_version is None else str(interaction.critic_version)
        task = interaction.task
        self.observe_critiques(interaction.critic_version, interaction.critiques, task=task)
        if interaction.grade is not None:
            self.grades.labels(critic, "first", interaction.grade.value, task).inc()
        last: dict[int, Refinement] = {item.sample: item for item in interaction.refinements}
        for refinement in last.values():
            if refinement.grade is not None:
                self.grades.labels(critic, "refined", refinement.grade.value, task).inc()
        self.tokens.labels(critic, "prompt", task).inc(interaction.usage.prompt_tokens)
        self.tokens.labels(critic, "completion", task).inc(interaction.usage.completion_tokens)

    def observe_critiques(self, version: int | None, critiques: Sequence[Critique], *, task: str) -> None:
        """Count the verdicts of critiques."""
        for critique in critiques:
            if critique.supplied:
                continue  # the caller's own, or an earlier one that has been counted
            self.verdicts.labels(str(version), critique.verdict.value, critique.verdict_source.value, task).inc()

    def render(self) -> bytes:
        """The metrics in Prometheus' text format, summed over the workers."""
        if self._folder is None:
            return generate_latest(self.registry)
        every = CollectorRegistry()
        MultiProcessCollector(every, path=str(self._folder))  # type: ignore[no-untyped-call]
        return generate_latest(every)
