"""Hooks into asyncpg, for services that use it without SQLAlchemy."""

from __future__ import annotations

from typing import Any

from tenfold.measure.probe.hooks import Hooks, always, first_argument
from tenfold.measure.probe.recorder import Recorder

_hooks = Hooks(always("postgresql"))


def install(recorder: Recorder) -> None:
    """Time every statement, those of prepared statements and transactions included; pools are not seen."""
    from asyncpg import connect_utils
    from asyncpg.connection import Connection
    from asyncpg.prepared_stmt import PreparedStatement

    _hooks.recorder = recorder
    _hooks.wrap_async(connect_utils, "_connect", always("CONNECT"))
    for name in ("execute", "executemany", "fetch", "fetchval", "fetchrow", "fetchmany"):
        _hooks.wrap_async(Connection, name, _statement)
    for name in ("executemany", "fetch", "fetchval", "fetchrow", "fetchmany"):
        _hooks.wrap_async(PreparedStatement, name, _of_prepared)


def _statement(args: tuple[Any, ...]) -> str:
    statement = first_argument(args)
    return "RESET" if statement.startswith("SELECT pg_advisory_unlock_all();") else statement


def _of_prepared(args: tuple[Any, ...]) -> str:
    return str(args[0].get_query())
