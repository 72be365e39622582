"""The monitor of one engine's connections: who holds them, for how long, and what is wrong with that.

Kept outside of the pool, because a pool is thrown away and made anew (``Engine.dispose()``) while its
connections are still out.
"""

from __future__ import annotations

import math
import threading
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from threading import current_thread
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal

from tenfold.callsites import CallSites
from tenfold.database.pools.budget import PING_AFTER_S
from tenfold.database.pools.findings import PoolFindings
from tenfold.database.pools.holders import Holder, Owner, current_location, describe_holders
from tenfold.database.pools.pool_metrics import PoolMetrics
from tenfold.database.pools.request_context import RequestContext, current_context

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

__all__ = ["PoolMonitor", "PoolMonitorOptions", "TimeoutMode", "track_statements"]

TimeoutMode = Literal["session", "transaction", "off"]

MAX_ENDED = 100_000  # uses kept between two updates; the oldest beyond are not in the histograms
ALERT_S = 60.0  # after a finding the stack of every checkout is kept for so long
NEARLY_FULL = 0.9  # of the overflow


@dataclass(frozen=True, slots=True)
class PoolMonitorOptions:
    """The options of :func:`tenfold.database.pool_options` that SQLAlchemy does not know."""

    name: str = "default"
    max_waiting: int | None = None
    ping_after_s: float = PING_AFTER_S
    statement_timeout: TimeoutMode = "session"
    leak_after_s: float | None = 60.0
    idle_in_transaction_s: float = 1.0
    stack_every: int = 20
    root: Path = field(default_factory=Path.cwd)
    metrics: bool = False
    registry: CollectorRegistry | None = None


class PoolMonitor:
    """The holders of one engine's connections, findings about them, and metrics.

    The methods up to ``record_failure`` run in every request.
    """

    def __init__(self, options: PoolMonitorOptions, *, size: int, most: float) -> None:
        self.options = options
        self.sites = CallSites(options.root)
        self.findings = PoolFindings(options.name)
        self.dialect: Any = None  # the one whose statements are tracked
        self.holders: dict[Any, Holder] = {}  # by SQLAlchemy's connection record
        self.size, self.most = size, most
        self._nearly_full = max(size + NEARLY_FULL * (most - size), 2)  # a pool of one is meant to be full
        self._owners: dict[Owner, int] = {}  # how many connections each has
        self._ended: deque[tuple[RequestContext | None, float, float]] = deque(maxlen=MAX_ENDED)
        self._timeouts = self._refused = 0
        self._until_stack = options.stack_every
        self._alert_until = 0.0
        self._last_description = float("-inf"), ""
        self._updating = threading.Lock()
        self._metrics = PoolMetrics(options.name, options.registry) if options.metrics else None

    def record_checkout(self, record: Any, started: float) -> None:
        """Add a holder, whose checkout began at ``started``."""
        now = perf_counter()
        holder = self.holders[record] = Holder(current_context(), now, now - started)
        self._until_stack -= 1
        if self._until_stack <= 0 or now < self._alert_until:
            self._until_stack = self.options.stack_every
            holder.site = current_location(self.sites)
        owner = holder.owner
        if owner in self._owners:
            self._owners[owner] += 1
            # A thread of anyio's works for one request after the other, and their connections overlap.
            if not (owner is holder.thread and current_thread().name.startswith("AnyIO")):
                self._report("two connections at once", holder, 0.0, lambda: current_location(self.sites))
        else:
            self._owners[owner] = 1
        if len(self.holders) >= self._nearly_full:
            self._report("nearly full", None, 0.0, self.describe_holders)

    def record_return(self, record: Any) -> None:
        """Remove a holder; ``record`` may never have been handed out."""
        holder = self.holders.pop(record, None)
        if holder is None:
            return
        count = self._owners.pop(holder.owner, 1)
        if count > 1:
            self._owners[holder.owner] = count - 1
        self._ended.append((holder.context, holder.waited_s, perf_counter() - holder.since))

    def end_pause(self, holder: Holder, connection: Any) -> None:
        """Report the pause between two statements of a transaction if it was too long."""
        paused_s = perf_counter() - holder.idle_since
        holder.idle_since = 0.0
        if paused_s >= self.options.idle_in_transaction_s and not getattr(connection, "autocommit", False):
            self._report(
                "idle in a transaction",
                holder,
                paused_s,
                lambda: f"{holder.title} for {paused_s:.1f} s before {current_location(self.sites)}",
            )

    def record_failure(self, *, refused: bool) -> None:
        """Count a checkout that got no connection."""
        if refused:
            self._refused += 1
        else:
            self._timeouts += 1
        self._report("exhausted", None, 0.0, self.describe_holders)

    def describe_holders(self, *, max_age_s: float = 0.0) -> str:
        """The holders in one line, which may be ``max_age_s`` old: a refusal has to be cheap."""
        now = perf_counter()
        if now - self._last_description[0] >= max_age_s:
            text = "held by " + describe_holders(list(self.holders.values()), self.sites, now)
            self._last_description = now, text
        return self._last_description[1]

    def update(self, *, idle: int, overflow: int, waiting: int) -> None:
        """Look for leaks and update the metrics: what takes time. Called once a second."""
        with self._updating:
            now = perf_counter()
            holders = list(self.holders.values())
            for holder in holders:
                self._report_leak(holder, now)
            if len(self._owners) > len(holders):  # threads of one request raced in checkouts or returns
                self._owners = dict(Counter(holder.owner for holder in self.holders.copy().values()))
            ended = [self._ended.popleft() for _ in range(len(self._ended))]
            timeouts, self._timeouts = self._timeouts, 0
            refused, self._refused = self._refused, 0
            if self._metrics is None:
                return
            self._metrics.set_size(self.size, 0 if math.isinf(self.most) else int(self.most))
            self._metrics.set_usage(used=len(self.holders), idle=idle, overflow=overflow, waiting=waiting)
            self._metrics.count_failures(timeouts=timeouts, refused=refused)
            self._metrics.observe_uses((wait_s, use_s) for _, wait_s, use_s in ended)

    def _report_leak(self, holder: Holder, now: float) -> None:
        limit_s, age_s = self.options.leak_after_s, now - holder.since
        if limit_s is None or age_s < limit_s or holder.reported:
            return
        holder.reported = True
        text = holder.describe(self.sites, now)
        self._report("held too long", holder, age_s, lambda: f"{holder.title}, {text}")

    def _report(self, kind: str, holder: Holder | None, seconds: float, describe: Callable[[], str]) -> None:
        if self.findings.add(kind, holder.title if holder is not None else "", seconds, describe):
            self._alert_until = perf_counter() + ALERT_S


# ------------------------------------------------------------------ statements, and the pauses between them


def track_statements(dialect: Any, monitor: PoolMonitor) -> None:
    """Wrap a few methods of this one dialect: listeners to an engine's events cost 7 µs a statement.

    A wrapper that is on this dialect already is called; otherwise the class's method, looked up at each call,
    since the probe of ``tenfold measure`` may wrap it later.
    """
    for name in ("do_execute", "do_execute_no_params", "do_executemany"):
        setattr(dialect, name, _tracked_execute(dialect, name, monitor))
    for name in ("do_commit", "do_rollback"):
        setattr(dialect, name, _tracked_end(dialect, name, monitor))


def _tracked_execute(dialect: Any, name: str, monitor: PoolMonitor) -> Callable[..., Any]:
    holders, kind, former = monitor.holders, type(dialect), dialect.__dict__.get(name)

    def execute(cursor: Any, statement: str, *rest: Any, **named: Any) -> Any:
        context: Any = rest[-1] if rest else named.get("context")
        try:
            connection = context.root_connection._dbapi_connection
            holder = holders[connection._connection_record]
        except (AttributeError, KeyError):  # a statement of SQLAlchemy's own, on a connection not handed out
            return (former or getattr(kind, name).__get__(dialect))(cursor, statement, *rest, **named)
        if holder.idle_since:
            monitor.end_pause(holder, connection)
        holder.sql = statement
        try:
            return (former or getattr(kind, name).__get__(dialect))(cursor, statement, *rest, **named)
        finally:
            holder.idle_since = perf_counter()

    return execute


def _tracked_end(dialect: Any, name: str, monitor: PoolMonitor) -> Callable[[Any], Any]:
    holders, kind, former = monitor.holders, type(dialect), dialect.__dict__.get(name)

    def end(connection: Any) -> Any:
        holder = holders.get(getattr(connection, "_connection_record", None))
        if holder is not None and holder.idle_since:
            monitor.end_pause(holder, connection)
        return (former or getattr(kind, name).__get__(dialect))(connection)

    return end
