"""psycopg itself: connections of tenfold's own, single questions, cancelled connects."""

from __future__ import annotations

import asyncio
from typing import Any

from tenfold.errors import DependencyError

__all__ = [
    "close_cancelled_connects",
    "connect_async",
    "query_value",
]


# ------------------------------------------------------------------ connections of its own


async def connect_async(url: str) -> Any:
    """Open a connection in AUTOCOMMIT, for the sampler.

    Raises:
        DependencyError: psycopg is not installed.
        psycopg.Error: the server cannot be reached.
    """
    # Nothing is prepared: it gains little here, and an older PgBouncer mixes prepared statements up.
    return await _library().AsyncConnection.connect(
        url, autocommit=True, connect_timeout=2, application_name="tenfold sampler", prepare_threshold=None
    )


def query_value(url: str, statement: str) -> Any:
    """Run a statement on a connection of its own, in AUTOCOMMIT; return its first value, None without one.

    Raises:
        DependencyError: psycopg is not installed.
        psycopg.Error: the server cannot be reached, or refuses.
    """
    with _library().connect(url, autocommit=True, connect_timeout=5) as connection:
        cursor = connection.execute(statement)
        row = cursor.fetchone() if cursor.description else None
        return row[0] if row else None


def _library() -> Any:
    try:
        import psycopg
    except ImportError as error:
        raise DependencyError("psycopg is not installed: pip install 'tenfold[database]'") from error
    return psycopg


# ------------------------------------------------------------------ cancelled connects

# What SQLAlchemy's greenlets and tracebacks keep of a cancelled ``connect()`` lives until the garbage
# collector looks at the oldest generation: minutes in which the server counts an unused connection. So the
# connection is opened in a task of its own; when its caller was cancelled, it is closed once it is there.
_opening: set[asyncio.Task[Any]] = set()  # the event loop itself keeps weak references only


def close_cancelled_connects(dialect: Any) -> None:
    """Make a dialect of psycopg open its connections by :func:`open_or_close`, unless told otherwise."""

    def connect(*arguments: Any, **options: Any) -> Any:
        options.setdefault("async_creator_fn", open_or_close)
        return type(dialect).connect(dialect, *arguments, **options)

    dialect.connect = connect


async def open_or_close(*arguments: Any, **options: Any) -> Any:
    """``psycopg.AsyncConnection.connect``; connect_timeout bounds what goes on after a cancellation."""
    from psycopg import AsyncConnection

    task = asyncio.create_task(AsyncConnection.connect(*arguments, **options))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        _opening.add(task)
        task.add_done_callback(_discard)
        raise


def _discard(task: asyncio.Task[Any]) -> None:
    _opening.discard(task)
    if not task.cancelled() and task.exception() is None:
        # Without a transaction there is nothing to wait for: PQfinish sends the end and closes the socket.
        task.result().pgconn.finish()
