"""Visitors who read without pause during an outage."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import text

from tenfold.database import DatabaseRouter
from tests.support.waiting import eventually

LOOK = text("select value, inet_server_port() from counters where id = :id")


class Readers:
    """Visitors who read without pause, each remembering what they saw."""

    def __init__(self, router: DatabaseRouter, count: int = 3) -> None:
        self.router = router
        self.errors: list[Exception] = []
        self.answers = [0] * count
        self.ports: set[int] = set()
        self._done = threading.Event()
        self._threads = [threading.Thread(target=self._read, args=(n,)) for n in range(count)]

    def _read(self, row: int) -> None:
        token = None
        while not self._done.is_set():
            try:
                with self.router.consistency_context(token):
                    with self.router.read() as session:
                        self.ports.add(session.execute(LOOK, {"id": row}).one()[1])
                    token = self.router.token()
                self.answers[row] += 1
            except Exception as error:
                self.errors.append(error)

    @contextmanager
    def reading(self) -> Iterator[Readers]:
        for thread in self._threads:
            thread.start()
        try:
            self.more(50)
            yield self
        finally:
            self._done.set()
            for thread in self._threads:
                thread.join(30)

    @property
    def answered(self) -> int:
        """The number of answers so far."""
        return sum(self.answers)

    def left_waiting(self, *, within_s: float) -> int:
        """The number of readers that do not get ten more answers within so many seconds."""
        wanted, deadline = [had + 10 for had in self.answers], time.monotonic() + within_s
        while waiting := sum(has < wants for has, wants in zip(self.answers, wanted, strict=True)):
            if time.monotonic() > deadline:
                break
            time.sleep(0.02)
        return waiting

    def more(self, count: int = 100) -> set[int]:
        """Wait for so many more answers; return the ports of their servers."""
        had = self.answers.copy()
        eventually(lambda: all(has > before for has, before in zip(self.answers, had, strict=True)))
        self.ports, before = set(), self.answered
        eventually(lambda: self.answered >= before + count)
        return self.ports.copy()
