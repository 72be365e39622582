"""A monitored queue pool for SQLAlchemy: holders by name, bounded waits, deadlines, jittered lifetimes.

    engine = create_engine(url, **pool_options(url))
    engine = create_async_engine(url, **pool_options(url))

A subclass, since SQLAlchemy has no event before a checkout. It counts and remembers, and leaves handing out,
waiting and taking back to QueuePool. What takes longer is done by one thread for all pools of the process
(:mod:`tenfold.database.pools.monitor_thread`).
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from time import perf_counter, time
from typing import TYPE_CHECKING, Any, Literal

from tenfold.database import asyncpg, psycopg
from tenfold.database.pools import budget, monitor_thread
from tenfold.database.pools.pool_monitor import (
    PoolMonitor,
    PoolMonitorOptions,
    TimeoutMode,
    track_statements,
)
from tenfold.database.pools.statement_timeout import SESSION_DRIVERS, StatementTimeouts
from tenfold.database.urls import parse_url, server_name
from tenfold.deadlines import check_deadline, remaining_s
from tenfold.errors import DeadlineExceededError, DependencyError, PoolExhaustedError
from tenfold.metrics import POOL_SIZE, instrument
from tenfold.types import Finding

try:
    from sqlalchemy import URL, exc
    from sqlalchemy.pool import AsyncAdaptedQueuePool, PoolProxiedConnection, QueuePool
    from sqlalchemy.pool.base import _ConnectionRecord
    from sqlalchemy.util import queue
except ImportError:
    raise DependencyError(
        "pools need SQLAlchemy, which is not installed: pip install 'tenfold[database]'"
    ) from None

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

__all__ = ["AsyncMonitoredPool", "MonitoredPool", "PoolDeadlineError", "PoolTimeoutError", "pool_options"]

_RETURNED_AT = "_tenfold_returned_at"  # attribute of a record, perf_counter()
_MAX_NAME = 63  # bytes of application_name that PostgreSQL keeps


def pool_options(  # noqa: PLR0913 - one place for every option of a pool
    url: str | URL,
    *,
    name: str = "",
    pool_size: int = budget.POOL_SIZE,
    max_overflow: int = budget.MAX_OVERFLOW,
    timeout_s: float = budget.TIMEOUT_S,
    max_waiting: int | None = None,
    recycle_s: float = budget.RECYCLE_S,
    ping_after_s: float = budget.PING_AFTER_S,
    connect_timeout_s: int | None = None,
    application_name: str | None = None,
    statement_timeout: TimeoutMode = "session",
    leak_after_s: float | None = 60.0,
    idle_in_transaction_s: float = 1.0,
    stack_every: int = 20,
    root: Path | None = None,
    metrics: bool = True,
    registry: CollectorRegistry | None = None,
    connect_args: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Arguments for ``create_engine(url, **options)`` and ``create_async_engine(url, **options)`` alike.

    Args:
        url: as for the engine; psycopg, psycopg2 and asyncpg all take libpq's parameters.
        name: of the pool, in metrics and messages; "host:port/database" unless it is given.
        pool_size: connections that are kept open; the last one returned is the first to be handed out, so
            that those beyond the need stay idle.
        max_overflow: connections opened beyond these, and closed when they come back.
        timeout_s: longest wait for a connection, seconds; a deadline (:mod:`tenfold.deadlines`) shortens it.
        max_waiting: waiters beyond this number are refused at once; None is ten for each connection.
        recycle_s: a connection lives for 80 to 100 % of this, seconds.
        ping_after_s: a connection that was idle for so long is pinged before it is handed out, seconds.
        connect_timeout_s: longest wait for the server when a connection is opened, whole seconds; None is the
            URL's connect_timeout, or 10.
        application_name: what pg_stat_activity shows, the first 63 bytes; None is the URL's, or "tenfold".
        statement_timeout: how the server is told the time that a deadline leaves: for the "session", free for
            most checkouts; for each "transaction", one round trip more, which is what PgBouncer's transaction
            mode needs; or "off".
        leak_after_s: a connection held for longer is reported with its holder; None never does.
        idle_in_transaction_s: a longer pause between statements within a transaction is reported.
        stack_every: of one in so many checkouts the stack is kept, and of all for a minute after a finding.
        root: the folder of the user's code: stacks name lines below it only; None is the current folder.
        metrics: export to Prometheus, into ``registry`` (None: the default one).
        connect_args: for the driver; they win over the options above.

    Raises:
        DependencyError: metrics are wanted and prometheus-client is not installed.
        SettingsError: the URL cannot be read; its text is not shown.
    """
    target = parse_url(url)
    if max_waiting is None:
        max_waiting = (pool_size + max_overflow) * budget.WAITERS_PER_CONNECTION
    monitor_options = PoolMonitorOptions(
        name=name or server_name(target),
        max_waiting=max_waiting,
        ping_after_s=ping_after_s,
        statement_timeout=_timeout_mode(target, statement_timeout),
        leak_after_s=leak_after_s,
        idle_in_transaction_s=idle_in_transaction_s,
        stack_every=max(stack_every, 1),
        root=root or Path.cwd(),
        metrics=metrics,
        registry=registry,
    )
    if metrics:
        instrument(POOL_SIZE, registry=registry)  # so that a missing library is an error here already
    arguments = _driver_options(target, connect_timeout_s, application_name) | dict(connect_args or {})
    if target.get_driver_name() == "asyncpg":
        arguments["async_creator_fn"] = asyncpg.connect_with(arguments.get("async_creator_fn"))
    return {
        "poolclass": MonitoredPool,
        "pool_size": pool_size,
        "max_overflow": max_overflow,
        "pool_timeout": timeout_s,
        "pool_recycle": recycle_s,
        "pool_use_lifo": True,
        "monitor_options": monitor_options,
        "connect_args": arguments,
    }


def _timeout_mode(url: URL, wanted: TimeoutMode) -> TimeoutMode:
    """Fall back to transactions where the driver cannot set a session's timeout outside of one."""
    return "transaction" if wanted == "session" and url.get_driver_name() not in SESSION_DRIVERS else wanted


def _driver_options(url: URL, connect_timeout_s: int | None, application_name: str | None) -> dict[str, Any]:
    if url.get_driver_name() not in SESSION_DRIVERS:
        return {}
    options: dict[str, Any] = {}
    if application_name is None:
        options["fallback_application_name"] = "tenfold"  # which gives way to the URL's
    else:
        options["application_name"] = application_name.encode()[:_MAX_NAME].decode(errors="ignore")
    if connect_timeout_s is not None:
        options["connect_timeout"] = connect_timeout_s
    elif not {"connect_timeout", "timeout"} & url.query.keys():
        options["connect_timeout"] = budget.CONNECT_TIMEOUT_S
    return options


class PoolTimeoutError(PoolExhaustedError, exc.TimeoutError):
    """No connection came free in time; ``except sqlalchemy.exc.TimeoutError`` catches it, too."""


class PoolDeadlineError(DeadlineExceededError, exc.TimeoutError):
    """No connection came free in the time that the request had left."""


class _TooManyWaitersError(exc.TimeoutError):
    """The queue of waiters is full."""


# ------------------------------------------------------------------ the queue


class _BoundedWait:
    """In front of a queue's ``get``: a limit of waiters, and of the wait by the deadline."""

    max_waiting: int | None = None
    waiting = 0
    lock: threading.Lock

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        try:
            return super().get(False)  # type: ignore[misc]
        except queue.Empty:
            if not block:
                raise
        left_s = remaining_s()
        if left_s is not None:
            timeout = left_s if timeout is None else min(timeout, left_s)
        with self.lock:
            if self.max_waiting is not None and self.waiting >= self.max_waiting:
                raise _TooManyWaitersError
            self.waiting += 1
        try:
            return super().get(block, timeout)  # type: ignore[misc]
        finally:
            with self.lock:
                self.waiting -= 1


class _Queue(_BoundedWait, queue.Queue[Any]):
    """For threads."""


class _AsyncQueue(_BoundedWait, queue.AsyncAdaptedQueue[Any]):
    """For tasks."""


# ------------------------------------------------------------------ the pool


class MonitoredPool(QueuePool):
    """A QueuePool that knows the holders of its connections; see :func:`pool_options`."""

    _queue_class: type[queue.QueueCommon[Any]] = _Queue
    monitor: PoolMonitor
    _started = False

    def __new__(cls, *_: Any, dialect: Any = None, **__: Any) -> MonitoredPool:
        """Make the kind that the engine needs: options need not say whether it is an async one."""
        kind = AsyncMonitoredPool if dialect is not None and dialect.is_async else cls
        return super().__new__(kind)

    # create_engine() looks for the names of positional arguments here and above.
    def __init__(
        self, creator: Any, monitor_options: PoolMonitorOptions | None = None, **options: Any
    ) -> None:
        super().__init__(creator, **options)
        most = self.size() + self._max_overflow if self._max_overflow >= 0 else float("inf")
        self._adopt(PoolMonitor(monitor_options or PoolMonitorOptions(), size=self.size(), most=most))
        if self._is_asyncio and getattr(self._dialect, "driver", "") == "psycopg":
            psycopg.close_cancelled_connects(self._dialect)

    def _adopt(self, monitor: PoolMonitor) -> None:
        self.monitor = monitor
        waiters: Any = self._pool
        waiters.max_waiting, waiters.lock = monitor.options.max_waiting, threading.Lock()

    def recreate(self) -> MonitoredPool:
        """A new pool for the same engine; connections that are still out stay known."""
        pool = super().recreate()
        assert isinstance(pool, MonitoredPool)
        pool._adopt(self.monitor)
        return pool

    def connect(self) -> PoolProxiedConnection:
        """Check out a connection.

        Raises:
            PoolTimeoutError: none came back in time, or too many wait already; it names the holders.
            DeadlineExceededError: the request's time was over before one came back.
        """
        check_deadline()
        if not self._started:
            self._start()
        started = perf_counter()
        try:
            connection: Any = super().connect()
        except exc.TimeoutError as error:
            refused = isinstance(error, _TooManyWaitersError)
            raise self._exhausted_error(perf_counter() - started, refused) from None
        self.monitor.record_checkout(connection._connection_record, started)
        return connection  # type: ignore[no-any-return]

    def _start(self) -> None:
        """Prepare the first checkout: only now does the pool's dialect surely belong to its engine."""
        self._started = True
        if self.monitor.dialect is not self._dialect:
            self.monitor.dialect = self._dialect
            track_statements(self._dialect, self.monitor)
            mode = self.monitor.options.statement_timeout
            StatementTimeouts(self._dialect, None if mode == "off" else mode).attach(self)
        monitor_thread.register(self)

    def _do_get(self) -> Any:
        record: Any = super()._do_get()
        returned_at = record.__dict__.get(_RETURNED_AT)
        if returned_at is not None:
            if perf_counter() - returned_at >= self.monitor.options.ping_after_s:
                self._ping(record)
            if -1 < self._recycle < (time() - record.starttime) / (1 - budget.JITTER):
                self._recycle_early(record)
        return record

    def _do_return_conn(self, record: Any) -> None:
        self.monitor.record_return(record)
        record.__dict__[_RETURNED_AT] = perf_counter()
        super()._do_return_conn(record)

    def _dec_overflow(self) -> Literal[True]:
        # A connection that could not be opened leaves room, and QueuePool lets those who wait sleep on: one
        # of them gets the place, as a record without a connection, and tries for itself.
        if self.waiting:
            with suppress(queue.Full):
                self._pool.put(_ConnectionRecord(self, connect=False), False)
                return True
        return super()._dec_overflow()

    def _ping(self, record: Any) -> None:
        """As SQLAlchemy's pre-ping: a dead connection makes all that are as old suspect, and is replaced."""
        if record.dbapi_connection is None:
            return
        try:
            alive = self._dialect._do_ping_w_event(record.dbapi_connection)
            if not alive:
                self._invalidate_time = time()
                record.invalidate()
        except BaseException as error:  # a cancellation, too: only this method knows of the record
            record._checkin_failed(error, _fairy_was_created=False)
            raise

    def _recycle_early(self, record: Any) -> None:
        if time() - record.starttime > budget.lifetime_s(self._recycle, born=record.starttime):
            record.invalidate(soft=True)

    @property
    def waiting(self) -> int:
        """The number of checkouts that wait for a connection now."""
        waiters: Any = self._pool
        return int(waiters.waiting)

    def findings(self) -> tuple[Finding, ...]:
        """Findings about how connections are used, most frequent first."""
        return self.monitor.findings.all()

    def update(self) -> None:
        """Update metrics and look for leaks; called once a second by the monitor thread."""
        self.monitor.update(idle=self.checkedin(), overflow=max(self.overflow(), 0), waiting=self.waiting)

    def _exhausted_error(self, waited_s: float, refused: bool) -> PoolTimeoutError | PoolDeadlineError:
        self.monitor.record_failure(refused=refused)
        name, most = self.monitor.options.name, self.monitor.most
        why = (
            f"{self.waiting} already wait for the {most} of pool {name}"
            if refused
            else f"none of the {most} of pool {name} came back in {waited_s:.1f} s, {self.waiting} more wait"
        )
        kind = PoolDeadlineError if remaining_s() == 0 else PoolTimeoutError
        return kind(
            f"no connection: {why}; {self.monitor.describe_holders(max_age_s=1.0 if refused else 0.0)}; "
            "give them back sooner before you enlarge the pool"
        )


class AsyncMonitoredPool(MonitoredPool, AsyncAdaptedQueuePool):
    """The same for :func:`sqlalchemy.ext.asyncio.create_async_engine`."""

    _is_asyncio = True
    _queue_class = _AsyncQueue
    _dialect = AsyncAdaptedQueuePool._dialect
