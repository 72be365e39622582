"""A service in virtual time: a first-come-first-served queue whose capacity is known.

It runs trials as the load generator does (same requests, same blocks) at a few million arrivals a second, so
that a search for the capacity can be repeated thousands of times against a known truth.

Sojourn times follow Kiefer and Wolfowitz (1955): an arrival is served by the server that is free first. With
one server that is Lindley's recursion (1952), solved for all arrivals at once by a running maximum. A noisy
neighbour slows all servers at once: work is done in operational time, the integral of the speed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from heapq import heapreplace

import numpy as np
from numpy.typing import NDArray

from tenfold.measure.trial import Block, GeneratorHealth, Trial, TrialRequest

Floats = NDArray[np.float64]
Draw = Callable[[np.random.Generator, int], Floats]


@dataclass(frozen=True, slots=True)
class Neighbour:
    """Another tenant, present and absent for exponential times; it leaves ``speed`` of the machine."""

    speed: float
    present_s: float
    absent_s: float


@dataclass(frozen=True, slots=True)
class Service:
    """``servers`` identical workers, seconds of work per arrival from ``draw``.

    ``floor``: the share of arrivals that are bad at any rate (a slow endpoint beside fast ones).
    """

    servers: int
    draw: Draw
    neighbour: Neighbour | None = None
    floor: float = 0.0


class Clock:
    """Operational time: the work that a server could have done since 0, and back to clock time."""

    def __init__(self, neighbour: Neighbour | None, *, rng: np.random.Generator) -> None:
        self._neighbour = neighbour
        self._rng = rng
        share = 1.0 if neighbour is None else neighbour.absent_s / (neighbour.absent_s + neighbour.present_s)
        self._absent = bool(rng.random() < share)
        self._time = [0.0]
        self._work = [0.0]

    def work(self, time: Floats) -> Floats:
        """Operational time at each moment."""
        if self._neighbour is None or not len(time):
            return time
        while self._time[-1] <= time[-1]:
            self._extend(self._neighbour)
        return np.interp(time, self._time, self._work)

    def time(self, work: Floats) -> Floats:
        """Time at which each amount of work is done."""
        if self._neighbour is None or not len(work):
            return work
        while self._work[-1] <= work.max():
            self._extend(self._neighbour)
        return np.interp(work, self._work, self._time)

    def _extend(self, neighbour: Neighbour) -> None:
        mean_s, speed = (neighbour.absent_s, 1.0) if self._absent else (neighbour.present_s, neighbour.speed)
        seconds = self._rng.exponential(mean_s)
        self._time.append(self._time[-1] + seconds)
        self._work.append(self._work[-1] + seconds * speed)
        self._absent = not self._absent


class Queue:
    """The servers and the operational times at which each is free."""

    def __init__(self, servers: int) -> None:
        self._free = [0.0] * servers

    def departures(self, arrivals: Floats, services: Floats) -> Floats:
        """Operational times at which arrivals leave; ``arrivals`` ascend from call to call."""
        if len(self._free) > 1:
            return self._departures(arrivals, services)
        if not len(arrivals):
            return arrivals
        done = np.cumsum(services)
        slack = np.maximum.accumulate(np.maximum(arrivals - done + services, self._free[0]))
        leave = done + slack
        self._free[0] = float(leave[-1])
        return leave

    def _departures(self, arrivals: Floats, services: Floats) -> Floats:
        free, leave = self._free, []
        for due, work in zip(arrivals.tolist(), services.tolist(), strict=True):
            first = free[0]
            done = (first if first > due else due) + work
            heapreplace(free, done)
            leave.append(done)
        return np.array(leave)


class VirtualGenerator:
    """A generator of trials against a service; time and an undrained queue carry over from trial to trial.

    Above ``ceiling`` arrivals per second the generator is late, as a real one is at the end of its core.
    """

    def __init__(
        self,
        service: Service,
        *,
        seed: int,
        slow_ms: float = 200.0,
        block_s: float = 0.5,
        overhead_s: float = 0.3,
        ceiling: float = float("inf"),
    ) -> None:
        self._service = service
        self._rng = np.random.default_rng(seed)
        self._clock = Clock(service.neighbour, rng=self._rng)
        self._queue = Queue(service.servers)
        self._slow_s, self._block_s, self._overhead_s = slow_ms / 1000, block_s, overhead_s
        self._ceiling = ceiling
        self._now = 0.0

    def run(self, request: TrialRequest) -> Trial:
        """Run a trial in virtual time."""
        blocks: list[Block] = []
        began, pending = self._now, np.empty(0)
        while len(blocks) * self._block_s + 1e-9 < request.duration_s:
            block, pending = self._block(request.rate, began, len(blocks), pending)
            blocks.append(block)
            if request.rule is not None and request.rule.should_stop(blocks):
                break
        end = began + len(blocks) * self._block_s
        drained_s = max(float(pending.max()) - end, 0.0) if len(pending) else 0.0
        settled_s = min(drained_s, request.settle_s) + self._overhead_s
        self._now = end + settled_s
        late = max(0.0, 1 - self._ceiling / request.rate)
        health = GeneratorHealth(cpu_share=0.3, late_share=late, lag_p99_ms=0.5)
        return Trial(request, end - began, settled_s, tuple(blocks), health)

    def _block(self, rate: float, began: float, index: int, pending: Floats) -> tuple[Block, Floats]:
        start = began + index * self._block_s
        end = start + self._block_s
        count = int(self._rng.poisson(rate * self._block_s))
        due = np.sort(self._rng.uniform(start, end, count))
        leave = self.departures(due)
        slow = leave - due > self._slow_s
        if self._service.floor:
            slow |= self._rng.random(count) < self._service.floor
        pending = np.concatenate([pending[pending > end], leave[leave > end]])
        bad = int(slow.sum())
        block = Block(start - began, self._block_s, count, count - bad, slow=bad, in_flight=len(pending))
        return block, pending

    def departures(self, due: Floats) -> Floats:
        """Times at which the arrivals that are due at these times leave the service."""
        work = self._service.draw(self._rng, len(due))
        return self._clock.time(self._queue.departures(self._clock.work(due), work))
