"""Aggregation of the workers' batches into ``Evidence``, in bounded memory."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from tenfold.errors import DependencyError
from tenfold.measure.probe import probe_protocol
from tenfold.measure.probe.evidence import (
    Evidence,
    LoopStats,
    PoolStats,
    RouteStats,
    StatementStats,
    ThreadStats,
    is_repetition,
)

try:
    from hdrh.histogram import HdrHistogram
except ImportError as error:
    raise DependencyError("hdrhistogram is not installed; install tenfold[measure]") from error

MINUTES_US = 10 * 60 * 1_000_000
STATEMENTS = 5_000  # (route, statement, site) kept apart; the others are summed up under "(other)"
MEDIAN_EVERY = 50  # requests of a route between two updates of its median
LINES = 200
TICK_US = 50_000  # interval of the probe's timer in the event loop

OTHER_ROUTE = ("(other)", "")
OTHER_STATEMENT = ("(other)", "")


def _histogram() -> Any:
    return HdrHistogram(1, MINUTES_US, 2)


def _ms(histogram: Any, percentile: float) -> float:
    return float(histogram.get_value_at_percentile(percentile)) / 1000 if histogram.total_count else 0.0


def _us(seconds: float) -> int:
    return min(max(int(seconds * 1e6), 1), MINUTES_US)


@dataclass
class TextTable:
    """Routes and statements of one connection, by the numbers that stand for them in its batches."""

    routes: dict[int, tuple[str, str]] = field(default_factory=lambda: {probe_protocol.OTHER: OTHER_ROUTE})
    statements: dict[int, tuple[str, str]] = field(
        default_factory=lambda: {probe_protocol.OTHER: OTHER_STATEMENT}
    )

    def add(self, batch: probe_protocol.Batch) -> None:
        """Add the batch's new texts."""
        for route in batch.routes:
            self.routes[route.number] = (f"{route.method} {route.path}", route.endpoint)
        for text in batch.statements:
            self.statements[text.number] = (text.fingerprint, text.site)

    def route(self, number: int) -> tuple[str, str]:
        """Return a route's label and endpoint."""
        return self.routes.get(number, OTHER_ROUTE)

    def statement(self, number: int) -> tuple[str, str]:
        """Return a statement's fingerprint and call site."""
        return self.statements.get(number, OTHER_STATEMENT)


@dataclass
class _RouteTotals:
    label: str
    endpoint: str
    requests: int = 0
    total_s: float = 0.0
    slow_s: float = 0.0
    slow_wait_s: float = 0.0
    median_s: float = math.inf
    histogram: Any = field(default_factory=_histogram)

    def add(self, request: probe_protocol.RequestRecord) -> bool:
        """Count a request; return whether it is slower than its route's median."""
        self.requests += 1
        self.total_s += request.duration_s
        self.histogram.record_value(_us(request.duration_s))
        if self.requests % MEDIAN_EVERY == 0 or self.requests == 10:
            self.median_s = _ms(self.histogram, 50) / 1000
        slow = request.duration_s > self.median_s
        if slow:
            self.slow_s += request.duration_s
            self.slow_wait_s += min(request.pool_wait_s, request.duration_s)
        return slow

    def stats(self) -> RouteStats:
        return RouteStats(
            route=self.label,
            endpoint=self.endpoint,
            requests=self.requests,
            total_s=self.total_s,
            slow_s=self.slow_s,
            slow_wait_s=self.slow_wait_s,
        )


@dataclass
class _StatementTotals:
    executions: int = 0
    requests: int = 0
    executions_max: int = 0
    repeating_requests: int = 0
    repetitions: int = 0
    total_s: float = 0.0
    slow_s: float = 0.0

    def add(self, executions: int, seconds: float, *, slow: bool, request: bool) -> None:
        self.executions += executions
        self.total_s += seconds
        self.slow_s += seconds if slow else 0.0
        if not request:
            return
        self.requests += 1
        self.executions_max = max(self.executions_max, executions)
        if is_repetition(executions, seconds):
            self.repeating_requests += 1
            self.repetitions += executions

    def stats(self, route: str, text: tuple[str, str]) -> StatementStats:
        return StatementStats(
            route=route,
            fingerprint=text[0],
            site=text[1],
            executions=self.executions,
            requests=self.requests,
            executions_max=self.executions_max,
            repeating_requests=self.repeating_requests,
            repetitions_mean=self.repetitions / max(self.repeating_requests, 1),
            total_s=self.total_s,
            slow_s=self.slow_s,
            mean_ms=self.total_s * 1000 / max(self.executions, 1),
        )


@dataclass
class _PoolTotals:
    owners: set[tuple[int, int]] = field(default_factory=set)
    seconds: float = 0.0
    full_s: float = 0.0
    held_s: float = 0.0
    checked_out_max: int = 0
    checkouts: int = 0
    wait_count: int = 0
    timeouts: int = 0
    waits: Any = field(default_factory=_histogram)

    def add(self, owner: int, state: probe_protocol.PoolRecord, seconds: float) -> None:
        if len(self.owners) < 1_000:
            self.owners.add((owner, state.number))
        self.seconds += seconds
        self.full_s += min(state.full_s, seconds)
        self.held_s += state.held_s
        self.checked_out_max = max(self.checked_out_max, state.checked_out_max)
        self.checkouts += state.checkouts
        self.wait_count += state.wait_count
        self.timeouts += state.timeouts
        for wait in state.waits_s:
            self.waits.record_value(_us(wait))

    @property
    def is_used(self) -> bool:
        return self.checkouts + self.timeouts > 0 or self.full_s > 0

    def wait_ms(self, percentile: float) -> float:
        """Return a percentile over all checkouts; one that got a connection at once waited 0 ms."""
        at_once = 100 * (1 - self.wait_count / max(self.checkouts + self.timeouts, self.wait_count, 1))
        if percentile <= at_once:
            return 0.0
        return _ms(self.waits, 100 * (percentile - at_once) / (100 - at_once))

    def stats(self, key: tuple[str, int, int]) -> PoolStats:
        return PoolStats(
            site=key[0],
            size=key[1],
            max_overflow=key[2],
            pools=len(self.owners),
            checked_out_max=self.checked_out_max,
            checkouts=self.checkouts,
            wait_count=self.wait_count,
            timeouts=self.timeouts,
            held_s=self.held_s,
            full_share=self.full_s / self.seconds if self.seconds else 0.0,
            wait_p95_ms=self.wait_ms(95),
        )


class Aggregate:
    """Totals since ``since`` (``time.perf_counter()``); requests that started earlier are not counted."""

    def __init__(self, since: float) -> None:
        self.since = since
        self._workers: set[int] = set()
        self._routes: dict[str, _RouteTotals] = {}
        self._statements: dict[tuple[str, tuple[str, str]], _StatementTotals] = {}
        self._pools: dict[tuple[str, int, int], _PoolTotals] = {}
        self._lags = _histogram()
        self._blockers: Counter[str] = Counter()
        self._threads = [0.0, 0.0, 0, 0, 0]  # seconds, seconds with waiters, total, busy_max, waiting_max
        self._sqlalchemy = False
        self._dropped = 0

    def add(self, worker: int, batch: probe_protocol.Batch, texts: TextTable, *, now: float) -> None:
        """Add one worker's batch, whose texts are in ``texts`` already."""
        self._workers.add(worker)
        self._sqlalchemy |= batch.sqlalchemy
        self._dropped += batch.dropped
        for request in batch.requests:
            if request.started >= self.since:
                self._add_request(request, texts)
        if now - batch.seconds >= self.since:  # else it covers time before ``since``, too
            for number, (executions, seconds) in batch.outside.items():
                totals = self._statement_totals("", texts.statement(number))
                totals.add(int(executions), seconds, slow=False, request=False)
            self._add_process(worker, batch)

    def evidence(self, now: float) -> Evidence:
        """Return the evidence so far."""
        statements = [totals.stats(*key) for key, totals in self._statements.items()]
        lines = tuple(self._blockers.most_common(10))
        return Evidence(
            seconds=now - self.since,
            workers=len(self._workers),
            seen={
                "requests": bool(self._routes),
                "sqlalchemy": self._sqlalchemy,
                "pool": any(pool.is_used for pool in self._pools.values()),
                "event loop": self._lags.total_count > 0,
                "threads": self._threads[0] > 0,
            },
            routes=tuple(
                sorted((r.stats() for r in self._routes.values()), key=lambda stats: -stats.total_s)
            ),
            statements=tuple(sorted(statements, key=lambda stats: -stats.total_s)),
            pools=tuple(pool.stats(key) for key, pool in self._pools.items() if pool.is_used),
            loop=self._loop_stats(lines),
            threads=self._thread_stats(),
            dropped=self._dropped,
        )

    def _add_request(self, request: probe_protocol.RequestRecord, texts: TextTable) -> None:
        label, endpoint = texts.route(request.route)
        route = self._routes.get(label)
        if route is None:
            route = self._routes[label] = _RouteTotals(label, endpoint)
        slow = route.add(request)
        for number, (executions, seconds) in request.executions.items():
            totals = self._statement_totals(label, texts.statement(number))
            totals.add(int(executions), seconds, slow=slow, request=True)

    def _statement_totals(self, route: str, text: tuple[str, str]) -> _StatementTotals:
        key = (route, text)
        if key not in self._statements and len(self._statements) >= STATEMENTS:
            key = (OTHER_ROUTE[0], OTHER_STATEMENT)
        return self._statements.setdefault(key, _StatementTotals())

    def _add_process(self, worker: int, batch: probe_protocol.Batch) -> None:
        for state in batch.pools:
            key = (state.site, state.size, state.max_overflow)
            if key in self._pools or len(self._pools) < 100:
                self._pools.setdefault(key, _PoolTotals()).add(worker, state, batch.seconds)
        for lag in batch.lags_s:
            self._lags.record_corrected_value(_us(lag), TICK_US)
        for line, times in batch.blockers.items():
            if line in self._blockers or len(self._blockers) < LINES:
                self._blockers[line] += times
        if batch.threads_busy >= 0:
            threads = self._threads
            threads[0] += batch.seconds
            threads[1] += batch.seconds if batch.threads_waiting else 0.0
            threads[2] = max(threads[2], batch.threads_total)
            threads[3] = max(threads[3], batch.threads_busy)
            threads[4] = max(threads[4], batch.threads_waiting)

    def _loop_stats(self, lines: tuple[tuple[str, int], ...]) -> LoopStats | None:
        if not self._lags.total_count:
            return None
        return LoopStats(
            ticks=int(self._lags.total_count),
            p50_ms=_ms(self._lags, 50),
            p95_ms=_ms(self._lags, 95),
            max_ms=_ms(self._lags, 100),
            blockers=lines,
        )

    def _thread_stats(self) -> ThreadStats | None:
        seconds, waiting, total, busy, waiters = self._threads
        if not seconds:
            return None
        return ThreadStats(
            total=int(total),
            busy_max=int(busy),
            waiting_max=int(waiters),
            waiting_share=waiting / seconds,
        )
