"""What is left of a request's time as PostgreSQL's statement_timeout and as the wait for a connection.

Each transaction that begins under a deadline has ``SET LOCAL statement_timeout`` sent after its BEGIN: that
ends with the transaction, so nothing has to be put back, and PgBouncer's transaction mode is fine with it. It
is one round trip more: psycopg (3.3) accepts no second command in its BEGIN. Without a deadline nothing is
sent.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from tenfold.database.timeouts import ended_by_deadline
from tenfold.deadlines import check, remaining_s
from tenfold.errors import DeadlineExceededError, DependencyError

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine, ExceptionContext
    from sqlalchemy.ext.asyncio import AsyncEngine

__all__ = ["enforce_deadlines"]

_SET_S = "tenfold_statement_timeout_s"  # in Connection.info


def enforce_deadlines(engine: Engine | AsyncEngine, *, most_s: float = math.inf) -> None:
    """From now on what this engine does ends with the request that asked for it. Call it once, right away.

    For engines with a pool of their own: one made with :func:`tenfold.database.pool.pool_options` does all
    this by itself, mostly without the round trip, and is left as it is.

    - A wait for a connection ends with the deadline.
    - No statement begins after it; one that runs is ended by the server (PostgreSQL only).
    - All three raise :class:`~tenfold.errors.DeadlineExceededError`, which the middleware answers with 504.

    A transaction's statements share a timeout that is renewed when half of it has passed, so that one may run
    half as long again as it should, at the most. With AUTOCOMMIT the server is told nothing, and an earlier
    ``statement_timeout`` of the role is overridden: hand it in as ``most_s``. Pools other than QueuePool and
    its asynchronous kind are left as they are.

    Args:
        engine: sync or async, any driver.
        most_s: no statement may take longer, however much time is left.

    Raises:
        DependencyError: SQLAlchemy is not installed.
    """
    try:
        from sqlalchemy import event
    except ImportError:
        raise DependencyError("deadlines of statements need SQLAlchemy: pip install sqlalchemy") from None
    plain: Any = getattr(engine, "sync_engine", None) or engine
    if hasattr(plain.pool, "watch"):
        return
    if plain.dialect.name == "postgresql":
        bound = _Statements(most_s)
        event.listen(plain, "begin", bound.begin)
        event.listen(plain, "before_cursor_execute", bound.before)
        event.listen(plain, "handle_error", _translate)
    else:
        event.listen(plain, "before_cursor_execute", lambda *_: check())
    _bound_waits(plain)
    event.listen(plain, "engine_disposed", _bound_waits)  # which gives it another pool


class _Statements:
    def __init__(self, most_s: float) -> None:
        self._most_s = most_s

    def begin(self, connection: Connection) -> None:
        connection.info.pop(_SET_S, None)
        self._bound(connection)

    def before(self, connection: Connection, cursor: Any, *_: object) -> None:
        """Ahead of each statement: renew a timeout that has become much too long."""
        left_s = remaining_s()
        if left_s is not None:
            check()
            if left_s < connection.info.get(_SET_S, 0.0) / 2:
                self._bound(connection)

    def _bound(self, connection: Connection) -> None:
        left_s = remaining_s()
        if left_s is None:
            return
        check()
        left_s = min(left_s, self._most_s)
        cursor = connection.connection.cursor()
        try:  # 0 would mean: for ever
            cursor.execute(f"SET LOCAL statement_timeout = {max(math.ceil(left_s * 1000), 1)}")
        finally:
            cursor.close()
        connection.info[_SET_S] = left_s


def _translate(context: ExceptionContext) -> None:
    """The server ended a statement because of us."""
    if ended_by_deadline(context.original_exception):
        raise DeadlineExceededError(
            "PostgreSQL ended a statement because the request's time is over"
        ) from context.original_exception


def _bound_waits(engine: Engine) -> None:
    from sqlalchemy.util.queue import Empty

    queue: Any = getattr(engine.pool, "_pool", None)
    get = getattr(queue, "get", None)
    if get is None:
        return

    def within(block: bool = True, timeout: float | None = None) -> Any:
        left_s = remaining_s() if block else None
        if left_s is None or (timeout is not None and timeout <= left_s):
            return get(block, timeout)
        try:
            return get(block, left_s)
        except Empty:
            raise DeadlineExceededError(
                "no database connection came free before the request's time was over"
            ) from None

    queue.get = within
