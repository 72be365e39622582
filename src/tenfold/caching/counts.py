"""Counts of lookups by function and outcome: in the process, for Prometheus, and summed in Redis.

Outcomes: ``memory``, ``redis`` and ``coalesced`` are hits; ``load`` is a miss; ``error`` a load because Redis
did not answer; ``unstored``, ``unkeyable`` and ``undecodable`` say what was not cached; ``refreshed`` is a
load in the background; ``agreed`` and ``stale`` are hits that were compared with a load; ``delayed``
an invalidation that Redis did not take at once.
"""

from __future__ import annotations

import threading
from collections import Counter
from typing import TYPE_CHECKING, Any

from tenfold.metrics import CACHE_LOAD_SECONDS, CACHE_LOOKUPS, instrument

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

__all__ = ["HITS", "Counts"]

HITS = ("memory", "redis", "coalesced")
_KEEP_S = 24 * 3600


class Counts:
    """Counts lookups. Thread-safe.

    Args:
        metrics: export them to Prometheus, into ``registry`` (None: the default one).
    """

    def __init__(self, *, metrics: bool, registry: CollectorRegistry | None) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[tuple[str, str]] = Counter()
        self._flushed: Counter[tuple[str, str]] = Counter()
        self._children: dict[tuple[str, str], Any] = {}
        self._lookups: Any = instrument(CACHE_LOOKUPS, registry=registry) if metrics else None
        self._seconds: Any = instrument(CACHE_LOAD_SECONDS, registry=registry) if metrics else None

    def add(self, function: str, outcome: str) -> None:
        """Count one lookup."""
        label = function, outcome
        with self._lock:
            self._counts[label] += 1
        if self._lookups is not None:
            child = self._children.get(label)
            if child is None:
                child = self._children[label] = self._lookups.labels(*label)
            child.inc()

    def record_load(self, function: str, seconds: float) -> None:
        """Record how long a load took."""
        if self._seconds is not None:
            self._seconds.labels(function).observe(seconds)

    def by_function(self) -> dict[str, dict[str, int]]:
        """The counts of this process."""
        with self._lock:
            items = list(self._counts.items())
        found: dict[str, dict[str, int]] = {}
        for (function, outcome), count in items:
            found.setdefault(function, {})[outcome] = count
        return found

    def flush(self, prefix: str, client: Any) -> None:
        """Add what was counted since the last time to the sums of all processes, kept in Redis for a day."""
        with self._lock:
            counts = Counter(self._counts)
        changed = counts - self._flushed
        if not changed:
            return
        pipeline = (
            client.pipeline() if hasattr(client, "cluster_slots") else client.pipeline(transaction=False)
        )
        for (function, outcome), count in changed.items():
            pipeline.hincrby(f"{prefix}counts", f"{outcome} {function}", count)
        pipeline.expire(f"{prefix}counts", _KEEP_S)
        pipeline.execute()
        self._flushed = counts
