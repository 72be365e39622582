"""Aggregation of the workers' batches into ``Evidence``, in bounded memory."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
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
from tenfold.measure.probe.sample_totals import OTHER_ROUTE, OTHER_STATEMENT, SampleTotals, TextTable

try:
    from hdrh.histogram import HdrHistogram
except ImportError as error:
    raise DependencyError("hdrhistogram is not installed; install tenfold[measure]") from error

MINUTES_US = 10 * 60 * 1_000_000
STATEMENTS = 5_000  # (route, statement, site) kept apart; the others are summed up under "(other)"
LINES = 200
TICK_US = 50_000  # interval of the probe's timer in the event loop
STUCK_S = 1.0  # a loop that is late for longer, and still is at the end, is stuck


def _histogram() -> Any:
    return HdrHistogram(1, MINUTES_US, 2)


def _ms(histogram: Any, percentile: float) -> float:
    return float(histogram.get_value_at_percentile(percentile)) / 1000 if histogram.total_count else 0.0


def _us(seconds: float) -> int:
    return min(max(int(seconds * 1e6), 1), MINUTES_US)


@dataclass(frozen=True, slots=True)
class SlowHalf:
    """The slower half of a route's requests: all buckets above the median's, and its part of that bucket.

    It is determined at the end, over all requests: a route's first ones are in it when they were slow.
    """

    bucket: int = -1
    part: float = 1.0

    @classmethod
    def of(cls, counts: Mapping[int, float]) -> SlowHalf:
        """Return the slower half of requests that are counted by bucket."""
        left = sum(counts.values()) / 2
        for bucket in sorted(counts, reverse=True):
            if counts[bucket] >= left:
                return cls(bucket, left / counts[bucket] if counts[bucket] else 0.0)
            left -= counts[bucket]
        return cls()

    def sum(self, values: Mapping[int, float]) -> float:
        """Return the part of a sum by bucket that belongs to the slower half."""
        above = sum(value for bucket, value in values.items() if bucket > self.bucket)
        return above + self.part * values.get(self.bucket, 0.0)


def _bucket(seconds: float) -> int:
    """Return the bucket of a duration: eight for each doubling, 9 % wide."""
    return int(math.log2(max(seconds, 1e-6) * 1e6) * 8)


def _add(total: dict[int, float], more: Mapping[int, float]) -> None:
    for bucket, value in more.items():
        total[bucket] = total.get(bucket, 0.0) + value


@dataclass
class _RouteTotals:
    label: str
    endpoint: str
    counts: dict[int, float] = field(default_factory=dict)  # requests, by bucket of their duration
    seconds: dict[int, float] = field(default_factory=dict)
    waits: dict[int, float] = field(default_factory=dict)
    longest_s: float = 0.0
    bytes: int = 0

    def add(self, request: probe_protocol.RequestRecord) -> int:
        """Count a request; return its bucket."""
        bucket, duration = _bucket(request.duration_s), request.duration_s
        self.bytes += request.bytes
        self.longest_s = max(self.longest_s, duration)
        self.counts[bucket] = self.counts.get(bucket, 0.0) + 1
        self.seconds[bucket] = self.seconds.get(bucket, 0.0) + duration
        self.waits[bucket] = self.waits.get(bucket, 0.0) + min(request.pool_wait_s, duration)
        return bucket

    def merge(self, other: _RouteTotals) -> None:
        _add(self.counts, other.counts)
        _add(self.seconds, other.seconds)
        _add(self.waits, other.waits)
        self.bytes += other.bytes
        self.longest_s = max(self.longest_s, other.longest_s)

    @property
    def slow_half(self) -> SlowHalf:
        return SlowHalf.of(self.counts)

    def stats(self, unfinished: _Unfinished) -> RouteStats:
        slow = self.slow_half
        return RouteStats(
            route=self.label,
            endpoint=self.endpoint,
            requests=round(sum(self.counts.values())),
            total_s=sum(self.seconds.values()) + unfinished.seconds,
            slow_s=slow.sum(self.seconds) + unfinished.seconds,
            slow_wait_s=slow.sum(self.waits) + min(unfinished.wait_s, unfinished.seconds),
            longest_s=self.longest_s,
            unfinished=unfinished.count,
            unfinished_s=unfinished.longest_s,
            unfinished_waiting=unfinished.waiting,
            wait_s=sum(self.waits.values()) + min(unfinished.wait_s, unfinished.seconds),
            bytes=self.bytes,
        )


@dataclass
class _Unfinished:
    """The requests of one route that had not finished at the end of a trial."""

    count: int = 0
    seconds: float = 0.0
    longest_s: float = 0.0
    waiting: int = 0
    wait_s: float = 0.0

    def add(self, record: probe_protocol.UnfinishedRecord, *, since: float, now: float) -> None:
        """Add one worker's; their time counts from ``since`` on: earlier time belongs to earlier trials."""
        self.count += record.count
        ages = [now - max(started, since) for started in record.started]
        seconds = max(sum(ages), 0.0) * record.count / max(len(ages), 1)
        self.seconds += seconds
        self.longest_s = max(self.longest_s, record.longest_s)
        self.waiting += record.waiting
        self.wait_s += min(record.wait_s, seconds)

    def merge(self, other: _Unfinished) -> None:
        """Add those of another trial: they may be the same requests, whose times are added."""
        self.count = max(self.count, other.count)
        self.waiting = max(self.waiting, other.waiting)
        self.seconds += other.seconds
        self.wait_s += other.wait_s
        self.longest_s = max(self.longest_s, other.longest_s)


@dataclass
class _StatementTotals:
    executions: int = 0
    requests: int = 0
    executions_max: int = 0
    repeating_requests: int = 0
    repetitions: int = 0
    total_s: float = 0.0
    rows: int = 0
    seconds: dict[int, float] = field(default_factory=dict)  # by bucket of their requests' durations

    def add(self, executions: int, seconds: float, rows: float, *, bucket: int | None) -> None:
        """Add executions in one request, or outside of any (``bucket`` is None)."""
        self.executions += executions
        self.rows += int(rows)
        self.total_s += seconds
        if bucket is None:
            return
        self.seconds[bucket] = self.seconds.get(bucket, 0.0) + seconds
        self.requests += 1
        self.executions_max = max(self.executions_max, executions)
        if is_repetition(executions, seconds):
            self.repeating_requests += 1
            self.repetitions += executions

    def merge(self, other: _StatementTotals) -> None:
        for name in ("executions", "requests", "repeating_requests", "repetitions", "total_s", "rows"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.executions_max = max(self.executions_max, other.executions_max)
        _add(self.seconds, other.seconds)

    def stats(self, route: str, text: tuple[str, str, str], slow: SlowHalf) -> StatementStats:
        return StatementStats(
            route=route,
            fingerprint=text[0],
            site=text[1],
            database=text[2],
            executions=self.executions,
            requests=self.requests,
            executions_max=self.executions_max,
            repeating_requests=self.repeating_requests,
            repetitions_mean=self.repetitions / max(self.repeating_requests, 1),
            total_s=self.total_s,
            slow_s=slow.sum(self.seconds),
            mean_ms=self.total_s * 1000 / max(self.executions, 1),
            rows=self.rows,
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
    held_after: int = 0
    waits_now: dict[tuple[int, int], tuple[int, float]] = field(
        default_factory=dict
    )  # by owner: as of its last batch
    waits: Any = field(default_factory=_histogram)

    def add(self, owner: int, state: probe_protocol.PoolRecord, seconds: float) -> None:
        if len(self.owners) < 1_000:
            self.owners.add((owner, state.number))
            self.waits_now[owner, state.number] = (state.waiting, state.waiting_s)
        self.seconds += seconds
        self.full_s += min(state.full_s, seconds)
        self.held_s += state.held_s
        self.checked_out_max = max(self.checked_out_max, state.checked_out_max)
        self.checkouts += state.checkouts
        self.wait_count += state.wait_count
        self.timeouts += state.timeouts
        self.held_after = max(self.held_after, state.held_after)
        for wait in state.waits_s:
            self.waits.record_value(_us(wait))

    def merge(self, other: _PoolTotals) -> None:
        self.owners |= other.owners
        for name in ("seconds", "full_s", "held_s", "checkouts", "wait_count", "timeouts"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.checked_out_max = max(self.checked_out_max, other.checked_out_max)
        self.held_after = max(self.held_after, other.held_after)
        for owner, (count, longest_s) in other.waits_now.items():
            mine = self.waits_now.get(owner, (0, 0.0))
            self.waits_now[owner] = (max(mine[0], count), max(mine[1], longest_s))
        self.waits.add(other.waits)

    @property
    def waiting(self) -> int:
        """Checkouts that waited at the end of a trial."""
        return sum(count for count, _ in self.waits_now.values())

    @property
    def waiting_s(self) -> float:
        """The longest of them, so far."""
        return max((longest_s for _, longest_s in self.waits_now.values()), default=0.0)

    @property
    def is_used(self) -> bool:
        return self.checkouts + self.timeouts + self.waiting > 0 or self.full_s > 0

    def wait_ms(self, percentile: float) -> float:
        """Return a percentile over all checkouts; one that got a connection at once waited 0 ms."""
        checkouts = max(self.checkouts + self.timeouts, self.wait_count) + self.waiting
        if self.waiting and percentile > 100 * (1 - self.waiting / checkouts):
            return self.waiting_s * 1000  # those that still wait are taken to wait the longest
        at_once = 100 * (1 - (self.wait_count + self.waiting) / max(checkouts, 1))
        if percentile <= at_once or not self.wait_count:
            return 0.0
        return _ms(self.waits, min(100 * (percentile - at_once) * checkouts / (100 * self.wait_count), 100))

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
            waiting=self.waiting,
            waiting_s=self.waiting_s,
            held_after=self.held_after,
            in_use=self._in_use(key[1] + max(key[2], 0)),
        )

    def _in_use(self, connections: int) -> float:
        return min(self.held_s / (connections * self.seconds), 1.0) if connections and self.seconds else 1.0


class Aggregate:
    """Totals since ``since`` (``time.perf_counter()``); finished requests that started earlier do not count.

    Aggregates of several trials are merged into one.
    """

    def __init__(self, since: float) -> None:
        self.since = since
        self._workers: set[int] = set()
        self._routes: dict[str, _RouteTotals] = {}
        self._statements: dict[tuple[str, tuple[str, str, str]], _StatementTotals] = {}
        self._pools: dict[tuple[str, int, int], _PoolTotals] = {}
        self._lags = _histogram()
        self._blockers: Counter[str] = Counter()
        self._threads = [0.0, 0.0, 0, 0, 0]  # seconds, seconds with waiters, total, busy_max, waiting_max
        self._unfinished: dict[int, dict[str, _Unfinished]] = {}  # by worker, as of its last batch
        self._unfinished_at: dict[int, Mapping[str, int]] = {}
        self._endpoints: dict[str, str] = {}
        self._finished_at = since  # the last one
        self._stalled_s = 0.0  # the longest time without a finished request at the end of a merged trial
        self._late: dict[int, float] = {}  # of the workers' event loops, as of their last batches
        self._pool_kinds: set[str] = set()
        self._has_statements = False
        self._dropped = 0
        self.samples = SampleTotals()
        self._ended: float | None = None  # of a merged one: the sum of its parts' seconds after ``since``

    @classmethod
    def merge(cls, parts: Sequence[tuple[Aggregate, float]]) -> Aggregate:
        """Return the sum of several trials' aggregates, each with the time at which it ended."""
        whole = cls(0.0)
        for part, now in parts:
            whole._merge(part)
            whole._stalled_s = max(whole._stalled_s, part._stall(now))
            whole._ended = (whole._ended or 0.0) + now - part.since
        return whole

    def _merge(self, other: Aggregate) -> None:
        self._workers |= other._workers
        for label, route in other._routes.items():
            self._routes.setdefault(label, _RouteTotals(label, route.endpoint)).merge(route)
        for key, statement in other._statements.items():
            self._statements.setdefault(key, _StatementTotals()).merge(statement)
        for pool_key, pool in other._pools.items():
            self._pools.setdefault(pool_key, _PoolTotals()).merge(pool)
        self._lags.add(other._lags)
        self._blockers.update(other._blockers)
        seconds, waiting, *most = other._threads
        self._threads[:2] = [self._threads[0] + seconds, self._threads[1] + waiting]
        self._threads[2:] = [max(pair) for pair in zip(self._threads[2:], most, strict=True)]
        for worker, by_route in other._unfinished.items():
            mine = self._unfinished.setdefault(worker, {})
            for label, unfinished in by_route.items():
                mine.setdefault(label, _Unfinished()).merge(unfinished)
        self._unfinished_at.update({key: lines for key, lines in other._unfinished_at.items() if lines})
        self._endpoints.update(other._endpoints)
        for worker, late_s in other._late.items():
            self._late[worker] = max(self._late.get(worker, 0.0), late_s)
        self._pool_kinds |= other._pool_kinds
        self._has_statements |= other._has_statements
        self._dropped += other._dropped
        self.samples.merge(other.samples)

    def add(self, worker: int, batch: probe_protocol.Batch, texts: TextTable, *, now: float) -> None:
        """Add one worker's batch, whose texts are in ``texts`` already."""
        self._workers.add(worker)
        self._has_statements |= batch.has_statements
        self._dropped += batch.dropped
        self._pool_kinds.update(batch.pool_kinds)
        self._add_unfinished(worker, batch, texts, now=now)
        for request in batch.requests:
            if request.started >= self.since:
                self._add_request(request, texts)
        if now - batch.seconds >= self.since:  # else it covers time before ``since``, too
            for number, (executions, seconds, *rows) in batch.outside.items():
                totals = self._statement_totals("", texts.statement(number))
                totals.add(int(executions), seconds, sum(rows), bucket=None)
            self._add_process(worker, batch)
            self.samples.add(worker, batch, texts)

    def evidence(self, now: float) -> Evidence:
        """Return the evidence so far."""
        slow = {label: route.slow_half for label, route in self._routes.items()}
        statements = [
            totals.stats(*key, slow.get(key[0]) or SlowHalf.of(totals.seconds))
            for key, totals in self._statements.items()
        ]
        ranked = sorted(statements, key=lambda stats: -stats.total_s)
        routes = self._route_stats()
        lines = tuple(self._blockers.most_common(10))
        return Evidence(
            seconds=now - self.since if self._ended is None else self._ended,
            workers=len(self._workers),
            seen={
                "requests": bool(routes),
                "statements": self._has_statements,
                "pool": any(pool.is_used for pool in self._pools.values()),
                "event loop": self._lags.total_count > 0 or self._stuck_s > STUCK_S,
                "threads": self._threads[0] > 0,
            },
            routes=routes,
            statements=tuple(one for one in ranked if one.database != probe_protocol.HTTP),
            calls=tuple(one for one in ranked if one.database == probe_protocol.HTTP),
            pools=tuple(pool.stats(key) for key, pool in self._pools.items() if pool.is_used),
            loop=self._loop_stats(lines),
            threads=self._thread_stats(),
            stalled_s=self._stall(now),
            unfinished_at=tuple(self._stuck_lines().most_common(10)),
            pool_kinds=tuple(sorted(self._pool_kinds)),
            dropped=self._dropped,
            samples=self.samples.stats(),
            stacks=self.samples.most_frequent_stacks(),
            loop_clock=self.samples.clock("loop"),
            thread_clock=self.samples.clock("threads"),
            memory=self.samples.memory(),
        )

    def _stall(self, now: float) -> float:
        """Return for how long no request has finished, if some are waiting; 0 otherwise."""
        if self._ended is not None or not any(self._unfinished.values()):
            return self._stalled_s
        return max(now - self._finished_at, 0.0)

    def _route_stats(self) -> tuple[RouteStats, ...]:
        unfinished: dict[str, _Unfinished] = {}
        for by_route in self._unfinished.values():
            for label, one in by_route.items():
                total = unfinished.setdefault(label, _Unfinished())
                total.count += one.count
                total.seconds += one.seconds
                total.waiting += one.waiting
                total.wait_s += one.wait_s
                total.longest_s = max(total.longest_s, one.longest_s)
        routes = {label: _RouteTotals(label, self._endpoints.get(label, "")) for label in unfinished}
        routes |= self._routes
        stats = [route.stats(unfinished.get(label, _Unfinished())) for label, route in routes.items()]
        return tuple(sorted(stats, key=lambda one: -one.total_s))

    def _stuck_lines(self) -> Counter[str]:
        lines: Counter[str] = Counter()
        for of_worker in self._unfinished_at.values():
            lines.update(of_worker)
        return lines

    def _add_unfinished(
        self, worker: int, batch: probe_protocol.Batch, texts: TextTable, *, now: float
    ) -> None:
        """Replace what the worker's earlier batch said of its running requests."""
        by_route: dict[str, _Unfinished] = {}
        for record in batch.unfinished:
            label, endpoint = texts.route(record.route)
            self._endpoints[label] = endpoint
            by_route.setdefault(label, _Unfinished()).add(record, since=self.since, now=now)
        self._unfinished[worker] = by_route
        self._unfinished_at[worker] = batch.unfinished_at
        self._late[worker] = min(batch.loop_late_s, now - self.since)

    def _add_request(self, request: probe_protocol.RequestRecord, texts: TextTable) -> None:
        label, endpoint = texts.route(request.route)
        route = self._routes.get(label)
        if route is None:
            route = self._routes[label] = _RouteTotals(label, endpoint)
        bucket = route.add(request)
        self._finished_at = max(self._finished_at, request.started + request.duration_s)
        for number, (executions, seconds, *rows) in request.executions.items():
            totals = self._statement_totals(label, texts.statement(number))
            totals.add(int(executions), seconds, sum(rows), bucket=bucket)

    def _statement_totals(self, route: str, text: tuple[str, str, str]) -> _StatementTotals:
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

    @property
    def _stuck_s(self) -> float:
        return max(self._late.values(), default=0.0)

    def _loop_stats(self, lines: tuple[tuple[str, int], ...]) -> LoopStats | None:
        stuck_s = self._stuck_s if self._stuck_s > STUCK_S else 0.0
        if not self._lags.total_count and not stuck_s:
            return None
        lags = _histogram()
        lags.add(self._lags)
        if stuck_s:  # as much as if it had run just now
            lags.record_corrected_value(_us(stuck_s), TICK_US)
        return LoopStats(
            ticks=int(lags.total_count),
            p50_ms=_ms(lags, 50),
            p95_ms=_ms(lags, 95),
            max_ms=_ms(lags, 100),
            blockers=lines,
            stuck_s=stuck_s,
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
