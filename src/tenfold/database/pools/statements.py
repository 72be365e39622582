"""What a connection that is held is used for: each statement, and the pauses between them."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any

from tenfold.database.pools.holders import Holder
from tenfold.database.pools.pool_monitor import Watch


def follow(dialect: Any, watch: Watch) -> None:
    """Wraps a few methods of this one dialect: listeners to an engine's events cost 7 µs a statement.

    What somebody else has put on this dialect before is called; else the class's, looked up at each call,
    since the probe of ``tenfold measure`` may wrap it later.
    """
    for name in ("do_execute", "do_execute_no_params", "do_executemany"):
        setattr(dialect, name, _executing(dialect, name, watch))
    for name in ("do_commit", "do_rollback"):
        setattr(dialect, name, _ending(dialect, name, watch))


def _executing(dialect: Any, name: str, watch: Watch) -> Callable[..., Any]:
    held, kind, before = watch.held, type(dialect), dialect.__dict__.get(name)

    def executing(cursor: Any, statement: str, *rest: Any, **named: Any) -> Any:
        context: Any = rest[-1] if rest else named.get("context")
        try:
            connection = context.root_connection._dbapi_connection
            holder = held[connection._connection_record]
        except (AttributeError, KeyError):  # a statement of SQLAlchemy's own, on a connection not handed out
            return (before or getattr(kind, name).__get__(dialect))(cursor, statement, *rest, **named)
        if holder.idle_since:
            watch.resumed(holder, connection)
        holder.sql = statement
        try:
            return (before or getattr(kind, name).__get__(dialect))(cursor, statement, *rest, **named)
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
        return (before or getattr(kind, name).__get__(dialect))(connection)

    return ending
