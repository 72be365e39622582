"""Stop asking what is down: a circuit breaker.

    breaker = Breaker()
    with breaker.asking(OSError, TimeoutError):  # BreakerOpenError at once, while it is down
        answer = await client.get(url)

*Closed*: every call goes through. *Open*: none does, for ``cool_down_s``. Then *half-open*: one call goes
through as a probe, and its outcome closes or opens it again (M. Nygard, Release It!, 2007, chapter 5).
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tenfold.errors import BreakerOpenError

__all__ = ["Breaker"]


class Breaker:
    """Counts outcomes and says whether to ask. Knows nothing of what is asked; use from any thread or loop.

    It opens after ``failures`` in a row, or when of at least ``least_calls`` within the last one to two
    ``window_s`` the share ``ratio`` failed. Each process has its own: one server is probed once by each.

    Args:
        failures: consecutive failures that open it.
        ratio: the share of failures that opens it, 0 to 1; above 1, never.
        window_s: seconds over which the share is taken.
        least_calls: how many calls a share is of, at least.
        cool_down_s: seconds until the next probe; lengthened by chance, by up to ``jitter`` of it, so that
            many processes do not probe at once.
        clock: seconds, monotonic.
        chance: a number from 0 to 1.
    """

    def __init__(
        self,
        *,
        failures: int = 5,
        ratio: float = 0.5,
        window_s: float = 5.0,
        least_calls: int = 20,
        cool_down_s: float = 1.0,
        jitter: float = 0.5,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._most, self._ratio, self._least_calls = failures, ratio, least_calls
        self._window_s, self._cool_down_s, self._jitter = window_s, cool_down_s, jitter
        self._clock, self._chance = clock, chance
        self._lock = threading.Lock()
        self._era = (
            0  # grows when it opens and with each probe: what was asked in a former one no longer counts
        )
        self._closed, self._until = True, 0.0
        self._forget()

    @property
    def closed(self) -> bool:
        """Whether every call goes through."""
        return self._closed

    @property
    def wait_s(self) -> float:
        """Seconds until a call may go through; 0 when it may now."""
        return 0.0 if self._closed else max(0.0, self._until - self._clock())

    def admit(self) -> int | None:
        """A ticket to ask with, to be given to :meth:`settle`; None when nobody should ask now."""
        era = self._era  # before it is closed is looked at: should it open in between, the ticket is void
        if self._closed:
            return era
        with self._lock:
            if (now := self._clock()) < self._until:
                return None
            # A probe whose outcome is never told must not keep it open for good: the next one is due then.
            self._until = now + self._pause()
            self._era += 1
            return self._era

    def settle(self, ticket: int, succeeded: bool | None) -> None:
        """What became of the call; None when that is unknown, say because it was cancelled."""
        with self._lock:
            if ticket != self._era:
                return
            if self._closed:
                if succeeded is not None and self._count(succeeded):
                    self._open()
            elif succeeded:
                self._closed = True
                self._forget()
            elif succeeded is None:
                self._until = self._clock()
            else:
                self._open()

    @contextmanager
    def asking(self, *failures: type[BaseException]) -> Iterator[None]:
        """For one call, synchronous or not. Errors of the kinds ``failures`` count; any other says nothing.

        Raises:
            BreakerOpenError: it is open.
        """
        if (ticket := self.admit()) is None:
            raise BreakerOpenError(
                f"what is asked here failed repeatedly: it is not asked for another {self.wait_s:.1f} s"
            )
        outcome: bool | None = None
        try:
            yield
            outcome = True
        except failures:
            outcome = False
            raise
        finally:
            self.settle(ticket, outcome)

    def _pause(self) -> float:
        return self._cool_down_s * (1 + self._jitter * self._chance())

    def _open(self) -> None:
        self._closed, self._until = False, self._clock() + self._pause()
        self._era += 1

    def _forget(self) -> None:
        self._row = 0
        self._since, self._calls, self._failed = self._clock(), 0, 0
        self._calls_before = self._failed_before = 0

    def _count(self, succeeded: bool) -> bool:
        """Whether this outcome is one too many."""
        self._turn(self._clock())
        self._calls += 1
        if succeeded:
            self._row = 0
            return False
        self._row += 1
        self._failed += 1
        calls, failed = self._calls + self._calls_before, self._failed + self._failed_before
        return self._row >= self._most or (calls >= self._least_calls and failed >= self._ratio * calls)

    def _turn(self, now: float) -> None:
        """Start a window of its own when this one is over; only the one right before it still counts."""
        if (age := now - self._since) < self._window_s:
            return
        recent = age < 2 * self._window_s
        self._calls_before, self._failed_before = (self._calls, self._failed) if recent else (0, 0)
        self._since, self._calls, self._failed = now, 0, 0
