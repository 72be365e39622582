"""How often somebody may: the generic cell rate algorithm. Pure.

ATM Forum, Traffic Management 4.0 (1996), as virtual scheduling; Brandur Leach, "Rate Limiting, Cells, and
GCRA" (2015). All that is kept for a key is one moment: when it would be back to nothing used (the theoretical
arrival time). No window begins anywhere, so none can be straddled for twice the rate.
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
        """Refuse what would let nobody in, or everybody."""
        if not 0 < self.rate < float("inf") or self.burst < 1:
            raise ValueError(f"a rate is above 0 and a burst at least 1, not {self.rate} and {self.burst}")


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether it may.

    Attributes:
        allowed: yes or no.
        tat_s: the moment to keep for the next decision.
        retry_after_s: how long until the same cost is allowed, seconds; 0 when it is now.
        remaining: how much is left at once.
        reset_s: seconds until the whole burst is there again.
    """

    allowed: bool
    tat_s: float
    retry_after_s: float
    remaining: int
    reset_s: float


def decide(tat_s: float | None, now_s: float, *, rate: float, burst: int, cost: int = 1) -> Decision:
    """Whether ``cost`` may be used at ``now_s``; ``tat_s`` is what the last decision left, None for nothing.

    A cost above the burst is never allowed, and its ``retry_after_s`` is infinite. A clock that goes back
    takes nothing away but the time until it is where it was.
    """
    interval_s = 1 / rate
    tolerance_s = burst * interval_s
    begin_s = now_s if tat_s is None else max(tat_s, now_s)
    after_s = begin_s + cost * interval_s
    # What is kept is rounded by the clock's own precision: a millionth of a unit decides nothing.
    early_s = after_s - now_s - tolerance_s
    if early_s > 1e-6 * interval_s:
        wait_s = early_s if cost <= burst else float("inf")
        return Decision(False, begin_s, wait_s, _left(begin_s, now_s, interval_s, burst), begin_s - now_s)
    return Decision(True, after_s, 0.0, _left(after_s, now_s, interval_s, burst), after_s - now_s)


def _left(tat_s: float, now_s: float, interval_s: float, burst: int) -> int:
    return max(int(burst - (tat_s - now_s) / interval_s + 1e-6), 0)


# Where the moments of rate limits are kept: what a store does, and one in memory.
class RateStore(Protocol):
    """Decides and keeps in one step, so that concurrent requests never share what is left."""

    async def take(self, key: str, rate: Rate, cost: int = 1) -> Decision:
        """Use ``cost`` of what ``key`` has, if it has it.

        Raises:
            RateStoreError: the server does not answer in time; whether it counted is unknown.
        """


class MemoryRates:
    """For one process: with ``n`` processes everybody may ``n`` times as often.

    Keeps ``most_keys`` keys. Beyond, what is back to nothing used goes, and then the oldest: whoever has that
    many keys may begin anew, and so may others.
    """

    def __init__(self, *, most_keys: int = 100_000, clock: Callable[[], float] = time.monotonic) -> None:
        self._most_keys, self._clock = most_keys, clock
        self._tats: dict[str, float] = {}

    async def take(self, key: str, rate: Rate, cost: int = 1) -> Decision:
        """As :meth:`RateStore.take`; never fails."""
        now_s = self._clock()
        decision = decide(self._tats.get(key), now_s, rate=rate.rate, burst=rate.burst, cost=cost)
        if decision.allowed and cost:
            if key not in self._tats and len(self._tats) >= self._most_keys:
                self._make_room(now_s)
            self._tats[key] = decision.tat_s
        return decision

    def _make_room(self, now_s: float) -> None:
        """A tenth of the room, so that this is not done for each key."""
        self._tats = {key: tat_s for key, tat_s in self._tats.items() if tat_s > now_s}
        too_many = len(self._tats) - self._most_keys * 9 // 10
        for key in list(self._tats)[: max(too_many, 0)]:
            del self._tats[key]
