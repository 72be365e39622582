"""How reads found their server, counted: how many had to ask, to wait, or to go to the primary."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from tenfold import metrics
from tenfold.database.replicas.servers import Member

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

__all__ = ["HOW", "How", "ReadFigures", "Tally"]

How = Literal["anywhere", "known", "asked", "waited", "primary"]
HOW: Mapping[How, str] = {
    "anywhere": "its reader had seen nothing",
    "known": "the connection was known to have seen enough",
    "asked": "the replica was asked where it is",
    "waited": "the replica was waited for",
    "primary": "no replica could serve it",
}


class Tally:
    """Counts reads by :data:`How` and server. Thread-safe, exact."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[tuple[How, str]] = Counter()

    def add(self, how: How, server: str) -> None:
        """One read more."""
        with self._lock:
            self._counts[how, server] += 1

    def counts(self) -> dict[tuple[How, str], int]:
        """All so far."""
        with self._lock:
            return dict(self._counts)


class ReadFigures:
    """A router's numbers in Prometheus, updated once a second by the monitor thread.

    Raises:
        DependencyError: prometheus-client is not installed.
    """

    def __init__(
        self, tally: Tally, replicas: Sequence[Member], *, registry: CollectorRegistry | None = None
    ) -> None:
        def of(metric: metrics.Metric) -> Any:
            return metrics.instrument(metric, registry=registry)

        self._tally, self._replicas = tally, replicas
        self._reads = of(metrics.READS)
        self._lag_s, self._lag_bytes = of(metrics.REPLICA_LAG_SECONDS), of(metrics.REPLICA_LAG_BYTES)
        self._serving = of(metrics.REPLICA_SERVING)
        self._told: dict[tuple[How, str], int] = {}

    def look(self) -> None:
        """What was counted since the last time, and how the replicas are."""
        counts = self._tally.counts()
        for (how, server), count in counts.items():
            self._reads.labels(server, how).inc(count - self._told.get((how, server), 0))
        self._told = counts
        for replica in self._replicas:
            lag = replica.health.lag
            self._lag_s.labels(replica.name).set(lag.seconds)
            self._lag_bytes.labels(replica.name).set(lag.bytes)
            self._serving.labels(replica.name).set(replica.health.serving)
