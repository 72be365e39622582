"""A Redis connection pool for asyncio, at half the cost of redis-py's client.

A request that is cancelled or times out between a command and its reply leaves the reply in the socket, and
the next command on that connection would read it: another user's session. So a connection returns to the pool
only after the reply to its last command was read; otherwise it is closed. redis-py 8 does the same, but its
checkout, release and metrics hooks make a request that reads its session 20 % (pool) to 50 % (client) more
expensive (``benchmarks/sessions.py``).
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
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
        RedisError,
        ResponseError,
    )
except ImportError:
    raise DependencyError("Redis needs redis-py and hiredis: pip install 'tenfold[redis]'") from None

__all__ = ["RedisClient", "RedisLoopError", "RedisPool"]


@dataclass(slots=True)
class _LoopConnections:
    """The connections of one event loop, which no other may use."""

    slots: asyncio.Semaphore
    generation: int
    idle: list[Any] = field(default_factory=list)


class RedisPool:
    """Connections made as needed, at most ``max_connections``; further commands wait in line.

    No timeout of its own but for connecting: put ``asyncio.timeout`` around :meth:`execute`. Each event loop
    has connections of its own: test clients run one after the other, threads several at once.

    Args:
        url: ``redis://user:password@host:port/0``, ``rediss://…`` or ``unix://…``.
        max_connections: to that server, from this pool and one event loop.
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
        self._loops: dict[asyncio.AbstractEventLoop, _LoopConnections] = {}
        self._generation = 0  # connections of an earlier one are closed when they come back

    @property
    def connection_options(self) -> dict[str, Any]:
        """redis-py's connection options, the password included."""
        options: dict[str, Any] = self._factory.connection_kwargs
        return options

    async def execute(self, *command: Any) -> Any:
        """Send one command and return its reply, text as bytes; see :meth:`execute_all`.

        Raises:
            redis.exceptions.RedisError, OSError: as redis-py does.
        """
        (reply,) = await self.execute_all((command,))
        if isinstance(reply, ResponseError):
            raise reply
        return reply

    async def execute_all(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Send commands in one go on one connection and return their replies; an error reply as an exception.

        A lost connection, or a server that has become a replica, closes all idle connections, and the
        commands are sent once more: they may be executed twice.

        Raises:
            redis.exceptions.RedisError, OSError: as redis-py does, but for error replies.
        """
        try:
            return await self._execute_once(commands)
        except (ConnectionError, ReadOnlyError) as error:
            if isinstance(error, AuthenticationError | BusyLoadingError):
                raise
            await self.disconnect()
            return await self._execute_once(commands)

    async def _execute_once(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        held = self._loops.get(asyncio.get_running_loop()) or self._add_loop()
        async with held.slots:
            if held.generation != self._generation:
                await self._close_idle(held)
            generation, reusable = self._generation, False
            connection = held.idle.pop() if held.idle else self._factory.make_connection()
            try:
                if not connection.is_connected:
                    await connection.connect()
                packed = [pack_command(command) for command in commands]
                await connection.send_packed_command(packed, check_health=False)
                replies = [await _read_reply(connection) for _ in commands]
                reusable = True
                return replies
            finally:
                if reusable and generation == self._generation:
                    held.idle.append(connection)
                else:
                    await connection.disconnect(nowait=True)

    def _add_loop(self) -> _LoopConnections:
        """Add the running event loop, and forget those that are closed: their connections cannot be used."""
        for loop in list(self._loops):
            if loop.is_closed():
                self._loops.pop(loop, None)
        held = _LoopConnections(asyncio.Semaphore(self._max_connections), self._generation)
        self._loops[asyncio.get_running_loop()] = held
        return held

    async def _close_idle(self, held: _LoopConnections) -> None:
        held.generation = self._generation
        idle, held.idle = held.idle, []
        for connection in idle:
            await connection.disconnect(nowait=True)

    async def disconnect(self) -> None:
        """Close idle connections now, and those in use when they come back.

        Those of another event loop are closed when it uses the pool again.
        """
        self._generation += 1
        if held := self._loops.get(asyncio.get_running_loop()):
            await self._close_idle(held)


async def _read_reply(connection: Any) -> Any:
    """Read one reply; an error reply is one, unless it says that the server has become a replica."""
    try:
        return await connection.read_response(disable_decoding=True)
    except ReadOnlyError:
        raise
    except ResponseError as error:
        return error


class RedisLoopError(RedisError):
    """A client of redis-py was used in another event loop than its own."""


class RedisClient:
    """Commands over a client of redis-py that is the caller's own.

    Its connections belong to one event loop. They are dropped when that is closed, as test clients do after
    each request; while it runs, another is refused.

    Args:
        client: of ``redis.asyncio``, for one server, Sentinel or a cluster.
    """

    def __init__(self, client: Any) -> None:
        self._client = client
        self._loop: asyncio.AbstractEventLoop | None = None

    async def execute(self, *command: Any) -> Any:
        """Send one command and return its reply.

        Raises:
            RedisLoopError: the client belongs to another event loop.
            redis.exceptions.RedisError, OSError: as redis-py does.
        """
        if self._loop is not (loop := asyncio.get_running_loop()):
            if self._loop is not None:
                self._drop_connections(self._loop)
            self._loop = loop
        try:
            return await self._client.execute_command(*command)
        except RuntimeError as error:
            if "event loop" not in str(error).lower():
                raise
            raise RedisLoopError("the client belongs to another event loop") from None

    def _drop_connections(self, former: asyncio.AbstractEventLoop) -> None:
        reset = getattr(getattr(self._client, "connection_pool", None), "reset", None)  # not of a cluster
        if not former.is_closed() or reset is None:
            raise RedisLoopError("the client belongs to another event loop")
        reset()
