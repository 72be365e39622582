"""PostgreSQL's drivers (psycopg, psycopg2, asyncpg): sockets below connections, and a server's errors."""

from __future__ import annotations

import contextlib
import os
import select
import socket
from typing import Any

__all__ = [
    "SocketPoll",
    "abandon_connections",
    "is_refusal",
    "server_version",
    "shut_down_socket",
    "sqlstate",
]

# Classes of SQLSTATE that say nothing of a statement, only of its moment: connection, transaction, conflict,
# resources, intervention, system. https://www.postgresql.org/docs/current/errcodes-appendix.html
_OF_THE_MOMENT = {"08", "25", "40", "53", "57", "58"}


# ------------------------------------------------------------------ sockets


def _socket_of(connection: Any) -> int:
    """The file descriptor below a driver's connection; -1 when it has none.

    Raises:
        Exception: the driver's own, when the connection is closed.
    """
    if (pgconn := getattr(connection, "pgconn", None)) is not None:  # psycopg
        return int(pgconn.socket)
    if (transport := getattr(connection, "_transport", None)) is not None:  # asyncpg
        return int(transport.get_extra_info("socket").fileno())
    fileno = getattr(connection, "fileno", None)  # psycopg2
    return -1 if fileno is None else int(fileno())


class SocketPoll:
    """A poll of the socket below a driver's connection, for a look before each use.

    Kept as long as the connection: to make the object that polls costs more than to poll.
    """

    __slots__ = ("_connection", "_poll", "_socket")

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._socket, self._poll = -1, select.poll()

    def is_dead(self) -> bool:
        """Return whether the server has hung up on an idle connection. Costs no round trip.

        Something to read on a connection that asked nothing is its end, or a farewell (57P01). A server that
        was cut off without a word, say by a firewall, is not noticed.
        """
        try:
            socket = _socket_of(self._connection)
        except Exception:  # the driver's own, when it is closed already
            return True
        if socket < 0:
            is_closed = getattr(self._connection, "is_closed", None)  # asyncpg has read the end by itself
            return is_closed is not None and bool(is_closed())
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
        socket.socket(fileno=os.dup(_socket_of(connection))) as duplicate,
    ):
        duplicate.shutdown(socket.SHUT_RDWR)


def abandon_connections(engine: Any) -> None:
    """Close the idle connections of an engine for asyncio without its event loop, which may be closed."""
    idle: Any = getattr(engine.pool, "_pool", None)  # of a QueuePool
    while idle is not None and not idle.empty():
        connection = idle.get(False).driver_connection
        if (pgconn := getattr(connection, "pgconn", None)) is not None:
            pgconn.finish()
        else:
            shut_down_socket(connection)
    engine.dispose(close=False)


# ------------------------------------------------------------------ answers of a server


def sqlstate(error: BaseException | None) -> str:
    """The five characters of a driver's error; "" when it has none."""
    return str(getattr(error, "sqlstate", None) or getattr(error, "pgcode", None) or "")


def is_refusal(error: BaseException) -> bool:
    """Return whether a server refused a statement for good: it will refuse it the next time, too."""
    return sqlstate(error)[:2] not in _OF_THE_MOMENT | {""}


def server_version(connection: Any) -> int:
    """``server_version_num``, as the server told it when the connection was made; 0 if it is not known."""
    if (version := getattr(connection, "server_version", None)) is not None:  # psycopg2
        return int(version)
    if (ask := getattr(connection, "get_server_version", None)) is not None:  # asyncpg
        found = ask()
        return int(found.major) * 10_000 + int(found.minor)
    return int(getattr(getattr(connection, "info", None), "server_version", 0))
