"""Counters of reads by how their server was found, and the router's Prometheus metrics."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from tenfold import metrics
from tenfold.database.replicas.servers import DatabaseServer

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

__all__ = ["READ_OUTCOMES", "ReadCounters", "ReadMetrics", "ReadOutcome"]

ReadOutcome = Literal["no_token", "known_fresh", "asked_replica", "waited_for_replica", "primary"]
READ_OUTCOMES: Mapping[ReadOutcome, str] = {
    "no_token": "its reader had seen nothing: any replica would do",
    "known_fresh": "the connection was known to have replayed the token",
    "asked_replica": "the replica was asked for its position",
    "waited_for_replica": "the replica was waited for",
    "primary": "no replica could serve it",
}


class ReadCounters:
    """Counts of reads by :data:`ReadOutcome` and server. Thread-safe, exact."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[tuple[ReadOutcome, str]] = Counter()

    def increment(self, outcome: ReadOutcome, server: str) -> None:
        """Count one read."""
        with self._lock:
            self._counts[outcome, server] += 1

    def counts(self) -> dict[tuple[ReadOutcome, str], int]:
        """All so far."""
        with self._lock:
            return dict(self._counts)


class ReadMetrics:
    """A router's Prometheus metrics, updated once a second by the monitor thread.

    Raises:
        DependencyError: prometheus-client is not installed.
    """

    def __init__(
        self,
        counters: ReadCounters,
        replicas: Sequence[DatabaseServer],
        *,
        registry: CollectorRegistry | None = None,
    ) -> None:
        def instrument(metric: metrics.Metric) -> Any:
            return metrics.instrument(metric, registry=registry)

        self._counters, self._replicas = counters, replicas
        self._reads = instrument(metrics.READS)
        self._lag_s = instrument(metrics.REPLICA_LAG_SECONDS)
        self._lag_bytes = instrument(metrics.REPLICA_LAG_BYTES)
        self._serving = instrument(metrics.REPLICA_SERVING)
        self._exported: dict[tuple[ReadOutcome, str], int] = {}

    def update(self) -> None:
        """Export what was counted since the last call, and the state of the replicas."""
        counts = self._counters.counts()
        for (outcome, server), count in counts.items():
            self._reads.labels(server, outcome).inc(count - self._exported.get((outcome, server), 0))
        self._exported = counts
        for replica in self._replicas:
            lag = replica.health.lag
            self._lag_s.labels(replica.name).set(lag.seconds)
            self._lag_bytes.labels(replica.name).set(lag.bytes)
            self._serving.labels(replica.name).set(replica.health.is_serving)
