"""An open-loop trial: arrivals leave when they are due, not when the service has answered the last ones."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable

import gevent

from tenfold.measure.load.arrivals import Ledger
from tenfold.measure.load.generator_protocol import BlockDone, Message, Run, TrialDone
from tenfold.measure.load.locust.trial_run import Book
from tenfold.measure.load.locust.user_pool import Crew
from tenfold.measure.load.schedule import arrival_shares, draws, poisson

TICK_S = 0.05
# Little's law: with more users than this busy, the mean is beyond the objective anyway.
SPARE_USERS = 1.25
OVERLOAD_USERS = 5.0
FILL_TIMEOUT_S = 5.0


class OpenLoop:
    """One trial.

    Args:
        crew: logged-in users; more are logged in when the rate asks for them.
        request: what to do.
        slow_s: the objective's limit.
        emit: takes each block as soon as it is final.
    """

    def __init__(self, crew: Crew, request: Run, *, slow_s: float, emit: Callable[[Message], None]) -> None:
        self._crew = crew
        self._request = request
        self._slow_s = slow_s
        self._emit = emit
        self._settle_s = request.settle_s
        self._going = True  # the load goes on
        self._open = True  # the trial goes on

    def stop(self, *, settle: bool) -> None:
        """End the load now; without ``settle`` do not wait for what is unanswered either."""
        self._going = False
        if not settle:
            self._settle_s = 0.0

    def run(self) -> TrialDone:
        """Carry the trial out. Blocks the calling greenlet until it is over."""
        request, crew = self._request, self._crew
        crew.fill(self._users_needed(), timeout_s=FILL_TIMEOUT_S, going=lambda: self._going)
        logins = crew.logins + crew.failed
        due = poisson(rate=request.rate, duration_s=request.duration_s, seed=request.seed)
        book = Book(Ledger(due, duration_s=request.duration_s, slow_s=self._slow_s))
        classes = draws(len(due), shares=self._shares(), seed=request.seed)
        gc.collect()
        gc.freeze()
        crew.replacing = True
        book.open()
        background = [
            gevent.spawn(self._tick, book),
            gevent.spawn(crew.reinforce, rate=request.rate, going=lambda: self._going),
        ]
        try:
            self._release(book, classes)
            book.unload()
            self._finish(book)
        finally:
            self._going = self._open = crew.replacing = False
            gevent.killall(background)
            gc.unfreeze()
        return book.close(users=crew.users, logins=crew.logins + crew.failed - logins)

    def _users_needed(self) -> int:
        spare = OVERLOAD_USERS if self._request.overload else SPARE_USERS
        return max(len(self._crew.pools), math.ceil(self._request.rate * self._slow_s * spare) + 1)

    def _shares(self) -> list[float]:
        return arrival_shares(
            self._crew.users,
            weights=[pool.weight for pool in self._crew.pools],
            fixed=[pool.fixed for pool in self._crew.pools],
        )

    def _release(self, book: Book, classes: bytes) -> None:
        """Hand each arrival over when it is due. The loop that a trial is."""
        due, ledger, pools, now = book.ledger.due, book.ledger, self._crew.pools, book.now
        arrival, last = 0, len(due)
        while self._going and arrival < last:
            ahead = due[arrival] - now()
            if ahead > 0:
                gevent.sleep(min(ahead, TICK_S))
                continue
            if ledger.release(arrival):
                pools[classes[arrival]].offer(book, arrival)
            arrival += 1
        while self._going and (ahead := ledger.horizon_s - now()) > 0:
            gevent.sleep(min(ahead, TICK_S))
        if not self._going:
            ledger.cut(now(), released=arrival)
        self._going = False

    def _finish(self, book: Book) -> None:
        """Wait for the last verdicts, then for the last answers."""
        while not book.ledger.complete:
            gevent.sleep(TICK_S / 10)
        deadline = book.now() + self._settle_s
        while book.ledger.under_way and book.now() < deadline:
            gevent.sleep(TICK_S / 10)
            deadline = min(deadline, book.now() + self._settle_s)

    def _tick(self, book: Book) -> None:
        """Drop what waited too long, and send off the blocks that became final."""
        while self._open:
            now = book.now()
            self._crew.shed()
            for agent in list(book.busy):
                agent.overdue(now)
            for block in book.ledger.blocks(now):
                self._emit(BlockDone(block))
            gevent.sleep(TICK_S)
