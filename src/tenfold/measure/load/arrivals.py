"""The book of one trial: every arrival from the moment it is due to its verdict, cut into blocks.

Pure: it is told what happened and when, in seconds on the trial's clock, and never looks at a clock itself.

An arrival has its verdict when its task ends. One that is still without its first answer ``slow_s`` after
its due time is slow, one that found no user by then is unsent. A task of several requests may honestly
take longer than ``slow_s``; it holds its block open for at most ``HOLD_S`` more and is then judged by the
answers it has.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from enum import IntEnum

from tenfold.measure.trial import Block

BLOCK_S = 0.5
HOLD_S = 1.0
LATE_SHARE = 0.05  # of slow_s: handed over later than this, an arrival is late

REFUSALS = (429, 503)


class Fate(IntEnum):
    """What became of an arrival, the worst last; several requests count as the worst of them."""

    PENDING = 0
    GOOD = 1
    SLOW = 2
    REFUSED = 3
    FAILED = 4
    UNSENT = 5


class Stage(IntEnum):
    """How far an arrival has come."""

    AHEAD = 0
    WAITING = 1  # due; no user took it yet
    SENT = 2
    FOLLOWING = 3  # its first request was answered
    OVER = 4


# As plain numbers: an attribute of an enum costs more than the arithmetic around it.
_PENDING, _GOOD, _SLOW, _UNSENT = int(Fate.PENDING), int(Fate.GOOD), int(Fate.SLOW), int(Fate.UNSENT)
_WAITING, _SENT, _FOLLOWING, _OVER = (
    int(Stage.WAITING),
    int(Stage.SENT),
    int(Stage.FOLLOWING),
    int(Stage.OVER),
)


def fate_of(status: int, *, failed: bool, corrected_ms: float, slow_ms: float) -> Fate:
    """The verdict on one request: a refusal is one however fast, and whatever the scenario calls it."""
    if status in REFUSALS:
        return Fate.REFUSED
    if failed:
        return Fate.FAILED
    return Fate.SLOW if corrected_ms > slow_ms else Fate.GOOD


class Ledger:
    """Arrivals by number, in the order of their due times.

    Args:
        due: seconds, ascending; :meth:`add` appends to them in a closed loop.
        duration_s: the horizon; :meth:`cut` brings it nearer.
        slow_s: the objective's limit.
        block_s: length of a block.
    """

    def __init__(
        self, due: Sequence[float], *, duration_s: float, slow_s: float, block_s: float = BLOCK_S
    ) -> None:
        self.due: array[float] = array("d", due)
        self.horizon_s = duration_s
        self.slow_s = slow_s
        self.slow_ms = slow_s * 1000
        self.late_s = slow_s * LATE_SHARE
        self.under_way = 0  # due, and neither over nor dropped
        self.last_over_s = 0.0
        self.lags_s: array[float] = array("d")
        self.late: Counter[int] = Counter()
        self._block_s = block_s
        self._stage = bytearray(len(self.due))
        self._worst = bytearray(len(self.due))
        self._fate = bytearray(len(self.due))
        self._closed = 0  # blocks handed out
        self._in_flight: int | None = None  # when the next block ended

    def add(self, due_s: float) -> int:
        """One more arrival, not earlier than the last."""
        self.due.append(due_s)
        for column in (self._stage, self._worst, self._fate):
            column.append(0)
        return len(self.due) - 1

    def release(self, arrival: int) -> bool:
        """The arrival is due now; False when it was already given up."""
        if self._fate[arrival] != _PENDING:
            return False
        self._stage[arrival] = _WAITING
        self.under_way += 1
        return True

    def hand(self, arrival: int, now_s: float, *, free: bool) -> None:
        """A user takes it; ``free`` says that one was idle when it was released, so that a delay is ours."""
        self._stage[arrival] = _SENT
        if free:
            lag = now_s - self.due[arrival]
            self.lags_s.append(lag)
            if lag > self.late_s:
                self.late[self._block_of(arrival)] += 1

    def expired(self, arrival: int, now_s: float) -> bool:
        """Whether it waited so long for a user that sending it would prove nothing."""
        return now_s > self.due[arrival] + self.slow_s

    def drop(self, arrival: int, now_s: float) -> None:
        """Nobody was free to send it."""
        self._decide(arrival, _UNSENT)
        self._leave(arrival, now_s)

    def answer(self, arrival: int, fate: int) -> None:
        """One of its requests was answered."""
        self._stage[arrival] = _FOLLOWING
        self._worst[arrival] = max(self._worst[arrival], fate)

    def blame(self, arrival: int, fate: int) -> None:
        """It is at least as bad as this, whatever follows."""
        self._worst[arrival] = max(self._worst[arrival], fate)

    def end(self, arrival: int, now_s: float) -> None:
        """Its task is over."""
        self._decide(arrival, self._worst[arrival] or _GOOD)
        self._leave(arrival, now_s)

    def cut(self, now_s: float, *, released: int) -> None:
        """End the load here: arrivals from number ``released`` on never were."""
        horizon = now_s if released >= len(self.due) else min(now_s, self.due[released])
        self.horizon_s = max(min(horizon, self.horizon_s), self._closed * self._block_s)
        del self.due[released:], self._stage[released:], self._worst[released:], self._fate[released:]

    @property
    def complete(self) -> bool:
        """Whether every block was handed out."""
        return self._closed * self._block_s >= self.horizon_s - 1e-9

    def fates(self) -> bytes:
        """One :class:`Fate` for each arrival."""
        return bytes(self._fate)

    def blocks(self, now_s: float) -> list[Block]:
        """The blocks that became final since the last call, in order."""
        final: list[Block] = []
        while not self.complete:
            block = self._next_block(now_s)
            if block is None:
                break
            final.append(block)
        return final

    def _next_block(self, now_s: float) -> Block | None:
        start = self._closed * self._block_s
        end = min(start + self._block_s, self.horizon_s)
        if now_s < end:
            return None
        if self._in_flight is None:
            self._in_flight = self.under_way
        first, last = bisect_left(self.due, start), bisect_left(self.due, end)
        if not self._all_decided(first, last, overdue_s=now_s - end - self.slow_s):
            return None
        fates = Counter(self._fate[first:last])
        block = Block(
            start_s=start,
            seconds=end - start,
            offered=last - first,
            good=fates[Fate.GOOD],
            slow=fates[Fate.SLOW],
            failed=fates[Fate.FAILED],
            refused=fates[Fate.REFUSED],
            unsent=fates[Fate.UNSENT],
            late=self.late[self._closed],
            in_flight=self._in_flight,
        )
        self._closed, self._in_flight = self._closed + 1, None
        return block

    def _all_decided(self, first: int, last: int, *, overdue_s: float) -> bool:
        for arrival in range(first, last):
            if self._fate[arrival] != _PENDING:
                continue
            if overdue_s < 0:
                return False
            stage, worst = self._stage[arrival], self._worst[arrival]
            if stage < _SENT:
                self._decide(arrival, _UNSENT)
            elif worst > _GOOD or overdue_s >= HOLD_S:
                self._decide(arrival, worst or _SLOW)
            elif stage == _SENT:
                self._decide(arrival, _SLOW)
            else:
                return False
        return True

    def _decide(self, arrival: int, fate: int) -> None:
        if self._fate[arrival] == _PENDING:
            self._fate[arrival] = fate

    def _leave(self, arrival: int, now_s: float) -> None:
        if _WAITING <= self._stage[arrival] < _OVER:
            self._stage[arrival] = _OVER
            self.under_way -= 1
            self.last_over_s = now_s

    def _block_of(self, arrival: int) -> int:
        return int(self.due[arrival] / self._block_s)
