"""Engines: one for each server and use, for threads and for asyncio."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from inspect import signature
from typing import Any, Literal

from tenfold.database.asyncpg import connect_with
from tenfold.database.drivers import sqlstate
from tenfold.database.pools.pool import pool_options
from tenfold.database.pools.pool_monitor import PoolMonitorOptions
from tenfold.database.session_state import execute, track_reads, track_writes
from tenfold.database.urls import server_name
from tenfold.errors import CommitUnknownError, DependencyError, ReadOnlyError, SettingsError

try:
    import sqlalchemy
    from sqlalchemy import event
    from sqlalchemy.engine import URL, Engine
except ImportError as error:
    raise DependencyError("SQLAlchemy is not installed: pip install 'tenfold[database]'") from error

__all__ = ["EngineUse", "engine_factory", "engine_options"]

EngineUse = Literal["write", "read", "analytics"]

_READ_ONLY_SQL_TRANSACTION = "25006"
_SQLITE_READONLY = 8
_CONNECT_TIMEOUT_S = 3
_REPLICA_CONNECT_TIMEOUT_S = 2  # for reads; the least that libpq knows
_SETTINGS: Mapping[EngineUse, Sequence[str]] = {
    "write": (),
    "read": ("default_transaction_read_only=on",),
    "analytics": ("default_transaction_read_only=on", "statement_timeout=0"),
}
_POOL_OPTIONS = signature(pool_options).parameters.keys() - {"url", "metrics", "registry"}
_LOST = {"57P01", "57P02", "57P03"}  # the server shuts down, crashed, or starts; 08 is any lost connection


def engine_options(
    url: URL,
    use: EngineUse,
    chosen: Mapping[str, Any] | Callable[[URL], Mapping[str, Any]],
    *,
    make_pool_options: Callable[..., dict[str, Any]],
) -> Mapping[str, Any]:
    """The options of an engine: those of a monitored pool, overridden by what was ``chosen``.

    A function of the URL, or options with a pool of their own, are used as they are. A monitored pool without
    a name of its own is named for its use: one server has a pool for each.
    """
    if callable(chosen):
        options = chosen(url)
    elif {"poolclass", "pool", "creator"} & chosen.keys() or url.get_backend_name() == "sqlite":
        options = chosen
    else:
        of_pool = {name: chosen[name] for name in chosen if name in _POOL_OPTIONS}
        if not {"connect_timeout", "timeout"} & url.query.keys():
            of_pool.setdefault("connect_timeout_s", _CONNECT_TIMEOUT_S)
        options = make_pool_options(url, **of_pool)
        options |= {name: chosen[name] for name in chosen if name not in _POOL_OPTIONS}
    monitor = options.get("monitor_options")
    if isinstance(monitor, PoolMonitorOptions) and monitor.name == server_name(url):
        return {**options, "monitor_options": replace(monitor, name=f"{monitor.name} {use}")}
    return options


def engine_factory(
    url: URL, use: EngineUse, *, is_primary: bool, options: Mapping[str, Any]
) -> Callable[[bool, Callable[[Any], None]], Engine]:
    """A function that makes the engine of a server: for asyncio if its first argument is True.

    It calls its second argument with each connection of PostgreSQL's drivers that the engine opens.

    Reads run in AUTOCOMMIT: each statement has its own snapshot, as under READ COMMITTED, without the two
    round trips of BEGIN and ROLLBACK, and a check before it really precedes that snapshot. Where timeouts are
    set for transactions, connections are taken for PgBouncer's: it knows no settings of a session, so that
    reads run in transactions that only read.
    """

    def make(asynchronous: bool, on_connect: Callable[[Any], None]) -> Engine:
        chosen = dict(options)
        arguments = dict(chosen.get("connect_args") or {})
        # What the driver is given here would win over the URL's, and with it over "this session only reads".
        given = arguments.pop("options", "")
        chosen["connect_args"] = arguments
        is_pooled = _is_pooled(url, chosen)
        if use != "write" and is_pooled:
            chosen["execution_options"] = {
                **(chosen.get("execution_options") or {}),
                "postgresql_readonly": True,
            }
        elif use != "write":
            chosen |= {"isolation_level": "AUTOCOMMIT", "skip_autocommit_rollback": True}
        if use == "read" and not is_primary and "connect_timeout" in arguments:
            # The pool's own. The replica may hang since its last sample, and a read has somewhere else to go.
            longest_s = arguments["connect_timeout"] or _REPLICA_CONNECT_TIMEOUT_S  # 0 is no limit to libpq
            arguments["connect_timeout"] = min(longest_s, _REPLICA_CONNECT_TIMEOUT_S)
        if url.get_driver_name() == "asyncpg":
            arguments["async_creator_fn"] = connect_with(arguments.get("async_creator_fn"))
        _check_driver(url, asynchronous)
        target = _prepare_url(
            url, use, is_primary=is_primary, given=given, settings=() if is_pooled else _SETTINGS[use]
        )
        engine = _async_engine(target, chosen) if asynchronous else sqlalchemy.create_engine(target, **chosen)
        if engine.dialect.name == "postgresql":
            event.listen(engine, "connect", lambda _, record: on_connect(record.driver_connection))
        event.listen(engine, "handle_error", _recognise_lost_connection)
        translate = _translate_write_error if use == "write" else _translate_read_error
        event.listen(engine, "handle_error", translate)
        if engine.dialect.name == "postgresql":
            (track_writes if use == "write" else track_reads)(engine)
        if use == "analytics" and is_pooled:
            event.listen(engine, "begin", _lift_statement_timeout)
        if use == "write":
            _mark_commits(engine)
        elif engine.dialect.name == "sqlite":
            event.listen(engine, "connect", _set_query_only)
        return engine

    return make


def _check_driver(url: URL, asynchronous: bool) -> None:
    if url.get_backend_name() != "postgresql":
        return
    if asynchronous and url.get_driver_name() == "psycopg2":
        raise SettingsError("psycopg2 has no asyncio: use `with`, or postgresql+psycopg:// in the URL")
    if not asynchronous and (name := url.get_driver_name()) in ("asyncpg", "psycopg_async"):
        raise SettingsError(f"{name} is for asyncio: use `async with`, or postgresql+psycopg:// in the URL")


def _async_engine(url: URL, options: Mapping[str, Any]) -> Engine:
    from sqlalchemy.ext.asyncio import create_async_engine

    if url.drivername == "sqlite":
        url = url.set(drivername="sqlite+aiosqlite")
    return create_async_engine(url, **options).sync_engine


def _is_pooled(url: URL, options: Mapping[str, Any]) -> bool:
    """Return whether these options of an engine are those for PgBouncer in transaction mode."""
    monitor = options.get("monitor_options")
    is_by_transaction = isinstance(monitor, PoolMonitorOptions) and monitor.statement_timeout == "transaction"
    return is_by_transaction and url.get_backend_name() == "postgresql"


def _prepare_url(url: URL, use: EngineUse, *, is_primary: bool, given: str, settings: Sequence[str]) -> URL:
    """Add the session ``settings`` of this use to the URL, after the options that were ``given``."""
    if url.get_backend_name() != "postgresql":
        return url
    more: dict[str, str] = {}
    own = url.query.get("options", "")
    options = [own if isinstance(own, str) else " ".join(own), given, *(f"-c {each}" for each in settings)]
    if any(options):
        more["options"] = " ".join(filter(None, options))
    if is_primary and isinstance(url.query.get("host"), tuple):
        # Of several hosts the one that takes writes. A session that only reads is never "read-write".
        more["target_session_attrs"] = "read-write" if use == "write" else "primary"
    if not {"connect_timeout", "timeout"} & url.query.keys():
        more["connect_timeout"] = str(_CONNECT_TIMEOUT_S)
    return url.update_query_dict(more)


def _lift_statement_timeout(connection: Any) -> None:
    execute(connection.connection, "SET LOCAL statement_timeout = 0")


def _set_query_only(connection: Any, _: Any) -> None:
    connection.execute("pragma query_only = on").close()


def _mark_commits(engine: Engine) -> None:
    """Mark errors of COMMIT as such. An event would slow every statement down."""
    commit = engine.dialect.do_commit

    def do_commit(connection: Any) -> None:
        try:
            commit(connection)
        except Exception as error:
            error.__dict__["in_commit"] = True
            raise

    engine.dialect.do_commit = do_commit  # type: ignore[assignment, method-assign]


def _recognise_lost_connection(context: Any) -> None:
    """Recognise what SQLAlchemy takes for an error of the statement, since asyncpg reports it too early."""
    state = sqlstate(context.original_exception)
    if state in _LOST or state.startswith("08"):
        context.is_disconnect = True


def _translate_write_error(context: Any) -> Exception | None:
    """Recognise a commit of unknown outcome, and a primary that was demoted."""
    error = context.original_exception
    if context.is_disconnect and getattr(error, "in_commit", False):
        return CommitUnknownError(
            "the connection was lost during COMMIT, so that it is unknown whether it was committed: look for "
            "what it would have left before you try it again"
        )
    if _refuses_writes(error):
        # The primary was demoted while we were connected: the next connection finds the new one.
        context.is_disconnect = True
    return None


def _translate_read_error(context: Any) -> Exception | None:
    """Recognise a write through an engine that reads: a mistake in the service."""
    if not _refuses_writes(context.original_exception):
        return None
    return ReadOnlyError(
        "this session only reads: write through router.write() or router.get_write_session()"
    )


def _refuses_writes(error: Any) -> bool:
    read_only = getattr(error, "sqlite_errorcode", None) == _SQLITE_READONLY
    return read_only or sqlstate(error) == _READ_ONLY_SQL_TRANSACTION
