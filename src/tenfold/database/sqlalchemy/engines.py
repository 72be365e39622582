"""Engines: one for each server and use, for threads and for asyncio."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Literal

from tenfold.database.psycopg import sqlstate
from tenfold.errors import CommitUnknownError, DependencyError, ReadOnlyError, SettingsError

try:
    import sqlalchemy
    from sqlalchemy import event
    from sqlalchemy.engine import URL, Engine, make_url
except ImportError as error:
    raise DependencyError("SQLAlchemy is not installed: pip install 'tenfold[database]'") from error

__all__ = ["Use", "database_url", "maker", "server_name"]

Use = Literal["write", "read", "analytics"]

_READ_ONLY_SQL_TRANSACTION = "25006"
_SQLITE_READONLY = 8
_CONNECT_TIMEOUT_S = 3
_SEVERAL_HOSTS = re.compile(
    r"(?P<head>\w+(?:\+\w+)?://(?:[^@/]*@)?)(?P<hosts>[^/?]*,[^/?]*)(?P<rest>.*)", re.S
)


def database_url(text: str | URL) -> URL:
    """``text`` as SQLAlchemy's URL, with the driver that is used here: psycopg for PostgreSQL.

    ``postgresql://user@one:5432,two:5432/shop``, as libpq writes several hosts, is taken too.

    Raises:
        SettingsError: it is no URL; its text is not shown, since it may hold a password.
    """
    try:
        url = make_url(_several_hosts(text) if isinstance(text, str) else text)
    except (sqlalchemy.exc.ArgumentError, ValueError):
        raise SettingsError(
            "a database's URL cannot be read: one looks like postgresql://user:password@host:5432/name"
        ) from None
    if url.drivername in ("postgres", "postgresql"):
        return url.set(drivername="postgresql+psycopg")
    return url


def _several_hosts(text: str) -> str:
    found = _SEVERAL_HOSTS.fullmatch(text)
    if not found:
        return text
    rest = found["rest"] or "/"
    hosts = "&".join(f"host={host}" for host in found["hosts"].split(","))
    return f"{found['head']}{rest}{'&' if '?' in rest else '?'}{hosts}"


def server_name(url: URL) -> str:
    """Host, port and database."""
    host = url.query.get("host", "")
    hosts = host if isinstance(host, str) else ",".join(host)
    port = f":{url.port}" if url.port else ""
    return f"{url.host or hosts}{port}/{url.database or ''}"


def maker(
    url: URL, use: Use, *, primary: bool, options: Mapping[str, Any]
) -> Callable[[bool, Callable[[Any], None]], Engine]:
    """A function that makes the engine of a server, for asyncio or not.

    Reads run in AUTOCOMMIT: each statement has its own snapshot, as under READ COMMITTED, without the two
    round trips of BEGIN and ROLLBACK, and a check before it really precedes that snapshot.
    """

    def make(asynchronous: bool, opened: Callable[[Any], None]) -> Engine:
        chosen = dict(options)
        arguments = dict(chosen.get("connect_args") or {})
        # What the driver is given here would win over the URL's, and with it over "this session only reads".
        given = arguments.pop("options", "")
        chosen["connect_args"] = arguments
        if use != "write":
            chosen |= {"isolation_level": "AUTOCOMMIT", "skip_autocommit_rollback": True}
        target = _prepared(url, use, primary=primary, given=given)
        engine = _async_engine(target, chosen) if asynchronous else sqlalchemy.create_engine(target, **chosen)
        if engine.dialect.driver == "psycopg":  # the only one whose connections can be cut
            event.listen(engine, "connect", lambda _, record: opened(record.driver_connection))
        event.listen(engine, "handle_error", _translated)
        if use == "write":
            _mark_commits(engine)
        elif engine.dialect.name == "sqlite":
            event.listen(engine, "connect", _query_only)
        return engine

    return make


def _async_engine(url: URL, options: Mapping[str, Any]) -> Engine:
    from sqlalchemy.ext.asyncio import create_async_engine

    if url.drivername == "sqlite":
        url = url.set(drivername="sqlite+aiosqlite")
    return create_async_engine(url, **options).sync_engine


def _prepared(url: URL, use: Use, *, primary: bool, given: str = "") -> URL:
    """The URL with what PostgreSQL has to know about this use, after the options that were ``given``."""
    if url.get_backend_name() != "postgresql":
        return url
    more: dict[str, str] = {}
    own = url.query.get("options", "")
    settings = [own if isinstance(own, str) else " ".join(own), given]
    if use != "write":
        settings.append("-c default_transaction_read_only=on")
    if use == "analytics":
        settings.append("-c statement_timeout=0")
    if any(settings):
        more["options"] = " ".join(filter(None, settings))
    if primary and isinstance(url.query.get("host"), tuple):
        # Of several hosts the one that takes writes. A session that only reads is never "read-write".
        more["target_session_attrs"] = "read-write" if use == "write" else "primary"
    if "connect_timeout" not in url.query:
        more["connect_timeout"] = str(_CONNECT_TIMEOUT_S)
    return url.update_query_dict(more)


def _query_only(connection: Any, _: Any) -> None:
    connection.execute("pragma query_only = on").close()


def _mark_commits(engine: Engine) -> None:
    """Remember of an error that COMMIT had been sent. An event would slow every statement down."""
    commit = engine.dialect.do_commit

    def do_commit(connection: Any) -> None:
        try:
            commit(connection)
        except Exception as error:
            error.__dict__["in_commit"] = True
            raise

    engine.dialect.do_commit = do_commit  # type: ignore[assignment, method-assign]


def _translated(context: Any) -> Exception | None:
    """Errors that mean something to the router's user, in the place of the driver's."""
    error = context.original_exception
    if context.is_disconnect and getattr(error, "in_commit", False):
        return CommitUnknownError(
            "the connection was lost during COMMIT, so that nobody knows whether it was committed: look for "
            "what it would have left before you try it again"
        )
    refused = sqlstate(error) == _READ_ONLY_SQL_TRANSACTION
    if refused or getattr(error, "sqlite_errorcode", None) == _SQLITE_READONLY:
        if context.engine is not None and not _writes(context.engine):
            return ReadOnlyError(
                "this session only reads: write through router.write() or router.get_write_session()"
            )
        # The primary was demoted while we were connected: the next connection finds the new one.
        context.is_disconnect = True
    return None


def _writes(engine: Engine) -> bool:
    return "do_commit" in engine.dialect.__dict__
