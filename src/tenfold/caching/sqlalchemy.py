"""What SQLAlchemy shows of loads and writes: the tables, snapshots that are too old, uncommitted changes.

Tables of ORM and Core statements, of joined and lazy loads and of flushes are seen; those of raw SQL,
triggers, cascades in the database and functions are not.
"""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager
from typing import Any
from weakref import WeakKeyDictionary, WeakSet, ref

from tenfold.errors import DependencyError
from tenfold.reads import ReadLog

try:
    from sqlalchemy import event
    from sqlalchemy.engine import Connection, Engine
    from sqlalchemy.exc import SQLAlchemyError
    from sqlalchemy.orm import Session, SessionTransaction
    from sqlalchemy.schema import Table
    from sqlalchemy.sql import visitors
except ImportError:
    raise DependencyError("SQLAlchemy is not installed: pip install 'tenfold[caching]'") from None

__all__ = ["collect_tables", "find_obstacle", "forget_listener", "on_written_tables"]

_WRITTEN = "tenfold written tables"
_CHANGES = "the session has changes of its own"
_TABLES = ReadLog("tables of a load")
# Weak on both sides: a session that is never closed is collected, and gives its connection back.
_sessions: WeakKeyDictionary[Connection, ref[Session]] = WeakKeyDictionary()
_listeners: WeakSet[Any] = WeakSet()  # caches
_lock = threading.Lock()
_is_listening = False


# ------------------------------------------------------------------ snapshots and uncommitted changes

_STATE = (
    "SELECT current_setting('transaction_isolation') IN ('read committed', 'read uncommitted'), "
    "txid_current_if_assigned() IS NULL"
)
_PER_STATEMENT = ("READ COMMITTED", "READ UNCOMMITTED", "AUTOCOMMIT")


def find_obstacle(session: Session, *, is_before: bool) -> str:
    """Say why what this session reads must not be kept for others; empty if it may.

    PostgreSQL is asked for the isolation level and for whether the transaction has written, SQLite's driver
    for whether there is a transaction. Elsewhere what SQLAlchemy saw counts as writes.

    Args:
        is_before: before the load; a snapshot that is taken later does no harm.
    """
    if session.new or session.dirty or session.deleted or session.info.get(_WRITTEN):
        return _CHANGES
    if not session.in_transaction():
        return ""
    try:
        connection = session.connection()
        if connection.dialect.name == "sqlite":  # which begins before the first write, not before a read
            return _CHANGES if connection.connection.driver_connection.in_transaction else ""  # type: ignore[union-attr]
        if connection.dialect.name == "postgresql":
            is_per_statement, is_clean = connection.exec_driver_sql(_STATE).one()
        else:
            is_per_statement, is_clean = connection.get_isolation_level() in _PER_STATEMENT, True
    except SQLAlchemyError as error:
        return f"the session's state is unknown ({type(error).__name__})"
    if not is_clean:
        return _CHANGES
    return "the session reads from a snapshot" if is_before and not is_per_statement else ""


# ------------------------------------------------------------------ tables


def collect_tables() -> AbstractContextManager[set[str]]:
    """Collect the tables that are read inside of a block."""
    _listen()
    return _TABLES.collect()


def on_written_tables(cache: Any) -> None:
    """Call ``cache.invalidate(*tables, session=…)`` for what sessions of this process write, when they do.

    Args:
        cache: is not kept alive by this.
    """
    _listen()
    _listeners.add(cache)


def forget_listener(cache: Any) -> None:
    """Call a cache no more."""
    _listeners.discard(cache)


def _listen() -> None:
    """Listen to all engines and sessions of this process, once."""
    global _is_listening  # noqa: PLW0603 - SQLAlchemy's events are of the process, too
    with _lock:
        if not _is_listening:
            event.listen(Engine, "before_cursor_execute", _note_statement)
            event.listen(Session, "after_begin", _note_connection)
            event.listen(Session, "after_transaction_end", _forget_writes)
            _is_listening = True


def _note_connection(session: Session, _: SessionTransaction, connection: Connection) -> None:
    _sessions[connection] = ref(session)


def _forget_writes(session: Session, transaction: SessionTransaction) -> None:
    if transaction.parent is None:
        session.info.pop(_WRITTEN, None)


def _note_statement(connection: Connection, _: Any, __: str, ___: Any, context: Any, ____: bool) -> None:
    if context is None or (compiled := getattr(context, "compiled", None)) is None:
        return
    if context.isinsert or context.isupdate or context.isdelete:
        session = _sessions[connection]() if _listeners and connection in _sessions else None
        if session is not None:
            _note_write(session, _table_name(compiled.dml_compile_state.dml_table))
    elif _TABLES.is_collecting:
        state = getattr(compiled, "compile_state", None)
        for statement in (compiled.statement, getattr(state, "statement", None)):  # with joined loads
            if statement is not None:
                _TABLES.add(*_tables(statement))


def _note_write(session: Session, table: str) -> None:
    written: set[str] | None = session.info.get(_WRITTEN)
    if written is None:
        written = session.info[_WRITTEN] = set()
    if table not in written:
        written.add(table)
        for cache in list(_listeners):
            cache.invalidate(table, session=session)


def _tables(statement: Any) -> set[str]:
    return {_table_name(element) for element in visitors.iterate(statement) if isinstance(element, Table)}


def _table_name(table: Any) -> str:
    return str(getattr(table, "fullname", None) or getattr(table, "name", "?")).replace(" ", "_")
