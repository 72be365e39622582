"""What a connection that is held is used for: each statement, and the pauses between them."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any

from tenfold.database.pools import deadlines
from tenfold.database.pools.holders import Holder
from tenfold.database.pools.pool_monitor import Watch
from tenfold.deadlines import check, remaining_s
from tenfold.errors import DeadlineExceededError


def follow(dialect: Any, watch: Watch) -> None:
    """Wraps a few methods of this one dialect: listeners to an engine's events cost 7 µs a statement.

    What somebody else has put on this dialect before is called; else the class's, looked up at each call,
    since the probe of ``tenfold measure`` may wrap it later.
    """
    for name in ("do_execute", "do_execute_no_params", "do_executemany"):
        setattr(dialect, name, _executing(dialect, name, watch))
    for name in ("do_commit", "do_rollback"):
        setattr(dialect, name, _ending(dialect, name, watch))
    if watch.watching.statement_timeout == "transaction" and dialect.name == "postgresql":
        dialect.do_begin = _beginning(dialect, watch)


def _executing(dialect: Any, name: str, watch: Watch) -> Callable[..., Any]:
    held, kind, before = watch.held, type(dialect), dialect.__dict__.get(name)

    def executing(cursor: Any, statement: str, *rest: Any, **named: Any) -> Any:
        context: Any = rest[-1] if rest else named.get("context")
        try:
            connection = context.root_connection._dbapi_connection
            holder = held[connection._connection_record]
        except (AttributeError, KeyError):  # a statement of SQLAlchemy's own, on a connection not handed out
            return (before or getattr(kind, name).__get__(dialect))(cursor, statement, *rest, **named)
        check()
        if holder.timeout_s:
            _shorten(holder, connection)
        if holder.idle_since:
            watch.resumed(holder, connection)
        holder.sql = statement
        try:
            return (before or getattr(kind, name).__get__(dialect))(cursor, statement, *rest, **named)
        except Exception as error:
            if deadlines.ended_by_deadline(error):
                raise DeadlineExceededError(
                    "PostgreSQL ended a statement because the request's time is over"
                ) from error
            raise
        finally:
            holder.idle_since = perf_counter()

    return executing


def _ending(dialect: Any, name: str, watch: Watch) -> Callable[[Any], Any]:
    held, kind, before = watch.held, type(dialect), dialect.__dict__.get(name)

    def ending(connection: Any) -> Any:
        holder = held.get(getattr(connection, "_connection_record", None))
        if holder is not None:
            if holder.idle_since:
                watch.resumed(holder, connection)
            holder.timeout_s = holder.carried_s
        return (before or getattr(kind, name).__get__(dialect))(connection)

    return ending


def _beginning(dialect: Any, watch: Watch) -> Callable[[Any], Any]:
    def beginning(connection: Any) -> Any:
        begun = type(dialect).do_begin(dialect, connection)
        holder = watch.held.get(getattr(connection, "_connection_record", None))
        if holder is not None:
            deadlines.settle_transaction(connection)
            holder.timeout_s = remaining_s() or 0.0
        return begun

    return beginning


def _shorten(holder: Holder, connection: Any) -> None:
    left_s = remaining_s()
    if left_s is not None and left_s < holder.timeout_s / 2:
        deadlines.settle_transaction(connection)
        holder.timeout_s = left_s
