"""The arrival log of one trial: every arrival from its due time to its result, grouped into blocks.

Pure: the log is told what happened and when, in seconds on the trial's clock, and never reads a clock itself.

An arrival has its result when its task ends, or as soon as one of its requests is slow, refused or failed;
one that found no user within ``slow_s`` is unsent. A task may honestly take longer than ``slow_s`` (several
requests, time between them); it holds its block open for at most ``hold_s`` more and is then judged by the
answers it has. In flight are requests, not tasks: the time that a task spends on its own is no queue.
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
LATE_SHARE = 0.05  # of slow_s: an arrival handed to a user later than this is late

REFUSALS = (429, 503)


class ArrivalResult(IntEnum):
    """Result of an arrival, the worst last; several requests count as the worst of them."""

    PENDING = 0
    GOOD = 1
    SLOW = 2
    REFUSED = 3
    FAILED = 4
    UNSENT = 5
    SILENT = 6  # no request that Locust knows: no result


class Stage(IntEnum):
    """Progress of an arrival."""

    SCHEDULED = 0
    WAITING = 1  # due; no user has started it yet
    STARTED = 2  # its task runs, and has sent nothing yet
    SENT = 3
    ANSWERED = 4  # its first request was answered
    OVER = 5


# As plain numbers: an attribute of an enum costs more than the arithmetic around it.
_PENDING, _GOOD = int(ArrivalResult.PENDING), int(ArrivalResult.GOOD)
_SLOW, _UNSENT, _SILENT = int(ArrivalResult.SLOW), int(ArrivalResult.UNSENT), int(ArrivalResult.SILENT)
_WAITING, _STARTED, _SENT = int(Stage.WAITING), int(Stage.STARTED), int(Stage.SENT)
_ANSWERED, _OVER = int(Stage.ANSWERED), int(Stage.OVER)


def request_result(status: int, *, failed: bool, corrected_ms: float, slow_ms: float) -> ArrivalResult:
    """Result of one request: a refusal (429, 503) is one however fast, and whatever the scenario calls it."""
    if status in REFUSALS:
        return ArrivalResult.REFUSED
    if failed:
        return ArrivalResult.FAILED
    return ArrivalResult.SLOW if corrected_ms > slow_ms else ArrivalResult.GOOD


class ArrivalLog:
    """Arrivals by number, in the order of their due times.

    Args:
        due: seconds, ascending; :meth:`add` appends to them in a closed loop. Those before 0 and after the
            horizon are load that is not counted.
        duration_s: the horizon; :meth:`cut` brings it nearer.
        slow_s: the objective's limit.
        block_s: length of a block.
        hold_s: the longest wait for a task that is still going on when its arrival could be slow already.
    """

    def __init__(
        self,
        due: Sequence[float],
        *,
        duration_s: float,
        slow_s: float,
        block_s: float = BLOCK_S,
        hold_s: float = HOLD_S,
    ) -> None:
        self.due: array[float] = array("d", due)
        self.horizon_s = duration_s
        self.slow_s = slow_s
        self.slow_ms = slow_s * 1000
        self.late_s = slow_s * LATE_SHARE
        self.in_flight = 0  # requests under way, and due arrivals that no user has started
        self.unfinished = 0  # due, and neither finished nor dropped
        self.last_over_s = 0.0
        self.lags_s: array[float] = array("d")
        self.late: Counter[int] = Counter()
        self._block_s = block_s
        self._stage = bytearray(len(self.due))
        self._worst = bytearray(len(self.due))
        self._result = bytearray(len(self.due))
        self._in_flight = bytearray(len(self.due))
        self.hold_s = hold_s
        self._final = 0  # blocks returned so far
        self._in_flight_at_end: int | None = None  # of the next block

    def add(self, due_s: float) -> int:
        """Append an arrival, not earlier than the last, and return its number."""
        self.due.append(due_s)
        for column in (self._stage, self._worst, self._result, self._in_flight):
            column.append(0)
        return len(self.due) - 1

    def release(self, arrival: int) -> bool:
        """Mark the arrival as due now; False when its result is known already."""
        if self._result[arrival] != _PENDING:
            return False
        self._stage[arrival] = _WAITING
        self.unfinished += 1
        self._set_in_flight(arrival, 1)
        return True

    def start(self, arrival: int, now_s: float, *, free: bool, sending: bool = True) -> None:
        """Note that a user starts it.

        ``free``: a user was idle when it was released, so that the delay is the generator's own.
        ``sending``: a request counts as under way; without it, :meth:`note_sending` tells.
        """
        self._stage[arrival] = _SENT if sending else _STARTED
        self._set_in_flight(arrival, int(sending))
        if free:
            lag = now_s - self.due[arrival]
            self.lags_s.append(lag)
            if lag > self.late_s:
                self.late[self._block_of(arrival)] += 1

    def is_expired(self, arrival: int, now_s: float) -> bool:
        """Return whether it waited so long for a user that sending it would prove nothing."""
        return now_s > self.due[arrival] + self.slow_s

    def drop(self, arrival: int, now_s: float) -> None:
        """Count it as unsent: no user was free in time."""
        self._decide(arrival, _UNSENT)
        self._leave(arrival, now_s)

    def note_sending(self, arrival: int, *, under_way: bool) -> None:
        """Note that one of its requests begins or ends."""
        if self._stage[arrival] < _OVER:
            self._stage[arrival] = max(self._stage[arrival], _SENT)
            self._set_in_flight(arrival, int(under_way))

    def record_answer(self, arrival: int, result: int) -> None:
        """Record the result of one of its requests."""
        if self._stage[arrival] < _OVER:
            self._stage[arrival] = _ANSWERED
        self._worst[arrival] = max(self._worst[arrival], result)

    def worsen(self, arrival: int, result: int) -> None:
        """Make its result at least as bad as this, whatever follows."""
        self._worst[arrival] = max(self._worst[arrival], result)

    def finish(self, arrival: int, now_s: float) -> None:
        """Note that its task is over; without any request it has no result."""
        self._decide(arrival, self._worst[arrival] or _SILENT)
        self._leave(arrival, now_s)

    def cut(self, now_s: float, *, released: int) -> None:
        """End the load here, and forget the arrivals from number ``released`` on."""
        horizon = now_s if released >= len(self.due) else min(now_s, self.due[released])
        self.horizon_s = max(min(horizon, self.horizon_s), self._final * self._block_s)
        for column in (self.due, self._stage, self._worst, self._result, self._in_flight):
            del column[released:]

    @property
    def final_s(self) -> float:
        """End of the last block that was returned."""
        return self._final * self._block_s

    @property
    def counted(self) -> int:
        """Arrivals that belong to a block: due from 0 to the horizon."""
        return bisect_left(self.due, self.horizon_s) - bisect_left(self.due, 0.0)

    @property
    def late_counted(self) -> int:
        """Late arrivals among those."""
        return sum(
            number for block, number in self.late.items() if 0 <= block * self._block_s < self.horizon_s
        )

    def is_counted(self, arrival: int) -> bool:
        """Return whether the arrival belongs to a block."""
        return 0 <= self.due[arrival] < self.horizon_s

    def is_good(self, arrival: int) -> bool:
        """Return whether all its requests so far met the objective."""
        return self._worst[arrival] == _GOOD

    @property
    def is_complete(self) -> bool:
        """True once every block was returned."""
        return self._final * self._block_s >= self.horizon_s - 1e-9

    def results(self) -> bytes:
        """One :class:`ArrivalResult` for each arrival."""
        return bytes(self._result)

    def final_blocks(self, now_s: float) -> list[Block]:
        """Return the blocks that became final since the last call, in order."""
        final: list[Block] = []
        while not self.is_complete:
            block = self._next_block(now_s)
            if block is None:
                break
            final.append(block)
        return final

    def _next_block(self, now_s: float) -> Block | None:
        start = self._final * self._block_s
        end = min(start + self._block_s, self.horizon_s)
        if now_s < end:
            return None
        if self._in_flight_at_end is None:
            self._in_flight_at_end = self.in_flight
        first, last = bisect_left(self.due, start), bisect_left(self.due, end)
        if not self._decide_all(first, last, overdue_s=now_s - end - self.slow_s):
            return None
        results = Counter(self._result[first:last])
        block = Block(
            start_s=start,
            seconds=end - start,
            offered=last - first - results[ArrivalResult.SILENT],
            good=results[ArrivalResult.GOOD],
            slow=results[ArrivalResult.SLOW],
            failed=results[ArrivalResult.FAILED],
            refused=results[ArrivalResult.REFUSED],
            unsent=results[ArrivalResult.UNSENT],
            late=self.late[self._final],
            in_flight=self._in_flight_at_end,
            silent=results[ArrivalResult.SILENT],
        )
        self._final, self._in_flight_at_end = self._final + 1, None
        return block

    def _decide_all(self, first: int, last: int, *, overdue_s: float) -> bool:
        """Decide the arrivals of a block as far as time allows; False while one is still open."""
        for arrival in range(first, last):
            if self._result[arrival] != _PENDING:
                continue
            if overdue_s < 0:
                return False
            stage, worst = self._stage[arrival], self._worst[arrival]
            if stage < _STARTED:
                self._decide(arrival, _UNSENT)
            elif worst > _GOOD or overdue_s >= self.hold_s:
                # A task that has sent nothing in all that time has no result.
                self._decide(arrival, worst or (_SILENT if stage == _STARTED else _SLOW))
            else:
                return False
        return True

    def _decide(self, arrival: int, result: int) -> None:
        if self._result[arrival] == _PENDING:
            self._result[arrival] = result

    def _leave(self, arrival: int, now_s: float) -> None:
        if _WAITING <= self._stage[arrival] < _OVER:
            self._stage[arrival] = _OVER
            self._set_in_flight(arrival, 0)
            self.unfinished -= 1
            self.last_over_s = now_s

    def _set_in_flight(self, arrival: int, value: int) -> None:
        self.in_flight += value - self._in_flight[arrival]
        self._in_flight[arrival] = value

    def _block_of(self, arrival: int) -> int:
        return int(self.due[arrival] // self._block_s)
