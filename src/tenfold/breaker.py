"""A circuit breaker: stop calling a server that is down.

    breaker = Breaker()
    with breaker.guard(OSError, TimeoutError):  # BreakerOpenError at once, while it is open
        response = await client.get(url)

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
    """Counts outcomes and decides whether a call may go through. Use from any thread or loop.

    It opens after ``failures`` in a row, or when the share ``ratio`` of at least ``min_calls`` calls within
    the last one to two ``window_s`` failed. Each process has its own, and probes a server by itself.

    Args:
        failures: consecutive failures that open it.
        ratio: the share of failures that opens it, 0 to 1; above 1, never.
        window_s: seconds over which the share is taken.
        min_calls: the fewest calls that a share is taken of.
        cool_down_s: seconds until the next probe; lengthened at random, by up to ``jitter`` of it, so that
            many processes do not probe at once.
        clock: seconds, monotonic.
        random_fraction: a random number from 0 to 1.
    """

    def __init__(
        self,
        *,
        failures: int = 5,
        ratio: float = 0.5,
        window_s: float = 5.0,
        min_calls: int = 20,
        cool_down_s: float = 1.0,
        jitter: float = 0.5,
        clock: Callable[[], float] = time.monotonic,
        random_fraction: Callable[[], float] = random.random,
    ) -> None:
        self._max_consecutive, self._ratio, self._min_calls = failures, ratio, min_calls
        self._window_s, self._cool_down_s, self._jitter = window_s, cool_down_s, jitter
        self._clock, self._random_fraction = clock, random_fraction
        self._lock = threading.Lock()
        # Grows when it opens and with each probe; outcomes of calls admitted in an earlier one do not count.
        self._generation = 0
        self._closed, self._open_until = True, 0.0
        self._reset_counts()

    @property
    def is_closed(self) -> bool:
        """Whether every call goes through."""
        return self._closed

    @property
    def wait_s(self) -> float:
        """Seconds until a call may go through; 0 if it may now."""
        return 0.0 if self._closed else max(0.0, self._open_until - self._clock())

    def admit(self) -> int | None:
        """Return a ticket for one call, to be passed to :meth:`record`; None if the call must not be made."""
        generation = self._generation  # read before _closed: if it opens in between, the ticket is void
        if self._closed:
            return generation
        with self._lock:
            if (now := self._clock()) < self._open_until:
                return None
            # A probe whose outcome is never recorded must not keep it open for good: another is due then.
            self._open_until = now + self._pause()
            self._generation += 1
            return self._generation

    def record(self, ticket: int, succeeded: bool | None) -> None:
        """Record the outcome of a call; None if it is unknown, say because the call was cancelled."""
        with self._lock:
            if ticket != self._generation:
                return
            if self._closed:
                if succeeded is not None and self._count(succeeded):
                    self._open()
            elif succeeded:
                self._closed = True
                self._reset_counts()
            elif succeeded is None:
                self._open_until = self._clock()
            else:
                self._open()

    @contextmanager
    def guard(self, *failures: type[BaseException]) -> Iterator[None]:
        """Guard one call, synchronous or not. Errors of the kinds ``failures`` count as failures, no others.

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
            self.record(ticket, outcome)

    def _pause(self) -> float:
        return self._cool_down_s * (1 + self._jitter * self._random_fraction())

    def _open(self) -> None:
        self._closed, self._open_until = False, self._clock() + self._pause()
        self._generation += 1

    def _reset_counts(self) -> None:
        self._consecutive = 0
        self._window_start, self._calls, self._failed = self._clock(), 0, 0
        self._calls_before = self._failed_before = 0

    def _count(self, succeeded: bool) -> bool:
        """Count an outcome; return whether it opens the breaker."""
        self._advance_window(self._clock())
        self._calls += 1
        if succeeded:
            self._consecutive = 0
            return False
        self._consecutive += 1
        self._failed += 1
        calls, failed = self._calls + self._calls_before, self._failed + self._failed_before
        return self._consecutive >= self._max_consecutive or (
            calls >= self._min_calls and failed >= self._ratio * calls
        )

    def _advance_window(self, now: float) -> None:
        """Start a new window if this one is over; only the one right before it still counts."""
        if (age := now - self._window_start) < self._window_s:
            return
        recent = age < 2 * self._window_s
        self._calls_before, self._failed_before = (self._calls, self._failed) if recent else (0, 0)
        self._window_start, self._calls, self._failed = now, 0, 0
