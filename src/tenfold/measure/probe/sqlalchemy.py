"""Hooks into SQLAlchemy: every statement of every engine, and how long connections were waited for.

A few methods are wrapped: a dialect's ``do_execute`` and its kin, ``do_commit``, ``do_rollback``, and the
pool's handing out and taking back. Sync and async engines go through the same ones, whenever they were made.
``Engine``'s events would do for statements, too, but a listener puts every execution on SQLAlchemy's slower
path: 7 µs a statement and 9 µs a connection even while nobody records, where a wrapper costs 0.2 µs. There is
no event around COMMIT, connecting, or *before* a connection is handed out.

The methods are those of SQLAlchemy 2.1; where one is missing, or a dialect of a third party does without it,
that part is not seen. The time of a statement is the driver's ``execute``; rows that a server-side cursor
fetches later are not in it. Under an async engine it includes the wait until the event loop came back to it.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable
from time import perf_counter
from typing import Any

from tenfold.measure.probe import probe_protocol
from tenfold.measure.probe.recorder import Recorder

WAITS = 500  # waits kept a pool between two frames

# One process, one recorder: the hooks outlive whoever installed them, and the last one counts.
_recorder: Recorder | None = None
_pools: list[weakref.ref[Any]] = []
_installed = False


def install(recorder: Recorder) -> bool:
    """Send what SQLAlchemy does to this recorder; False when SQLAlchemy is not installed."""
    global _recorder, _installed  # noqa: PLW0603 - class-level hooks need a process-wide target
    try:
        from sqlalchemy.engine.default import DefaultDialect
        from sqlalchemy.pool import Pool, QueuePool
    except ImportError:
        return False
    _recorder = recorder
    if not _installed:
        _installed = True
        for name in ("do_execute", "do_execute_no_params", "do_executemany"):
            _wrap(DefaultDialect, name, _executing)
        _wrap(DefaultDialect, "do_commit", lambda do: _timed("COMMIT", do))
        _wrap(DefaultDialect, "do_rollback", lambda do: _timed("ROLLBACK", do))
        _wrap(Pool, "_create_connection", lambda do: _timed("CONNECT", do))
        # create_engine() reads the arguments of __init__, which therefore stays as it is.
        QueuePool.__new__ = staticmethod(_making)  # type: ignore[assignment]
        _wrap(QueuePool, "_do_get", _getting)
        _wrap(QueuePool, "_do_return_conn", _returning)
    return True


def pools() -> list[probe_protocol.PoolState]:
    """What every pool that was used did since the last call."""
    return [pool.__dict__["_tenfold"].drain() for pool in _alive()]


def restart() -> None:
    """Forget what the pools did before: a new collector listens."""
    for pool in _alive():
        pool.__dict__["_tenfold"] = PoolWatch(pool)


def _alive() -> list[Any]:
    _pools[:] = [reference for reference in _pools if reference() is not None]
    return [pool for reference in _pools if (pool := reference()) is not None]


class PoolWatch:
    """One pool's use between two frames.

    *Full* is exact, not sampled: from the moment in which the last connection that may exist is taken until
    one comes back that nobody waits for.
    """

    def __init__(self, pool: Any) -> None:
        self._pool = weakref.ref(pool)
        self._capacity = pool.size() + pool._max_overflow if pool._max_overflow >= 0 else sys.maxsize
        self._waiting = 0
        self._full_since = perf_counter() if self.exhausted(pool) else 0.0
        self._taken, self._counted = pool.checkedout(), perf_counter()
        self._clear()

    def exhausted(self, pool: Any) -> bool:
        """Whether the next one has to wait."""
        return bool(pool.checkedout() >= self._capacity)

    def get(self, pool: Any, do_get: Callable[[Any], Any]) -> Any:
        """Hand out a connection, timed only when it has to be waited for.

        ``_do_get`` calls itself when two threads race for the last place; such a checkout counts twice.
        """
        if not self.exhausted(pool):
            return self._took(pool, do_get(pool))
        started = perf_counter()
        self._waiting += 1
        try:
            return self._took(pool, do_get(pool))
        except BaseException as error:
            self.timeouts += type(error).__name__ == "TimeoutError"
            raise
        finally:
            self._waiting -= 1
            self._waited(perf_counter() - started)

    def returning(self) -> None:
        """A connection comes back."""
        self._hold(self._taken - 1)
        if self._full_since and not self._waiting:
            self.full_s += perf_counter() - self._full_since
            self._full_since = 0.0

    def drain(self) -> probe_protocol.PoolState:
        """The counts so far, as of now, and start again from nothing."""
        pool = self._pool()
        self._hold(self._taken)
        if self._full_since:
            now = perf_counter()
            self.full_s += now - self._full_since
            self._full_since = now
        dialect = getattr(getattr(pool, "_dialect", None), "name", "")
        state = probe_protocol.PoolState(
            number=id(self),
            dialect=dialect,
            site=getattr(pool, "_tenfold_site", ""),
            size=pool.size() if pool is not None else 0,
            max_overflow=getattr(pool, "_max_overflow", 0),
            checked_out=self.most,
            checkouts=self.checkouts,
            timeouts=self.timeouts,
            full_s=self.full_s,
            held_s=self.held_s,
            waits_s=self.waits,
            waited=self.waited,
        )
        self._clear()
        return state

    def _clear(self) -> None:
        self.most = self.checkouts = self.timeouts = self.waited = 0
        self.full_s = self.held_s = 0.0
        self.waits: list[float] = []

    def _took(self, pool: Any, connection: Any) -> Any:
        self.checkouts += 1
        taken = pool.checkedout()
        self.most = max(self.most, taken)
        self._hold(taken)
        if taken >= self._capacity and not self._full_since:
            self._full_since = perf_counter()
        return connection

    def _hold(self, taken: int) -> None:
        now = perf_counter()
        self.held_s += self._taken * (now - self._counted)
        self._taken, self._counted = max(taken, 0), now

    def _waited(self, seconds: float) -> None:
        self.waited += 1
        if len(self.waits) < WAITS:
            self.waits.append(seconds)
        request = _recorder.current.get() if _recorder is not None else None
        if request is not None:
            request.pool_wait_s += seconds


def _wrap(owner: type, name: str, make: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    original = owner.__dict__.get(name)
    if original is not None:
        setattr(owner, name, make(original))


def _executing(do: Callable[..., Any]) -> Callable[..., Any]:
    def executing(dialect: Any, cursor: Any, statement: str, *rest: Any, **named: Any) -> Any:
        recorder = _recorder
        if recorder is None or not recorder.on:
            return do(dialect, cursor, statement, *rest, **named)
        rows, started = -1, perf_counter()
        try:
            result = do(dialect, cursor, statement, *rest, **named)
            rows = cursor.rowcount
            return result
        finally:
            recorder.executed(statement, sys._getframe(1), perf_counter() - started, rows)

    return executing


def _timed(name: str, do: Callable[..., Any]) -> Callable[..., Any]:
    def timed(*args: Any) -> Any:
        if _recorder is None or not _recorder.on:
            return do(*args)
        started = perf_counter()
        try:
            return do(*args)
        finally:
            _recorder.executed(name, sys._getframe(1), perf_counter() - started, -1)

    return timed


def _making(kind: type[Any], *args: Any, **kwargs: Any) -> Any:
    pool = object.__new__(kind)
    if _recorder is not None:
        pool._tenfold_site = _recorder.sites.find(sys._getframe(1)).where
    return pool


def _getting(do_get: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def getting(pool: Any) -> Any:
        if _recorder is None or not _recorder.on:
            return do_get(pool)
        watch = pool.__dict__.get("_tenfold")
        if watch is None:
            _recorder.sqlalchemy = True
            watch = pool.__dict__["_tenfold"] = PoolWatch(pool)
            _pools.append(weakref.ref(pool))
        return watch.get(pool, do_get)

    return getting


def _returning(give_back: Callable[[Any, Any], None]) -> Callable[[Any, Any], None]:
    def returning(pool: Any, record: Any) -> None:
        watch = pool.__dict__.get("_tenfold")
        if watch is not None:
            watch.returning()
        give_back(pool, record)

    return returning
