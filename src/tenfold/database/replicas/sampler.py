"""Asks every server where it is, again and again, so that reads need not find out who is late or gone."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tenfold.database.psycopg import connect_async, cut, lacks_positions
from tenfold.database.replicas.freshness import WHOLE_PLACE, answered
from tenfold.database.replicas.servers import Cluster, Health, HealthLimits, Lag, Member

__all__ = ["Sampled", "Sampler"]

_TICK_S = 0.1
_log = logging.getLogger("tenfold.database")


@dataclass(slots=True)
class Sampled:
    """One server to be watched.

    Attributes:
        name: without a password.
        url: libpq's, password included.
        cuts: the pools whose connections are cut when it hangs.
        silent_ticks: how long a question has been waiting for its answer. Counted, not timed: when this
            process was held up itself, nobody else is to blame.
    """

    name: str
    url: str
    primary: bool
    health: Health
    cuts: Sequence[Member] = ()
    connection: Any = None
    silent_ticks: int = 0
    asking: bool = False


class Sampler:
    """A daemon thread with an event loop of its own: one connection to each server, one question at a time.

    Works the same beside threads and beside asyncio, and a service's blocked loop does not stop it. Belongs
    to the process that started it: after a fork :meth:`start` begins anew.
    """

    def __init__(self, targets: Sequence[Sampled], *, cluster: Cluster, limits: HealthLimits) -> None:
        self._targets, self._cluster, self._limits = targets, cluster, limits
        self._pid = 0
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def pid(self) -> int:
        """The process that it runs in; 0 when it does not."""
        return self._pid

    def start(self) -> None:
        """Begin to ask; nothing happens when it runs already."""
        with self._lock:
            if self._pid == os.getpid():
                return
            self._pid, self._stop = os.getpid(), threading.Event()
            for target in self._targets:  # a parent's connections are not ours
                target.connection, target.asking, target.silent_ticks = None, False, 0
            self._thread = threading.Thread(target=self._run, name="tenfold-replicas", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """End the thread and its connections."""
        with self._lock:
            thread, self._thread = self._thread, None
            if self._pid == os.getpid() and thread:
                self._stop.set()
                for target in self._targets:
                    cut(target.connection)
                thread.join(5)
            self._pid = 0

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
            runner.run(self._watch_all(self._stop))

    async def _watch_all(self, stop: threading.Event) -> None:
        tasks = [asyncio.create_task(self._watch(target)) for target in self._targets]
        while not stop.is_set():
            await asyncio.sleep(_TICK_S)
            for target in self._targets:
                self._tick(target)
        for target in self._targets:
            cut(target.connection)  # a cancelled query would first ask its server to end it, and wait
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks, timeout=2)

    def _tick(self, target: Sampled) -> None:
        target.silent_ticks = target.silent_ticks + 1 if target.asking else 0
        silent_s = target.silent_ticks * _TICK_S
        if silent_s < self._limits.hang_s / 2:
            return
        if target.health.answers:
            _log.warning("%s does not answer: it gets no reads until it does", target.name)
        target.health.answers = False
        # Again and again: who connected a moment ago hangs too.
        if silent_s >= self._limits.hang_s and target.silent_ticks % 5 == 0:
            cut(target.connection)
            for server in target.cuts:
                for connection in server.connections():
                    cut(connection)

    async def _watch(self, target: Sampled) -> None:
        while True:
            target.asking = True
            try:
                if target.connection is None:
                    target.connection = await connect_async(target.url)
                cursor = await target.connection.execute(WHOLE_PLACE)
                self._heard(target, await cursor.fetchone())
            except asyncio.CancelledError:
                raise
            except Exception as error:
                if lacks_positions(error):  # then nothing is known of lag
                    self._cluster.positions = False
                    target.health.heard_nothing()
                else:
                    await self._missed(target, error)
            target.asking, target.silent_ticks = False, 0
            await asyncio.sleep(self._limits.sample_s)

    def _heard(self, target: Sampled, row: Any) -> None:
        now = time.monotonic()
        answer = answered(row, known=None, segment_bytes=self._cluster.segment_bytes)
        place = answer.place
        if target.primary:
            self._cluster.segment_bytes = answer.segment_bytes
            self._cluster.track.add(now, place.timeline, place.position)
            target.health.heard(place, Lag(), self._limits)
        else:
            lag = self._cluster.track.lag(place.timeline, place.position, now=now)
            target.health.heard(place, lag, self._limits)

    async def _missed(self, target: Sampled, error: Exception) -> None:
        _log.debug("%s could not be asked: %s", target.name, type(error).__name__)
        target.health.answers = False
        connection, target.connection = target.connection, None
        if connection is not None:
            with contextlib.suppress(Exception):
                await connection.close()
