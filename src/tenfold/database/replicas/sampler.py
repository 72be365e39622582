"""The sampler: asks every server for its position at intervals, so that reads need not find out its state."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tenfold.database.drivers import is_refusal, shut_down_socket
from tenfold.database.psycopg import connect_async
from tenfold.database.replicas.freshness import FULL_POSITION_QUERY, parse_answer
from tenfold.database.replicas.servers import Cluster, DatabaseServer, HealthLimits, Lag, ServerHealth
from tenfold.errors import PositionError
from tenfold.process_thread import ProcessThread

__all__ = ["PositionSampler", "SampledServer"]

_TICK_S = 0.1
_log = logging.getLogger("tenfold.database")


@dataclass(slots=True)
class SampledServer:
    """One server to be sampled, and the state of its sampling.

    Attributes:
        name: without a password.
        url: libpq's, password included.
        dependents: the servers whose open connections are cut when this one hangs.
        connection: the one on which it is asked; None before it is made.
        silent_ticks: how long a question has been waiting for its answer. Counted, not timed: when this
            process was held up itself, the server is not to blame.
        is_waiting: whether a question is under way.
    """

    name: str
    url: str
    is_primary: bool
    health: ServerHealth
    dependents: Sequence[DatabaseServer] = ()
    connection: Any = None
    silent_ticks: int = 0
    is_waiting: bool = False


class PositionSampler(ProcessThread):
    """A daemon thread with an event loop of its own: one connection to each server, one question at a time.

    Works the same beside threads and beside asyncio, and a service's blocked loop does not stop it.
    """

    def __init__(self, targets: Sequence[SampledServer], *, cluster: Cluster, limits: HealthLimits) -> None:
        super().__init__(name="tenfold-replicas")
        self._targets, self._cluster, self._limits = targets, cluster, limits

    def _prepare(self) -> None:
        for target in self._targets:  # a parent's connections are not ours
            target.connection, target.is_waiting, target.silent_ticks = None, False, 0

    def _interrupt(self) -> None:
        for target in self._targets:
            shut_down_socket(target.connection)

    def _run(self, stopping: threading.Event) -> None:
        with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
            runner.run(self._sample_all(stopping))

    async def _sample_all(self, stop: threading.Event) -> None:
        tasks = [asyncio.create_task(self._sample(target)) for target in self._targets]
        while not stop.is_set():
            await asyncio.sleep(_TICK_S)
            for target in self._targets:
                self._tick(target)
        for target in self._targets:
            # A cancelled query would first ask its server to end it, and wait.
            shut_down_socket(target.connection)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks, timeout=2)

    def _tick(self, target: SampledServer) -> None:
        target.silent_ticks = target.silent_ticks + 1 if target.is_waiting else 0
        silent_s = target.silent_ticks * _TICK_S
        if silent_s < self._limits.hang_s / 2:
            return
        if target.health.answers:
            _log.warning("%s does not answer: it gets no reads until it does", target.name)
        target.health.answers = False
        # Repeatedly: a connection made a moment ago hangs, too.
        if silent_s >= self._limits.hang_s and target.silent_ticks % 5 == 0:
            shut_down_socket(target.connection)
            for server in target.dependents:
                for connection in server.open_connections():
                    shut_down_socket(connection)

    async def _sample(self, target: SampledServer) -> None:
        while True:
            target.is_waiting = True
            try:
                if target.connection is None:
                    target.connection = await connect_async(target.url)
                cursor = await target.connection.execute(FULL_POSITION_QUERY)
                self._record_answer(target, await cursor.fetchone())
            except asyncio.CancelledError:
                raise
            except Exception as error:
                if is_refusal(error) or isinstance(error, PositionError | TypeError | ValueError):
                    self._cluster.give_up_positions(target.name, error)  # then nothing is known of lag
                    target.health.record_answer()
                else:
                    await self._record_failure(target, error)
            target.is_waiting, target.silent_ticks = False, 0
            await asyncio.sleep(self._limits.sample_s)

    def _record_answer(self, target: SampledServer, row: Any) -> None:
        now = time.monotonic()
        answer = parse_answer(row, known=None, segment_bytes=self._cluster.segment_bytes)
        position = answer.replayed
        if target.is_primary:
            self._cluster.segment_bytes = answer.segment_bytes
            self._cluster.primary_history.add(now, position.timeline, position.position)
            target.health.record_sample(position, Lag(), self._limits)
        else:
            lag = self._cluster.primary_history.lag(position.timeline, position.position, now=now)
            target.health.record_sample(position, lag, self._limits)

    async def _record_failure(self, target: SampledServer, error: Exception) -> None:
        _log.debug("%s could not be asked: %s", target.name, type(error).__name__)
        target.health.answers = False
        connection, target.connection = target.connection, None
        if connection is not None:
            with contextlib.suppress(Exception):
                await connection.close()
