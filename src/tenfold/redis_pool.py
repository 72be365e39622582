"""A Redis connection pool for commands with one reply each, at half the cost of redis-py's client.

A request that is cancelled or times out between a command and its reply leaves the reply in the socket, and
the next command on that connection would read it: another user's session. So a connection returns to the pool
only after the reply to its last command was read; otherwise it is closed. redis-py 8 does the same, but its
checkout, release and metrics hooks make a request that reads its session 20 % (pool) to 50 % (client) more
expensive (``benchmarks/sessions.py``).
"""

from __future__ import annotations

import asyncio
import re
from typing import Any

from tenfold.errors import DependencyError, SettingsError

try:
    from hiredis import pack_command
    from redis.asyncio import ConnectionPool
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff
    from redis.exceptions import (
        AuthenticationError,
        BusyLoadingError,
        ConnectionError,
        ReadOnlyError,
        ResponseError,
    )
except ImportError:
    raise DependencyError("Redis needs redis-py and hiredis: pip install 'tenfold[redis]'") from None

__all__ = ["RedisPool"]


class RedisPool:
    """Connections made as needed, at most ``max_connections``; further commands wait in line.

    No timeout of its own but for connecting: put ``asyncio.timeout`` around :meth:`execute`. Follows its
    caller to another event loop, as test clients need it.

    Args:
        url: ``redis://user:password@host:port/0``, ``rediss://…`` or ``unix://…``.
        max_connections: to that server, from this pool.
        connect_timeout_s: for one connection attempt.

    Raises:
        SettingsError: the URL is not one of a Redis.
    """

    def __init__(self, url: str, *, max_connections: int, connect_timeout_s: float) -> None:
        if "@" in re.sub(r"^[^:]*://[^/?#]*", "", url):  # a password with a slash, read as host and path
            raise SettingsError(
                "the Redis URL has an @ behind its host: in a password write / as %2F, ? as %3F, # as %23"
            )
        try:
            # Only to parse the URL and to make connections. RESP2, because with RESP3 the server could speak
            # first. No socket timeout: redis-py would add a task to each write.
            self._factory: Any = ConnectionPool.from_url(
                url,
                protocol=2,
                socket_timeout=None,
                socket_connect_timeout=connect_timeout_s,
                retry=Retry(NoBackoff(), 0),
            )
        except ValueError:
            raise SettingsError("this is not a Redis URL: write redis://user:password@host:port/0") from None
        self._max_connections = max_connections
        self._loop: asyncio.AbstractEventLoop | None = None
        self._idle: list[Any] = []
        self._generation = 0  # connections of an earlier one are closed when they come back

    @property
    def connection_options(self) -> dict[str, Any]:
        """redis-py's connection options, the password included."""
        options: dict[str, Any] = self._factory.connection_kwargs
        return options

    async def execute(self, *command: Any) -> Any:
        """Send one command and return its reply, text as bytes.

        A lost connection, or a server that has become a replica, closes all idle connections, and the command
        is sent once more: it may be executed twice.

        Raises:
            redis.exceptions.RedisError, OSError: as redis-py does.
        """
        try:
            return await self._execute_once(command)
        except (ConnectionError, ReadOnlyError) as error:
            if isinstance(error, AuthenticationError | BusyLoadingError):
                raise
            await self.disconnect()
            return await self._execute_once(command)

    async def _execute_once(self, command: tuple[Any, ...]) -> Any:
        if self._loop is not (loop := asyncio.get_running_loop()):
            self._adopt_loop(loop)
        async with self._slots:
            generation, reusable = self._generation, False
            connection = self._idle.pop() if self._idle else self._factory.make_connection()
            try:
                if not connection.is_connected:
                    await connection.connect()
                await connection.send_packed_command(pack_command(command), check_health=False)
                reply = await connection.read_response(disable_decoding=True)
                reusable = True
                return reply
            except ResponseError as error:  # an error reply is a reply
                reusable = not isinstance(error, ReadOnlyError)
                raise
            finally:
                if reusable and generation == self._generation:
                    self._idle.append(connection)
                else:
                    await connection.disconnect(nowait=True)

    def _adopt_loop(self, loop: asyncio.AbstractEventLoop) -> None:
        """Drop the connections of another event loop, which as a rule is closed."""
        self._loop, self._idle, self._slots = loop, [], asyncio.Semaphore(self._max_connections)
        self._generation += 1

    async def disconnect(self) -> None:
        """Close idle connections now, and those in use when they come back."""
        self._generation += 1
        idle, self._idle = self._idle, []
        if self._loop is asyncio.get_running_loop():
            for connection in idle:
                await connection.disconnect(nowait=True)
