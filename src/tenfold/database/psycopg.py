"""psycopg itself: dead and hung connections, the errors of a server, single questions, cancelled connects."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import socket
from typing import Any

from tenfold.errors import DependencyError

__all__ = [
    "SocketPoll",
    "close_cancelled_connects",
    "connect_async",
    "is_unsupported",
    "lacks_positions",
    "query_value",
    "server_version",
    "shut_down_socket",
    "sqlstate",
]


_UNSUPPORTED = {"0A000", "22023", "42601", "55000"}  # not supported, a parameter, a syntax error, not now
_NO_POSITIONS = {"42883", "0A000", "42501"}  # undefined function, not supported, not allowed


class SocketPoll:
    """A poll of the socket below a driver's connection, for a look before each use.

    Kept as long as the connection: to make the object that polls costs more than to poll.
    """

    __slots__ = ("_pgconn", "_poll", "_socket")

    def __init__(self, connection: Any) -> None:
        self._pgconn = getattr(connection, "pgconn", None)  # None: another driver
        self._socket, self._poll = -1, select.poll()

    def is_dead(self) -> bool:
        """Return whether the server has hung up on an idle connection. Costs no round trip.

        Something to read on a connection that asked nothing is its end, or a farewell (57P01). A server that
        was cut off without a word, say by a firewall, is not noticed.
        """
        if self._pgconn is None:
            return False
        try:
            socket = self._pgconn.socket
        except Exception:  # psycopg's own, when it is closed already
            return True
        if socket != self._socket:
            self._socket, self._poll = socket, select.poll()
            self._poll.register(socket, select.POLLIN)
        return bool(self._poll.poll(0))


def shut_down_socket(connection: Any) -> None:
    """Shut the socket below ``connection`` down, so that the thread or task waiting on it gets an error.

    For a server that does not answer: neither a cancel request nor the driver's own timeout reaches it. May
    be called from any thread; nothing happens to what is closed or None.
    """
    # Another thread may close it at this very moment.
    with (
        contextlib.suppress(Exception),
        socket.socket(fileno=os.dup(connection.pgconn.socket)) as duplicate,
    ):
        duplicate.shutdown(socket.SHUT_RDWR)


# ------------------------------------------------------------------ answers of a server


def sqlstate(error: BaseException | None) -> str:
    """The five characters of a driver's error; "" when it has none."""
    return str(getattr(error, "sqlstate", None) or "")


def lacks_positions(error: BaseException) -> bool:
    """Return whether a server said that it has no log positions, or none for this role."""
    return sqlstate(error) in _NO_POSITIONS


def is_unsupported(error: BaseException) -> bool:
    """Return whether a server said that it does not know this statement, or does not do it here."""
    return sqlstate(error) in _UNSUPPORTED


def server_version(connection: Any) -> int:
    """``server_version_num``, as the server told it when the connection was made; 0 with another driver."""
    return int(getattr(getattr(connection, "info", None), "server_version", 0))


# ------------------------------------------------------------------ connections of its own


async def connect_async(url: str) -> Any:
    """Open a connection in AUTOCOMMIT, for the sampler.

    Raises:
        DependencyError: psycopg is not installed.
        psycopg.Error: the server cannot be reached.
    """
    return await _library().AsyncConnection.connect(
        url, autocommit=True, connect_timeout=2, application_name="tenfold sampler"
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
