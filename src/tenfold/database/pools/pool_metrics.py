"""A pool's Prometheus metrics, under the names of OpenTelemetry.

https://opentelemetry.io/docs/specs/semconv/database/database-metrics/#connection-pools: dots are underscores,
the unit is a suffix. The metrics that begin with tenfold's name are its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from tenfold import metrics

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry


class PoolMetrics:
    """The instruments of one pool. Written by the monitor thread, never where a request waits."""

    def __init__(self, pool: str, registry: CollectorRegistry | None = None) -> None:
        def instrument(metric: metrics.Metric) -> Any:
            return metrics.instrument(metric, registry=registry)

        count = instrument(metrics.POOL_CONNECTIONS)
        self._used, self._idle = count.labels(pool, "used"), count.labels(pool, "idle")
        self._size = instrument(metrics.POOL_SIZE).labels(pool)
        self._most = instrument(metrics.POOL_MAX).labels(pool)
        self._overflow = instrument(metrics.POOL_OVERFLOW).labels(pool)
        self._waiting = instrument(metrics.POOL_WAITING).labels(pool)
        self._timeouts = instrument(metrics.POOL_TIMEOUTS).labels(pool)
        self._refused = instrument(metrics.POOL_REFUSED).labels(pool)
        self._wait_s = instrument(metrics.POOL_WAIT_SECONDS).labels(pool)
        self._use_s = instrument(metrics.POOL_USE_SECONDS).labels(pool)

    def set_size(self, size: int, most: int) -> None:
        """Set how many connections the pool keeps, and how many it opens at the most."""
        self._size.set(size)
        self._most.set(most)

    def set_usage(self, *, used: int, idle: int, overflow: int, waiting: int) -> None:
        """Set the pool's current use."""
        self._used.set(used)
        self._idle.set(idle)
        self._overflow.set(overflow)
        self._waiting.set(waiting)

    def observe_uses(self, ended: Iterable[tuple[float, float]]) -> None:
        """Add the uses that ended: seconds waited for the connection, seconds it was held."""
        for waited_s, used_s in ended:
            self._wait_s.observe(waited_s)
            self._use_s.observe(used_s)

    def count_failures(self, *, timeouts: int, refused: int) -> None:
        """Add the checkouts that got no connection since the last call."""
        self._timeouts.inc(timeouts)
        self._refused.inc(refused)
