"""A service with a number of servers in virtual time, behind the real admission controller."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from tenfold.overload.admission import AdmissionController, FairQueue, Priority, QueuedRequest
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
    """The outcome of one request; ``ended_s`` is None when it was shed."""

    arrival: Arrival
    ended_s: float | None = None
    reason: str = ""

    @property
    def latency_s(self) -> float:
        return float("inf") if self.ended_s is None else self.ended_s - self.arrival.due_s


@dataclass
class VirtualService:
    """Serves ``servers`` requests at a time, in order of admission, like a thread pool or an event loop (1).

    ``pace(now)`` multiplies the work of a request that begins now: 2 halves the capacity.
    """

    limit: Limit
    servers: int
    pace: Callable[[float], float] = lambda now: 1.0
    size: int = 100
    max_wait_s: float = 0.1
    busy_wait_s: float = 0.01
    limits: list[tuple[float, int]] = field(default_factory=list)

    def run(self, arrivals: Iterator[Arrival]) -> list[Outcome]:
        self.controller = AdmissionController(
            self.limit, FairQueue(size=self.size, max_wait_s=self.max_wait_s, busy_wait_s=self.busy_wait_s)
        )
        self.order = itertools.count()
        self.events: list = []
        self.line: list[tuple[QueuedRequest, Outcome]] = []
        self.free = self.servers
        outcomes: list[Outcome] = []
        due = next(arrivals, None)
        while due or self.events:
            if due and (not self.events or due.due_s <= self.events[0][0]):
                outcomes.append(outcome := Outcome(due))
                self._arrive(outcome)
                due = next(arrivals, None)
            else:
                now, _, request, outcome = heapq.heappop(self.events)
                self._done(now, request, outcome)
        return outcomes

    def _arrive(self, outcome: Outcome) -> None:
        now = outcome.arrival.due_s
        request = QueuedRequest(outcome.arrival.priority, outcome.arrival.tenant)
        request.wake = lambda: self._woken(request, outcome)
        self.now = now
        self.controller.submit(request, now)
        if request.state == "shed":
            outcome.reason = request.reason
        self._serve(now)

    def _woken(self, request: QueuedRequest, outcome: Outcome) -> None:
        if request.state == "admitted":
            self.line.append((request, outcome))
        else:
            outcome.reason = request.reason

    def _serve(self, now: float) -> None:
        while self.free and self.line:
            request, outcome = self.line.pop(0)
            self.free -= 1
            ends = now + outcome.arrival.work_s * self.pace(now)
            heapq.heappush(self.events, (ends, next(self.order), request, outcome))

    def _done(self, now: float, request: QueuedRequest, outcome: Outcome) -> None:
        outcome.ended_s = now
        self.free += 1
        self.controller.release(request, now, ended_s=now, kind=outcome.arrival.kind)
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
