"""GCRA rate limiting (generic cell rate algorithm): the arithmetic, and a store in memory.

ATM Forum, Traffic Management 4.0 (1996), as virtual scheduling; Brandur Leach, "Rate Limiting, Cells, and
GCRA" (2015). The only state of a key is one moment: when its whole burst is available again (the theoretical
arrival time, TAT). There are no windows, so a client cannot get twice the rate across the border of two.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

__all__ = ["Decision", "MemoryRates", "Rate", "RateStore", "decide"]


@dataclass(frozen=True, slots=True)
class Rate:
    """``rate`` a second on average, ``burst`` at once: in any t seconds at most burst + rate × t.

    Raises:
        ValueError: the rate is not above 0, or the burst is below 1.
    """

    rate: float
    burst: int

    def __post_init__(self) -> None:
        """Refuse rates that admit no request, or all of them."""
        if not 0 < self.rate < float("inf") or self.burst < 1:
            raise ValueError(f"a rate is above 0 and a burst at least 1, not {self.rate} and {self.burst}")


@dataclass(frozen=True, slots=True)
class Decision:
    """The outcome for one request.

    Attributes:
        allowed: whether the cost may be used.
        tat_s: the moment to store for the next decision.
        retry_after_s: seconds until the same cost is allowed; 0 when it is now.
        remaining: what is left of the burst.
        reset_s: seconds until the whole burst is available again.
    """

    allowed: bool
    tat_s: float
    retry_after_s: float
    remaining: int
    reset_s: float


def decide(tat_s: float | None, now_s: float, *, rate: float, burst: int, cost: int = 1) -> Decision:
    """Decide whether ``cost`` may be used at ``now_s``; ``tat_s`` is that of the last decision. Pure.

    A cost above the burst is never allowed, and its ``retry_after_s`` is infinite. When the clock goes back,
    the key waits at most until it has caught up.
    """
    interval_s = 1 / rate
    tolerance_s = burst * interval_s
    begin_s = now_s if tat_s is None else max(tat_s, now_s)
    after_s = begin_s + cost * interval_s
    # The stored moment is rounded to the clock's precision: ignore a millionth of a unit.
    early_s = after_s - now_s - tolerance_s
    if early_s > 1e-6 * interval_s:
        wait_s = early_s if cost <= burst else float("inf")
        left = _remaining(begin_s, now_s, interval_s, burst)
        return Decision(False, begin_s, wait_s, left, begin_s - now_s)
    return Decision(True, after_s, 0.0, _remaining(after_s, now_s, interval_s, burst), after_s - now_s)


def _remaining(tat_s: float, now_s: float, interval_s: float, burst: int) -> int:
    return max(int(burst - (tat_s - now_s) / interval_s + 1e-6), 0)


# ------------------------------------------------------------------ stores


class RateStore(Protocol):
    """Keeps the state of each key; decides and stores in one atomic step."""

    async def take(self, key: str, rate: Rate, cost: int = 1) -> Decision:
        """Use ``cost`` of the rate of ``key``, if it has as much left.

        Raises:
            RateStoreError: the server does not answer in time; whether it counted is unknown.
        """


class MemoryRates:
    """A :class:`RateStore` in memory, for one process: ``n`` processes allow a key ``n`` times its rate.

    Keeps ``max_keys`` keys. Beyond, keys with a whole burst are dropped, then the oldest; a dropped key
    starts with a whole burst again.
    """

    def __init__(self, *, max_keys: int = 100_000, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_keys, self._clock = max_keys, clock
        self._tats: dict[str, float] = {}

    async def take(self, key: str, rate: Rate, cost: int = 1) -> Decision:
        """See :meth:`RateStore.take`; never fails."""
        now_s = self._clock()
        decision = decide(self._tats.get(key), now_s, rate=rate.rate, burst=rate.burst, cost=cost)
        if decision.allowed and cost:
            if key not in self._tats and len(self._tats) >= self._max_keys:
                self._make_room(now_s)
            self._tats[key] = decision.tat_s
        return decision

    def _make_room(self, now_s: float) -> None:
        """Drop keys until a tenth is free, so that this is not done for each key."""
        self._tats = {key: tat_s for key, tat_s in self._tats.items() if tat_s > now_s}
        too_many = len(self._tats) - self._max_keys * 9 // 10
        for key in list(self._tats)[: max(too_many, 0)]:
            del self._tats[key]
