"""Hooks into psycopg 3, for services that use it without SQLAlchemy or Django."""

from __future__ import annotations

from typing import Any

from tenfold.measure.probe.hooks import Hooks, always, first_argument, statement_text
from tenfold.measure.probe.recorder import Recorder

_hooks = Hooks(always("postgresql"))


def install(recorder: Recorder) -> None:
    """Time executions, commits and rollbacks of every connection, sync and async; pools are not seen."""
    import psycopg

    _hooks.recorder = recorder
    for cursor in (psycopg.Cursor, psycopg.ServerCursor):
        for name in ("execute", "executemany"):
            _hooks.wrap(cursor, name, _query)
    for async_cursor in (psycopg.AsyncCursor, psycopg.AsyncServerCursor):
        for name in ("execute", "executemany"):
            _hooks.wrap_async(async_cursor, name, _query)
    _hooks.wrap(psycopg.Connection, "connect", always("CONNECT"))
    _hooks.wrap_async(psycopg.AsyncConnection, "connect", always("CONNECT"))
    for name in ("commit", "rollback"):
        _hooks.wrap(psycopg.Connection, name, always(name.upper()))
        _hooks.wrap_async(psycopg.AsyncConnection, name, always(name.upper()))


def _query(args: tuple[Any, ...]) -> str:
    if len(args) > 1 and hasattr(args[1], "as_string"):  # psycopg.sql
        try:
            return str(args[1].as_string(args[0]))
        except Exception:  # it needs what the connection knows
            return statement_text(args[1])
    return first_argument(args)
