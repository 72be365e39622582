"""A service in virtual time behind the real gate: processor-shared or with a number of servers."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from tenfold.overload.fair_queue import Gate, Priority, Ticket, WaitingRoom
from tenfold.overload.limits import Limit


@dataclass
class Arrival:
    due_s: float
    work_s: float
    kind: str = ""
    priority: Priority = "normal"
    tenant: str = ""


@dataclass
class Outcome:
    """What came of one request; ``ended_s`` is None when it was shed."""

    arrival: Arrival
    ended_s: float | None = None
    reason: str = ""

    @property
    def latency_s(self) -> float:
        return float("inf") if self.ended_s is None else self.ended_s - self.arrival.due_s


@dataclass
class VirtualService:
    """``servers`` at a time, in the order of admission, as a pool of threads or an event loop (1) does it.

    ``pace(now)`` multiplies the work of what begins now: 2 halves the capacity.
    """

    limit: Limit
    servers: int
    pace: Callable[[float], float] = lambda now: 1.0
    size: int = 100
    calm_s: float = 0.1
    busy_s: float = 0.01
    limits: list[tuple[float, int]] = field(default_factory=list)

    def run(self, arrivals: Iterator[Arrival]) -> list[Outcome]:
        self.gate = Gate(self.limit, WaitingRoom(size=self.size, calm_s=self.calm_s, busy_s=self.busy_s))
        self.order = itertools.count()
        self.events: list = []
        self.line: list[tuple[Ticket, Outcome]] = []
        self.free = self.servers
        outcomes: list[Outcome] = []
        due = next(arrivals, None)
        while due or self.events:
            if due and (not self.events or due.due_s <= self.events[0][0]):
                outcomes.append(outcome := Outcome(due))
                self._arrive(outcome)
                due = next(arrivals, None)
            else:
                now, _, ticket, outcome = heapq.heappop(self.events)
                self._done(now, ticket, outcome)
        return outcomes

    def _arrive(self, outcome: Outcome) -> None:
        now = outcome.arrival.due_s
        ticket = Ticket(outcome.arrival.priority, outcome.arrival.tenant)
        ticket.wake = lambda: self._woken(ticket, outcome)
        self.now = now
        self.gate.arrive(ticket, now)
        if ticket.state == "shed":
            outcome.reason = ticket.reason
        self._serve(now)

    def _woken(self, ticket: Ticket, outcome: Outcome) -> None:
        if ticket.state == "admitted":
            self.line.append((ticket, outcome))
        else:
            outcome.reason = ticket.reason

    def _serve(self, now: float) -> None:
        while self.free and self.line:
            ticket, outcome = self.line.pop(0)
            self.free -= 1
            ends = now + outcome.arrival.work_s * self.pace(now)
            heapq.heappush(self.events, (ends, next(self.order), ticket, outcome))

    def _done(self, now: float, ticket: Ticket, outcome: Outcome) -> None:
        outcome.ended_s = now
        self.free += 1
        self.gate.leave(ticket, now, ended_s=now, kind=outcome.arrival.kind)
        self.limits.append((now, self.limit.limit))
        self._serve(now)


def poisson(
    rate: Callable[[float], float] | float,
    seconds: float,
    *,
    work: Callable[[random.Random], float],
    seed: int = 1,
    kind: str = "",
) -> Iterator[Arrival]:
    rng, now = random.Random(seed), 0.0
    while True:
        now += rng.expovariate(rate(now) if callable(rate) else rate)
        if now > seconds:
            return
        yield Arrival(now, work(rng), kind)
