"""Deadlines of requests as PostgreSQL's ``statement_timeout``, for any SQLAlchemy engine.

There are two ways to tell the server, each a round trip:

- ``SET``, for the session, outside of any transaction. The time that is left is rounded up to one of eight
  steps a decade, and the connection keeps it: requests with about the same deadline find it there and pay
  nothing. Behind PgBouncer in transaction mode it would be handed to another client.
- ``SET LOCAL``, for one transaction, after its BEGIN (psycopg 3.3 accepts no second command in its BEGIN).
  It is exact and ends with the transaction. AUTOCOMMIT has no transaction that it could end with.

Without a deadline nothing is sent, except to put back the session's own limit. In a transaction the timeout
is renewed once less than half of it is left, so that not every statement pays a round trip.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

from tenfold.database.drivers import sqlstate
from tenfold.database.session_state import execute, execute_outside_transaction, is_in_block
from tenfold.deadlines import check_deadline, remaining_s
from tenfold.errors import DeadlineExceededError, DependencyError

if TYPE_CHECKING:
    from sqlalchemy import Engine, ExceptionContext
    from sqlalchemy.ext.asyncio import AsyncEngine
    from sqlalchemy.pool import Pool


__all__ = ["enforce_deadlines"]

TimeoutScope = Literal["session", "transaction", "mixed"]

SESSION_DRIVERS = frozenset({"asyncpg", "psycopg", "psycopg_async", "psycopg2"})  # may carry a timeout
STEPS_PER_DECADE = 8  # each step is a third more than the one before

_QUERY_CANCELED = "57014"
_INFO = "tenfold.statement_timeout"  # in the info of a pool's connection record
_UNKNOWN = -1  # a SET failed or was cancelled on its way
_OWN_LIMIT = "SELECT setting::int FROM pg_settings WHERE name = 'statement_timeout'"


def enforce_deadlines(
    engine: Engine | AsyncEngine, *, most_s: float = math.inf, autocommit: bool = True
) -> None:
    """End what this engine does together with the request that asked for it. Call it once, right away.

    For engines with a pool of their own: one made with :func:`tenfold.database.pool_options` does all this by
    itself, mostly without the round trip, and is left as it is.

    - A wait for a connection ends with the deadline.
    - No statement begins after it; one that runs is ended by the server (PostgreSQL only).
    - All three raise :class:`~tenfold.errors.DeadlineExceededError`, which the middleware answers with 504.

    Each transaction is told its own timeout; a statement may run half as long again as the deadline allows.
    A ``statement_timeout`` of the role is overridden there: hand it in as ``most_s``.

    In AUTOCOMMIT, where a router's reads run, the session carries the timeout, and the connection's own limit
    is kept where it is shorter. A statement may run a third longer than what is left, the second and later
    ones on the same connection twice as long. It needs psycopg, psycopg2 or asyncpg: with other drivers the
    server is told nothing in AUTOCOMMIT. Behind PgBouncer in transaction mode pass ``autocommit=False``.
    Pools other than QueuePool and its asynchronous kind do not bound their waits.

    Args:
        engine: sync or async, any driver.
        most_s: longest time for a statement under a deadline, seconds, however much time is left.
        autocommit: whether the server is told in AUTOCOMMIT, too.

    Raises:
        DependencyError: SQLAlchemy is not installed.
    """
    try:
        from sqlalchemy import event
    except ImportError:
        raise DependencyError("deadlines of statements need SQLAlchemy: pip install sqlalchemy") from None
    plain: Any = getattr(engine, "sync_engine", None) or engine
    if hasattr(plain.pool, "monitor"):
        return
    mixed = autocommit and plain.driver in SESSION_DRIVERS
    StatementTimeouts(plain.dialect, "mixed" if mixed else "transaction", most_s=most_s).attach(plain.pool)
    _bound_waits(plain)
    event.listen(plain, "engine_disposed", _bound_waits)  # which gives it another pool


def was_ended_by_deadline(error: BaseException | None) -> bool:
    """Return whether the server ended a statement because the request's time is over."""
    return sqlstate(error) == _QUERY_CANCELED and remaining_s() == 0


class _ConnectionTimeout:
    """The timeouts of one physical connection."""

    own_ms: int | None = None  # its own statement_timeout, asked for once; 0 is none
    session_ms: int | None = None  # the step that its session carries for a deadline
    transaction_ms = 0  # in force for a deadline in the current transaction; 0 is none
    in_block = False  # whether the last statement ran in a transaction, although in AUTOCOMMIT


class StatementTimeouts:
    """Keeps the ``statement_timeout`` of an engine's connections at what the current deadline leaves.

    Args:
        dialect: the engine's.
        scope: "session" tells sessions, "transaction" transactions, "mixed" transactions and, in AUTOCOMMIT,
            sessions; None only refuses statements after the deadline, as with databases other than
            PostgreSQL.
        most_s: longest timeout under a deadline, seconds.
    """

    def __init__(self, dialect: Any, scope: TimeoutScope | None, *, most_s: float = math.inf) -> None:
        self._dialect = dialect
        self._scope = scope if dialect.name == "postgresql" else None
        self._most_ms = 0 if math.isinf(most_s) else max(math.ceil(most_s * 1000), 1)

    def attach(self, pool: Pool) -> None:
        """Listen to a pool's checkouts and to the dialect's statements; an engine's events cost far more."""
        from sqlalchemy import event

        event.listen(pool, "checkout", self._check_out)
        for name in ("do_execute", "do_execute_no_params", "do_executemany"):
            event.listen(self._dialect, name, self._before_statement)
        if self._scope is not None:
            event.listen(self._dialect, "handle_error", _translate)
            self._wrap_begin()

    def _wrap_begin(self) -> None:
        begin = self._dialect.do_begin

        def do_begin(connection: Any) -> None:
            begin(connection)
            self._begin(connection)

        self._dialect.do_begin = do_begin

    def _check_out(self, connection: Any, record: Any, _: object) -> None:
        """Replace what the connection's last user left on it; the pool replaces one that is found dead."""
        timeout: _ConnectionTimeout | None = record.info.get(_INFO)
        is_new = timeout is None
        if timeout is None:
            timeout = record.info[_INFO] = _ConnectionTimeout()
        timeout.in_block = False
        left_s = remaining_s()
        if left_s is None:
            if timeout.session_ms is None:
                return
        elif not (self._scope == "session" or (self._scope == "mixed" and connection.autocommit)):
            return
        try:
            self._set_session(connection, timeout, left_s)
        except self._dialect.loaded_dbapi.Error as error:
            if is_new or not self._dialect.is_disconnect(error, connection, None):
                raise
            from sqlalchemy.exc import DisconnectionError

            raise DisconnectionError("the server has hung up") from error

    def _begin(self, connection: Any) -> None:
        timeout = _timeout_of(connection)
        if timeout is None or connection.autocommit:
            return
        check_deadline()
        self._begin_transaction(connection, timeout, remaining_s())

    def _begin_transaction(self, connection: Any, timeout: _ConnectionTimeout, left_s: float | None) -> None:
        step = timeout.session_ms
        timeout.transaction_ms = 0 if step is None else self._session_value(timeout, step)
        may_rely_on_session = left_s is None or self._scope == "session"
        if not (may_rely_on_session and fits(timeout.session_ms, left_s)):
            self._set_local(connection, timeout, left_s)

    def _before_statement(self, _cursor: Any, _statement: str, *rest: Any) -> None:
        connection = rest[-1].root_connection.connection
        timeout = _timeout_of(connection)
        if timeout is None:  # a statement of SQLAlchemy's own, on a connection that is not handed out
            return
        check_deadline()
        left_s = remaining_s()
        if self._scope is None or (left_s is None and timeout.session_ms is None):
            return
        if is_in_block(connection._connection_record.info):  # of a connection in AUTOCOMMIT
            if not timeout.in_block:
                timeout.in_block = True
                self._begin_transaction(connection, timeout, left_s)
        else:
            timeout.in_block = False
        if connection.autocommit and not timeout.in_block:
            if self._scope != "transaction" and not fits(timeout.session_ms, left_s):
                self._set_session(connection.dbapi_connection, timeout, left_s)
        elif left_s is not None and left_s * 1000 < timeout.transaction_ms / 2:
            self._set_local(connection, timeout, left_s)

    def _set_session(self, connection: Any, timeout: _ConnectionTimeout, left_s: float | None) -> None:
        if timeout.own_ms is None:
            timeout.own_ms = int(execute_outside_transaction(connection, _OWN_LIMIT)[0][0])
        wanted = None if left_s is None else step_ms(left_s)
        value = self._session_value(timeout, wanted)
        if value != self._session_value(timeout, timeout.session_ms):
            timeout.session_ms = _UNKNOWN
            execute_outside_transaction(connection, f"SET statement_timeout = {value:d}")
        timeout.session_ms = wanted

    def _session_value(self, timeout: _ConnectionTimeout, step: int | None) -> int:
        own_ms = timeout.own_ms or 0
        return own_ms if step is None else self._capped_ms(step, own_ms)

    def _set_local(self, connection: Any, timeout: _ConnectionTimeout, left_s: float | None) -> None:
        if left_s is None:
            timeout.transaction_ms, value = 0, timeout.own_ms or 0
        else:  # a transaction's own limit is not known without a round trip
            own_ms = timeout.own_ms or 0 if self._scope == "session" else 0
            value = timeout.transaction_ms = self._capped_ms(max(math.ceil(left_s * 1000), 1), own_ms)
        execute(connection, f"SET LOCAL statement_timeout = {value:d}")

    def _capped_ms(self, wanted_ms: int, own_ms: int) -> int:
        """The shortest of a timeout, ``own_ms`` and ``most_s``; the latter two may be none."""
        return min(wanted_ms, own_ms or wanted_ms, self._most_ms or wanted_ms)


def _timeout_of(connection: Any) -> _ConnectionTimeout | None:
    record = connection._connection_record  # None of a detached connection; not all have `connection.info`
    return None if record is None else record.info.get(_INFO)


def step_ms(left_s: float) -> int:
    """The step for so many seconds: at least as long, at most a third longer, and 1 ms or more."""
    left_ms = max(left_s * 1000, 1.0)
    exponent = math.ceil(round(STEPS_PER_DECADE * math.log10(left_ms), 6)) / STEPS_PER_DECADE
    return math.ceil(round(10**exponent, 3))


def fits(session_ms: int | None, left_s: float | None) -> bool:
    """Return whether a session that carries this step suits a statement with so many seconds left.

    It may be as much as twice what is left, so that the timeout is not renewed with each statement. None is
    the session's own limit, or no deadline.
    """
    if left_s is None or session_ms is None:
        return left_s is None and session_ms is None
    left_ms = max(left_s * 1000, 1.0)
    return left_ms <= session_ms <= 2 * left_ms


def _translate(context: ExceptionContext) -> None:
    if was_ended_by_deadline(context.original_exception):
        raise DeadlineExceededError(
            "PostgreSQL ended a statement because the request's time is over"
        ) from context.original_exception


def _bound_waits(engine: Engine) -> None:
    """End the waits for a connection of a queue pool with the deadline."""
    from sqlalchemy.util.queue import Empty

    queue: Any = getattr(engine.pool, "_pool", None)
    get = getattr(queue, "get", None)
    if get is None:
        return

    def get_in_time(block: bool = True, timeout: float | None = None) -> Any:
        left_s = remaining_s() if block else None
        if left_s is None or (timeout is not None and timeout <= left_s):
            return get(block, timeout)
        try:
            return get(block, left_s)
        except Empty:
            raise DeadlineExceededError(
                "no database connection came free before the request's time was over"
            ) from None

    queue.get = get_in_time
