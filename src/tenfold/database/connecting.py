"""Opening a connection that may be cancelled half way, without leaving half a connection behind.

What SQLAlchemy's greenlets and tracebacks keep of a cancelled ``connect()`` lives until the garbage collector
looks at the oldest generation: minutes in which the server counts a connection that nobody has. So the
connection is opened in a task of its own; when nobody waits for it any more, it is closed once it is there.
"""

from __future__ import annotations

import asyncio
from typing import Any

_opening: set[asyncio.Task[Any]] = set()  # the event loop itself keeps weak references only


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


def shield(dialect: Any) -> None:
    """Make a dialect of psycopg open its connections by :func:`open_or_close`, unless told otherwise."""

    def connect(*arguments: Any, **options: Any) -> Any:
        options.setdefault("async_creator_fn", open_or_close)
        return type(dialect).connect(dialect, *arguments, **options)

    dialect.connect = connect


def _discard(task: asyncio.Task[Any]) -> None:
    _opening.discard(task)
    if not task.cancelled() and task.exception() is None:
        # Without a transaction there is nothing to wait for: PQfinish sends the end and closes the socket.
        task.result().pgconn.finish()
