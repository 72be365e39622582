"""Where the moments of rate limits are kept: what a store does, and one in memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from tenfold.balancing.gcra import Decision, Rate, decide

__all__ = ["MemoryRates", "RateStore"]


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
