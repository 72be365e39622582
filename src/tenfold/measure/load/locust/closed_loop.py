"""A closed-loop trial: Locust's own pace, spawning and ``wait_time``; an arrival is due when it is sent.

Such a trial hides what a slow service does to those who would have come meanwhile (coordinated omission);
it is for comparing with other closed-loop numbers, and for services that cannot take more.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gevent

from tenfold.measure.load.arrivals import Ledger
from tenfold.measure.load.generator_protocol import BlockDone, Message, RunClosed, TrialDone
from tenfold.measure.load.locust.user_driver import Agent
from tenfold.measure.load.locust.trial_run import Book
from tenfold.measure.load.locust.user_pool import Crew
from tenfold.measure.load.locust.open_loop import TICK_S


class ClosedLoop:
    """One trial of plain Locust: ``users`` users, ``spawn_rate`` more a second, for ``duration_s``."""

    def __init__(
        self, crew: Crew, request: RunClosed, *, runner: Any, slow_s: float, emit: Callable[[Message], None]
    ) -> None:
        self._crew = crew
        self._request = request
        self._runner = runner
        self._emit = emit
        self._accepting = True
        self._book = Book(Ledger((), duration_s=request.duration_s, slow_s=slow_s))

    def begin(self, agent: Agent) -> None:
        """The user goes on to its next task: that is an arrival, due now."""
        if not self._accepting:
            return
        ledger = self._book.ledger
        now = max(self._book.now(), 0.0)
        if now < ledger.horizon_s:
            arrival = ledger.add(now)
            ledger.release(arrival)
            agent.begin(self._book, arrival, True)
            agent.waited_ms = 0.0  # due when it is sent, not a microsecond earlier

    def stop(self, *, settle: bool) -> None:
        """End the trial now."""
        del settle  # nothing outlives a closed trial: its users are stopped
        self._accepting = False

    def run(self) -> TrialDone:
        """Carry the trial out; its users are stopped at the end."""
        book, crew = self._book, self._crew
        before = crew.logins + crew.failed
        crew.closed = self
        try:
            book.open()
            self._runner.start(self._request.users, self._request.spawn_rate)
            self._load(book)
            book.unload()
            crew.require_users()
            while not book.ledger.complete:
                self._tick(book)
            users = crew.users
            return book.close(users=users, logins=crew.logins + crew.failed - before)
        finally:
            self._accepting = False
            self._runner.stop()
            crew.closed = None

    def _load(self, book: Book) -> None:
        while self._accepting and book.now() < book.ledger.horizon_s:
            self._tick(book)
        if not self._accepting:
            book.ledger.cut(book.now(), released=len(book.ledger.due))
        self._accepting = False

    def _tick(self, book: Book) -> None:
        gevent.sleep(TICK_S)
        now = book.now()
        for agent in list(book.busy):
            agent.overdue(now)
        for block in book.ledger.blocks(now):
            self._emit(BlockDone(block))
