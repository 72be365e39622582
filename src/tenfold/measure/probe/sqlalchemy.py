"""Hooks into SQLAlchemy: every statement of every engine, and every pool's checkouts and waits.

A few methods are wrapped: a dialect's ``do_execute`` and its variants, ``do_commit``, ``do_rollback``, and
the pool's checkout and return. Sync and async engines go through the same ones, whenever they were created.
``Engine``'s events would do for statements, too, but a listener puts every execution on SQLAlchemy's slower
path: 7 µs per statement and 9 µs per connection even while nothing is recorded, where a wrapper costs 0.2 µs.
There is no event around COMMIT, connecting, or *before* a checkout.

The methods are those of SQLAlchemy 2.0 and 2.1; dialects that override one are wrapped when their first
connection is opened. Where one is missing that part is not recorded. The time of a statement is the driver's
``execute``; rows that a server-side cursor fetches later are not included. Under an async engine it includes
the wait until the event loop returned to it.
"""

from __future__ import annotations

import itertools
import sys
import weakref
from collections.abc import Callable
from threading import get_ident
from time import perf_counter
from types import FrameType
from typing import Any

from tenfold.measure.probe import probe_protocol
from tenfold.measure.probe.hooks import returned_rows
from tenfold.measure.probe.recorder import Recorder

POOL_KINDS = 20
HOLDERS = 2_000
POOLS = 500  # recorded between two frames
WAITS = 500  # waits kept per pool between two frames

_METHODS = ("do_execute", "do_execute_no_params", "do_executemany", "do_commit", "do_rollback")

# One recorder per process: the hooks stay installed, and the last recorder receives their records.
_recorder: Recorder | None = None
_recorders: list[PoolRecorder] = []  # of every pool that has been used; a dropped pool is drained once more
_installed = False
_numbers = itertools.count()


def install(recorder: Recorder) -> bool:
    """Install the hooks and direct them to this recorder; return False when SQLAlchemy is not installed."""
    global _recorder, _installed  # noqa: PLW0603 - class-level hooks need a process-wide target
    try:
        from sqlalchemy.engine.default import DefaultDialect
        from sqlalchemy.pool import Pool, QueuePool
    except ImportError:
        return False
    _recorder = recorder
    if not _installed:
        _installed = True
        _wrap_dialect(DefaultDialect)
        _wrap(Pool, "_create_connection", _wrap_connect)
        # create_engine() reads the arguments of __init__, which therefore stays as it is.
        QueuePool.__new__ = staticmethod(_new_pool)  # type: ignore[assignment]
        _wrap(QueuePool, "_do_get", _wrap_get)
        _wrap(QueuePool, "_do_return_conn", _wrap_return)
    return True


def drain_pools() -> list[probe_protocol.PoolRecord]:
    """Return the records since the last call of every pool that has been used."""
    recorders = list(_recorders)
    dropped = {id(one) for one in recorders if one.is_dropped}
    _recorders[:] = [one for one in _recorders if id(one) not in dropped]
    return [one.drain() for one in recorders]


def reset_pools() -> None:
    """Discard the pools' records: a new collector listens."""
    pools = [pool for one in _recorders if (pool := one.pool()) is not None]
    _recorders.clear()
    for pool in pools:
        _record_pool(pool)


def _current_request() -> probe_protocol.RequestRecord | None:
    return _recorder.current.get() if _recorder is not None else None


def _record_pool(pool: Any) -> PoolRecorder:
    recorder = pool.__dict__["_tenfold"] = PoolRecorder(pool)
    if len(_recorders) < POOLS:
        _recorders.append(recorder)
    return recorder


class PoolRecorder:
    """The record of one pool between two frames.

    ``full_s`` is exact, not sampled: a full period begins with the checkout of the last connection and ends
    when a connection is returned for which no checkout waits.
    """

    def __init__(self, pool: Any) -> None:
        self.pool = weakref.ref(pool)
        self._site, self._size = getattr(pool, "_tenfold_site", ""), int(pool.size())
        self._max_overflow = int(pool._max_overflow)
        self._waits: dict[int, float] = {}  # checkouts that wait, and since when
        self._capacity = pool.size() + pool._max_overflow if pool._max_overflow >= 0 else sys.maxsize
        self._waiting = 0
        self._holders: dict[int, probe_protocol.RequestRecord] = {}  # by the connection's record
        self._full_since = perf_counter() if self.is_exhausted(pool) else 0.0
        self._checked_out, self._counted_at = pool.checkedout(), perf_counter()
        self._clear()

    @property
    def is_dropped(self) -> bool:
        """True once the pool is gone, as the pool of an engine that is created for each request."""
        return self.pool() is None

    def is_exhausted(self, pool: Any) -> bool:
        """Return whether the next checkout has to wait."""
        return bool(pool.checkedout() >= self._capacity)

    def check_out(self, pool: Any, do_get: Callable[[Any], Any]) -> Any:
        """Check out a connection; timed only when the checkout has to wait.

        ``_do_get`` calls itself when two threads race for the last connection; such a checkout counts twice.
        """
        if not self.is_exhausted(pool):
            return self._record_checkout(pool, do_get(pool), _current_request())
        started = perf_counter()
        self._waiting += 1
        number = next(_numbers)
        self._waits[number] = started
        request = _current_request()
        if request is not None:
            request.waits_since, request._thread = started, get_ident()
        try:
            return self._record_checkout(pool, do_get(pool), request)
        except BaseException as error:
            self.timeouts += type(error).__name__ == "TimeoutError"
            raise
        finally:
            self._waiting -= 1
            self._waits.pop(number, None)
            if request is not None:
                request.waits_since = 0.0
                request._thread = request._thread if request._holds else 0
            self._record_wait(perf_counter() - started, request)

    def record_return(self, record: Any = None) -> None:
        """Record that a connection is returned."""
        holder = self._holders.pop(id(record), None)
        if holder is not None:
            holder._holds = max(holder._holds - 1, 0)
            holder._thread = holder._thread if holder._holds else 0
        self._set_checked_out(self._checked_out - 1)
        if self._full_since and not self._waiting:
            self.full_s += perf_counter() - self._full_since
            self._full_since = 0.0

    def drain(self) -> probe_protocol.PoolRecord:
        """Return the counts as of now, and start again from zero."""
        now = perf_counter()
        waits = [one for one in list(self._waits.values()) if now - one >= probe_protocol.UNFINISHED_S]
        self._set_checked_out(0 if self.is_dropped else self._checked_out)
        if self._full_since:
            self.full_s += now - self._full_since
            self._full_since = now
        state = probe_protocol.PoolRecord(
            number=id(self),
            site=self._site,
            size=self._size,
            max_overflow=self._max_overflow,
            checked_out_max=self.checked_out_max,
            checkouts=self.checkouts,
            timeouts=self.timeouts,
            full_s=self.full_s,
            held_s=self.held_s,
            waits_s=self.waits,
            wait_count=self.wait_count,
            waiting=len(waits),
            waiting_s=now - min(waits, default=now),
            held_after=sum(one.duration_s >= 0 for one in list(self._holders.values())),
        )
        self._clear()
        return state

    def _clear(self) -> None:
        self.checked_out_max = self.checkouts = self.timeouts = self.wait_count = 0
        self.full_s = self.held_s = 0.0
        self.waits: list[float] = []

    def _record_checkout(
        self, pool: Any, connection: Any, request: probe_protocol.RequestRecord | None
    ) -> Any:
        self.checkouts += 1
        if request is not None and len(self._holders) < HOLDERS:
            self._holders[id(connection)] = request
            request._holds += 1
            request._thread = get_ident()
        count = pool.checkedout()
        self.checked_out_max = max(self.checked_out_max, count)
        self._set_checked_out(count)
        if count >= self._capacity and not self._full_since:
            self._full_since = perf_counter()
        return connection

    def _set_checked_out(self, count: int) -> None:
        now = perf_counter()
        self.held_s += self._checked_out * (now - self._counted_at)
        self._checked_out, self._counted_at = max(count, 0), now

    def _record_wait(self, seconds: float, request: probe_protocol.RequestRecord | None) -> None:
        self.wait_count += 1
        if len(self.waits) < WAITS:
            self.waits.append(seconds)
        if request is not None:
            request.pool_wait_s += seconds


def _wrap(owner: type, name: str, make: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    original = owner.__dict__.get(name)
    if original is not None and not hasattr(original, "_tenfold"):
        wrapped: Any = make(original)
        wrapped._tenfold = True
        setattr(owner, name, wrapped)


def _wrap_dialect(dialect: type) -> None:
    """Wrap what a class of dialects defines itself."""
    for name in _METHODS[:3]:
        _wrap(dialect, name, _wrap_execute)
    _wrap(dialect, "do_commit", lambda do: _wrap_round_trip("COMMIT", do))
    _wrap(dialect, "do_rollback", lambda do: _wrap_round_trip("ROLLBACK", do))


def _wrap_execute(do: Callable[..., Any]) -> Callable[..., Any]:
    def execute(dialect: Any, cursor: Any, statement: str, *rest: Any, **named: Any) -> Any:
        recorder, frame = _recorder, sys._getframe(1)
        if recorder is None or not recorder.is_on or _is_override(frame):
            return do(dialect, cursor, statement, *rest, **named)
        started, rows, request = perf_counter(), 0, recorder.enter_round_trip()
        try:
            result = do(dialect, cursor, statement, *rest, **named)
            rows = returned_rows(cursor, None)
            return result
        finally:
            seconds = perf_counter() - started
            recorder.leave_round_trip(request)
            recorder.record_statement(statement, frame, seconds, database=dialect.name, rows=rows)

    return execute


def _is_override(frame: FrameType) -> bool:
    """Return whether a dialect's override calls the method that it overrides: one statement."""
    return frame.f_code.co_name in _METHODS


def _wrap_connect(do: Callable[..., Any]) -> Callable[..., Any]:
    connect = _wrap_round_trip("CONNECT", do)

    def create_connection(pool: Any) -> Any:
        for kind in type(getattr(pool, "_dialect", None)).__mro__:
            _wrap_dialect(kind)
        if _recorder is not None and _recorder.is_on and len(_recorder.pool_kinds) < POOL_KINDS:
            _recorder.pool_kinds.add(type(pool).__name__)
        return connect(pool)

    return create_connection


def _wrap_round_trip(name: str, do: Callable[..., Any]) -> Callable[..., Any]:
    def round_trip(owner: Any, *args: Any) -> Any:
        recorder, frame = _recorder, sys._getframe(1)
        if recorder is None or not recorder.is_on or _is_override(frame):
            return do(owner, *args)
        started, request = perf_counter(), recorder.enter_round_trip()
        try:
            return do(owner, *args)
        finally:
            recorder.leave_round_trip(request)
            dialect = getattr(owner, "_dialect", owner)
            database = getattr(dialect, "name", "")
            recorder.record_statement(name, frame, perf_counter() - started, database=database)

    return round_trip


def _new_pool(kind: type[Any], *args: Any, **kwargs: Any) -> Any:
    pool = object.__new__(kind)
    if _recorder is not None:
        pool._tenfold_site = _recorder.sites.find(sys._getframe(1)).where
    return pool


def _wrap_get(do_get: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def get(pool: Any) -> Any:
        if _recorder is None or not _recorder.is_on:
            return do_get(pool)
        pool_recorder = pool.__dict__.get("_tenfold")
        if pool_recorder is None:
            _recorder.has_statements = True
            pool_recorder = _record_pool(pool)
        return pool_recorder.check_out(pool, do_get)

    return get


def _wrap_return(do_return: Callable[[Any, Any], None]) -> Callable[[Any, Any], None]:
    def return_connection(pool: Any, record: Any) -> None:
        pool_recorder = pool.__dict__.get("_tenfold")
        if pool_recorder is not None:
            pool_recorder.record_return(record)
        do_return(pool, record)

    return return_connection
