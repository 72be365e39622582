"""A pool's numbers in Prometheus, under the names that OpenTelemetry gives them.

https://opentelemetry.io/docs/specs/semconv/database/database-metrics/#connection-pools: dots are underscores,
the unit is a suffix. The label ``route`` is tenfold's own, as are the metrics that begin with its name.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from tenfold import metrics
from tenfold.database.pools.request_context import NOBODY

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

ROUTES = 200  # told apart; whatever comes on top is "other"


class Figures:
    """The instruments of one pool. Written by the watcher's thread, never where a request waits."""

    def __init__(self, pool: str, registry: CollectorRegistry | None = None) -> None:
        def of(metric: metrics.Metric) -> Any:
            return metrics.instrument(metric, registry=registry)

        count = of(metrics.POOL_CONNECTIONS)
        self._used, self._idle = count.labels(pool, "used"), count.labels(pool, "idle")
        self._size = of(metrics.POOL_SIZE).labels(pool)
        self._most = of(metrics.POOL_MAX).labels(pool)
        self._overflow = of(metrics.POOL_OVERFLOW).labels(pool)
        self._waiting = of(metrics.POOL_WAITING).labels(pool)
        self._timeouts = of(metrics.POOL_TIMEOUTS).labels(pool)
        self._refused = of(metrics.POOL_REFUSED).labels(pool)
        self._wait_s, self._use_s = of(metrics.POOL_WAIT_SECONDS), of(metrics.POOL_USE_SECONDS)
        self._pool = pool
        self._routes: dict[str, tuple[Any, Any]] = {}

    def sized(self, size: int, most: int) -> None:
        """How many connections the pool keeps, and how many it opens at the most."""
        self._size.set(size)
        self._most.set(most)

    def now(self, *, used: int, idle: int, overflow: int, waiting: int) -> None:
        """What the pool looks like at this moment."""
        self._used.set(used)
        self._idle.set(idle)
        self._overflow.set(overflow)
        self._waiting.set(waiting)

    def uses(self, ended: Iterable[tuple[str, float, float]]) -> None:
        """Connections that came back: route, seconds waited for, seconds used."""
        for route, waited_s, used_s in ended:
            wait, use = self._by_route(route)
            wait.observe(waited_s)
            use.observe(used_s)

    def failures(self, *, timeouts: int, refused: int) -> None:
        """Checkouts that got nothing since the last call."""
        self._timeouts.inc(timeouts)
        self._refused.inc(refused)

    def _by_route(self, route: str) -> tuple[Any, Any]:
        found = self._routes.get(route)
        if found is None:
            if len(self._routes) >= ROUTES and route != NOBODY:
                return self._by_route(NOBODY)
            labels = (self._pool, route)
            found = self._routes[route] = self._wait_s.labels(*labels), self._use_s.labels(*labels)
        return found
