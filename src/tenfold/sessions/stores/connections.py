"""Connections that are reused only after the answer to whatever was asked on them has been read.

A request that is cancelled or times out between question and answer leaves the answer in the socket, and
whoever asks there next gets it: somebody else's session. So a connection goes back when its answer came, and
only then.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType
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


# Many timeouts of the same length on one timer: each with a timer of its own costs a third of a read.
#
# What is begun first is due first: the timer is set for the oldest call alone, and anew when it rings. While
# calls end in time it rings once in ``seconds``, whatever their number. Otherwise as :func:`asyncio.timeout`,
# but that an event loop that was held up reads what has arrived meanwhile before it gives up.
STALL_S = 0.02  # a timer that is later than this was held up by our own event loop, not by the server
_GRACE_S = 0.05


class Timeouts:
    """``with timeouts.limit(): …`` raises TimeoutError once that takes longer than ``seconds``."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._running: dict[Limit, None] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None

    def limit(self) -> Limit:
        """For one block of one task."""
        return Limit(self)

    def begin(self, limit: Limit) -> None:
        loop = asyncio.get_running_loop()
        limit.due = loop.time() + self.seconds
        if loop is not self._loop:  # a timer of a loop that is gone would never ring
            self._loop, self._timer, self._running = loop, None, {}
        self._running[limit] = None
        if self._timer is None:
            self._timer = loop.call_at(limit.due, self._ring, loop)

    def end(self, limit: Limit) -> None:
        self._running.pop(limit, None)

    def _ring(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer, now = None, loop.time()
        for limit in list(self._running):
            if limit.due > now:
                self._timer = loop.call_at(limit.due, self._ring, loop)
                return
            self.end(limit)
            limit.expire(now - limit.due, loop)


class Limit:
    """One block's timeout.

    Attributes:
        due: when, by the loop's clock.
        late_s: how much later than due it was noticed: by so much the event loop was held up. None in time.
    """

    __slots__ = ("_cancelling", "_grace", "_task", "_timeouts", "due", "late_s")

    def __init__(self, timeouts: Timeouts) -> None:
        self._timeouts = timeouts
        self.due = 0.0
        self.late_s: float | None = None
        self._grace: asyncio.TimerHandle | None = None

    def __enter__(self) -> Limit:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a timeout needs a task that it can interrupt")
        self._task, self._cancelling = task, task.cancelling()
        self._timeouts.begin(self)
        return self

    def expire(self, late_s: float, loop: asyncio.AbstractEventLoop) -> None:
        if late_s > STALL_S:
            self._grace = loop.call_later(_GRACE_S, self._over, late_s)
        else:
            self._over(late_s)

    def _over(self, late_s: float) -> None:
        self.late_s = late_s
        self._task.cancel()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timeouts.end(self)
        if self._grace is not None:
            self._grace.cancel()
        # Whoever else cancelled the task meanwhile goes first, as in asyncio.timeout.
        ours = self.late_s is not None and self._task.uncancel() <= self._cancelling
        if ours and kind is not None and issubclass(kind, asyncio.CancelledError):
            raise TimeoutError from error
