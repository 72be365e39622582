"""Connections that are reused only after the answer to whatever was asked on them has been read.

A request that is cancelled or times out between question and answer leaves the answer in the socket, and
whoever asks there next gets it: somebody else's session. So a connection goes back when its answer came, and
only then.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol


class Connection(Protocol):
    """What is used of ``redis.asyncio.connection.Connection``."""

    @property
    def is_connected(self) -> bool: ...
    async def connect(self) -> None: ...
    async def send_packed_command(self, command: bytes, check_health: bool = True) -> None: ...
    async def read_response(self, disable_decoding: bool = False) -> Any: ...
    async def disconnect(self, nowait: bool = False) -> None: ...


class Connections:
    """At most ``most`` connections, made as needed; whoever comes when all are in use waits in line.

    Args:
        make: a new connection, not yet connected.
        pack: a command as it is sent.
        answered: the kind of error that is an answer, after which a connection is as good as before.
        outdated: answers after which no connection made so far is of use: the server has become a replica.
    """

    def __init__(
        self,
        make: Callable[[], Connection],
        *,
        pack: Callable[[tuple[Any, ...]], bytes],
        most: int,
        answered: type[Exception],
        outdated: tuple[type[Exception], ...] = (),
    ) -> None:
        self._make, self._pack, self._answered, self._outdated = make, pack, answered, outdated
        self._most = most
        self._loop: asyncio.AbstractEventLoop | None = None
        self._idle: list[Connection] = []
        self._era = 0

    async def ask(self, *command: Any) -> Any:
        """The server's answer to one command, as bytes where it is text."""
        if self._loop is not (loop := asyncio.get_running_loop()):
            self._move(loop)
        async with self._room:
            era, connection = self._era, self._idle.pop() if self._idle else self._make()
            clean = False
            try:
                if not connection.is_connected:
                    await connection.connect()
                await connection.send_packed_command(self._pack(command), check_health=False)
                answer = await connection.read_response(disable_decoding=True)
                clean = True
                return answer
            except self._answered as error:
                clean = not isinstance(error, self._outdated)
                raise
            finally:
                if clean and era == self._era:
                    self._idle.append(connection)
                else:
                    await connection.disconnect(nowait=True)

    def _move(self, loop: asyncio.AbstractEventLoop) -> None:
        """Leave the connections of another event loop, which as a rule is closed, as test clients do."""
        self._loop, self._idle, self._room = loop, [], asyncio.Semaphore(self._most)
        self._era += 1

    async def renew(self) -> None:
        """Close what is idle, and what is in use when it comes back: the next to ask connects anew."""
        self._era += 1
        idle, self._idle = self._idle, []
        if self._loop is asyncio.get_running_loop():
            for connection in idle:
                await connection.disconnect(nowait=True)
