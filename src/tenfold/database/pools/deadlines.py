"""What is left of a request's time as PostgreSQL's statement_timeout and as the wait for a connection.

Each transaction that begins under a deadline has ``SET LOCAL statement_timeout`` sent after its BEGIN: that
ends with the transaction, so nothing has to be put back, and PgBouncer's transaction mode is fine with it. It
is one round trip more: psycopg (3.3) accepts no second command in its BEGIN. Without a deadline nothing is
sent.

In AUTOCOMMIT there is no transaction that it could end with. There the *session* gets a timeout, in steps:
a request with about the same deadline finds it set and pays nothing, and one without a deadline has it put
back first.
"""

from __future__ import annotations

import math
from collections.abc import MutableMapping
from typing import TYPE_CHECKING, Any

from tenfold.deadlines import check, remaining_s
from tenfold.errors import DeadlineExceededError, DependencyError

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine, ExceptionContext
    from sqlalchemy.ext.asyncio import AsyncEngine


__all__ = ["enforce_deadlines"]


# Setting statement_timeout costs a round trip. So the time left is rounded up to one of eight steps a decade,
# and a connection that carries the right step already is left as it is: requests with the same deadline find
# it there. A statement may therefore run a third longer than the deadline allows. Once less than half of a
# timeout is left, the transaction gets a shorter one before its next statement. The connection's own limit,
# when it has a shorter one, is not raised.
_CANCELED = "57014"  # query_canceled

LIBPQ = frozenset({"psycopg", "psycopg_async", "psycopg2"})  # drivers whose sessions can carry it
STEPS = 8  # a decade; each step is a third more than the one before

CARRIED = "tenfold.statement_timeout_ms"  # in a connection's info: what it carries for a deadline
_OWN = "tenfold.statement_timeout_own_ms"  # and what it carried at first


def timeout_ms(left_s: float, *, own_ms: int) -> int:
    """The step for what is left, at least 1 ms; the connection's own limit where that is less (0 is none)."""
    left_ms = max(left_s * 1000, 1.0)
    step = math.ceil(round(10 ** (math.ceil(round(STEPS * math.log10(left_ms), 6)) / STEPS), 3))
    return min(step, own_ms) if own_ms else step


def shorter_ms(own_ms: int, most_s: float) -> int:
    """The shorter of two limits, each of which may be none: 0 and infinity."""
    if math.isinf(most_s):
        return own_ms
    most_ms = max(math.ceil(most_s * 1000), 1)
    return min(own_ms, most_ms) if own_ms else most_ms


def fits(carried_ms: int | None, left_s: float | None) -> bool:
    """Whether a session that carries this already suits a statement of somebody who has so much left.

    It may be as much as twice what is left, so that the timeout is not renewed with each statement. None is
    what the connection had at first.
    """
    if left_s is None or carried_ms is None:
        return left_s is None and carried_ms is None
    left_ms = max(left_s * 1000, 1.0)
    return left_ms <= carried_ms <= 2 * left_ms


def hung_up(dialect: Any, error: BaseException, connection: Any) -> bool:
    """Whether a driver's error means that the server has ended this connection, as SQLAlchemy knows it."""
    return isinstance(error, dialect.loaded_dbapi.Error) and dialect.is_disconnect(error, connection, None)


def ended_by_deadline(error: BaseException | None) -> bool:
    """Whether the server ended a statement because the request's time is over."""
    return getattr(error, "sqlstate", None) == _CANCELED and remaining_s() == 0


def settle(connection: Any, info: MutableMapping[Any, Any], *, most_s: float = math.inf) -> None:
    """Give a connection outside of any transaction the timeout of whoever takes it now, at most ``most_s``.

    The value stays with the session: behind a pool in transaction mode it would be someone else's. When this
    fails or is cancelled nobody knows what the session carries: the connection has to go.
    """
    left_s = remaining_s()
    if left_s is None and CARRIED not in info:
        return
    if _OWN not in info:
        info[_OWN] = _own_ms(connection)
    limit = info[_OWN] if left_s is None else shorter_ms(info[_OWN], most_s)
    wanted = limit if left_s is None else timeout_ms(left_s, own_ms=limit)
    if wanted != info.get(CARRIED, info[_OWN]):
        info[CARRIED] = wanted
        _outside(connection, f"SET statement_timeout = {wanted:d}")
    if left_s is None:
        del info[CARRIED]


def settle_transaction(connection: Any) -> None:
    """The same for the transaction that begins, or goes on, with this: exact, and always a round trip."""
    left_s = remaining_s()
    if left_s is not None:
        _run(connection, f"SET LOCAL statement_timeout = {max(math.ceil(left_s * 1000), 1):d}")


def _own_ms(connection: Any) -> int:
    rows = _outside(connection, "SELECT setting::int FROM pg_settings WHERE name = 'statement_timeout'")
    return int(rows[0][0])


def _outside(connection: Any, statement: str) -> Any:
    """Runs a statement in no transaction, which a rollback would undo."""
    before = connection.autocommit
    connection.autocommit = True
    try:
        return _run(connection, statement)
    finally:
        connection.autocommit = before


def _run(connection: Any, statement: str) -> Any:
    cursor = connection.cursor()
    try:
        cursor.execute(statement)
        return cursor.fetchall() if cursor.description else None
    finally:
        cursor.close()


_SET_S = "tenfold_statement_timeout_s"  # in Connection.info


def enforce_deadlines(
    engine: Engine | AsyncEngine, *, most_s: float = math.inf, autocommit: bool = True
) -> None:
    """From now on what this engine does ends with the request that asked for it. Call it once, right away.

    For engines with a pool of their own: one made with :func:`tenfold.database.pool_options` does all
    this by itself, mostly without the round trip, and is left as it is.

    - A wait for a connection ends with the deadline.
    - No statement begins after it; one that runs is ended by the server (PostgreSQL only).
    - All three raise :class:`~tenfold.errors.DeadlineExceededError`, which the middleware answers with 504.

    A transaction's statements share a timeout that is renewed when half of it has passed, so that one may run
    half as long again as it should, at the most. An earlier ``statement_timeout`` of the role is overridden
    there: hand it in as ``most_s``.

    In AUTOCOMMIT, where a router's reads run, the session carries the timeout, and the connection's own is
    kept where it is shorter. A statement may run a third longer than what is left, the second and later ones
    on the same connection twice as long. It needs psycopg: with other drivers the server is told nothing in
    AUTOCOMMIT. PgBouncer in transaction mode would hand the session's timeout to somebody else: say
    ``autocommit=False`` there. Pools other than QueuePool and its asynchronous kind are left as they are.

    Args:
        engine: sync or async, any driver.
        most_s: no statement under a deadline may take longer, however much time is left.
        autocommit: whether the server is told in AUTOCOMMIT, too.

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
        sessions = _Sessions(plain.dialect, most_s) if autocommit and plain.driver in LIBPQ else None
        bound = _Statements(most_s, sessions)
        if sessions:
            event.listen(plain, "checkout", sessions.taken)
        event.listen(plain, "begin", bound.begin)
        event.listen(plain, "before_cursor_execute", bound.before)
        event.listen(plain, "handle_error", _translate)
    else:
        event.listen(plain, "before_cursor_execute", lambda *_: check())
    _bound_waits(plain)
    event.listen(plain, "engine_disposed", _bound_waits)  # which gives it another pool


class _Sessions:
    """Timeouts that a session carries, for connections in AUTOCOMMIT."""

    def __init__(self, dialect: Any, most_s: float) -> None:
        self._dialect, self._most_s = dialect, most_s

    def taken(self, connection: Any, record: Any, _: object) -> None:
        """A connection leaves the pool: what its last user left on it is not for this one."""
        if not (connection.autocommit or CARRIED in record.info):
            return
        try:
            settle(connection, record.info, most_s=self._most_s)
        except self._dialect.loaded_dbapi.Error as error:
            if not hung_up(self._dialect, error, connection):
                raise
            from sqlalchemy.exc import DisconnectionError

            raise DisconnectionError("the server has hung up") from error  # the pool opens another

    def settle(self, connection: Connection) -> None:
        """In the middle of its use, outside of any transaction."""
        bare: Any = connection.connection.dbapi_connection
        try:
            settle(bare, connection.info, most_s=self._most_s)
        except BaseException as error:  # a cancellation, too: what the session carries now is not known
            if hung_up(self._dialect, error, bare):
                return  # as the statement is about to find, whose error SQLAlchemy knows what to do with
            connection.invalidate(error)
            raise


class _Statements:
    def __init__(self, most_s: float, sessions: _Sessions | None) -> None:
        self._most_s, self._sessions = most_s, sessions

    def begin(self, connection: Connection) -> None:
        info = connection.info
        info.pop(_SET_S, None)
        if self._sessions:
            if _autocommits(connection):
                return
            if CARRIED in info and remaining_s() is None:
                self._sessions.settle(connection)
        self._bound(connection)

    def before(self, connection: Connection, cursor: Any, *_: object) -> None:
        """Ahead of each statement: renew a timeout that has become much too long."""
        left_s = remaining_s()
        if left_s is not None:
            check()
        info = connection.info
        if self._sessions and _autocommits(connection):
            if not fits(info.get(CARRIED), left_s):
                self._sessions.settle(connection)
        elif left_s is not None and left_s < info.get(_SET_S, 0.0) / 2:
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


def _autocommits(connection: Connection) -> bool:
    bare: Any = connection.connection.dbapi_connection
    return bool(bare.autocommit)


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
