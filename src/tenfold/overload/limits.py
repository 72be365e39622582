"""How many requests at once: limits that follow what the service can do. Pure: times in, a limit out.

Little's law: what is in flight is throughput × latency. Beyond the knee more in flight is only more latency.
A limit is fed with every finished request and moves towards the knee, as Netflix's concurrency-limits does.
Times are seconds of any one clock.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from typing import Protocol

__all__ = ["AIMDLimit", "FixedLimit", "GradientLimit", "Limit"]


class Limit(Protocol):
    """How many requests may be in flight."""

    @property
    def limit(self) -> int:
        """The limit now, at least 1."""

    def record(
        self, started_s: float, ended_s: float, *, in_flight: int, kind: Hashable, dropped: bool = False
    ) -> None:
        """A request ended.

        Args:
            started_s: when it was let in.
            ended_s: when it was answered; never descends from call to call.
            in_flight: requests in flight as it ended, itself included.
            kind: what it should be compared with: requests of one kind cost about the same.
            dropped: it failed because something below is overloaded too.
        """


class FixedLimit:
    """A limit that stays where it was set."""

    def __init__(self, limit: int) -> None:
        self.limit = limit

    def record(
        self, started_s: float, ended_s: float, *, in_flight: int, kind: Hashable, dropped: bool = False
    ) -> None:
        """Nothing follows."""


class AIMDLimit:
    """One more for each ``limit`` requests within ``target_s``, a tenth less for one beyond it.

    Additive increase, multiplicative decrease: Chiu and Jain (1989). For services whose latencies hardly
    differ from request to request, and whose owner knows how long one may take. ``target_s`` that the service
    cannot hold even when idle leaves ``least``.
    """

    def __init__(
        self, *, target_s: float, initial: int = 20, least: int = 2, most: int = 1000, backoff: float = 0.9
    ) -> None:
        self._target_s = target_s
        self._least, self._most, self._backoff = least, most, backoff
        self._limit = float(initial)
        self._lowered_s = -math.inf

    @property
    def limit(self) -> int:
        """The limit now."""
        return int(self._limit)

    def record(
        self, started_s: float, ended_s: float, *, in_flight: int, kind: Hashable, dropped: bool = False
    ) -> None:
        """Move by one request; those let in before the last decrease say nothing about it."""
        if dropped or ended_s - started_s > self._target_s:
            if started_s >= self._lowered_s:
                self._limit = max(self._limit * self._backoff, self._least)
                self._lowered_s = ended_s
        elif in_flight * 2 >= self._limit:
            self._limit = min(self._limit + 1 / self._limit, self._most)


class _Unloaded:
    """What a kind of request takes when it waits for nothing: the lowest mean of the last ``memory_s``.

    A minimum over noisy means would sink below the truth, so few and large means compete, each with the upper
    end of its confidence interval (two standard errors).
    """

    __slots__ = ("_count", "_kept", "_latest", "_opened_s", "_squares", "_sum", "_turned_s")

    LEAST_S = 1.0
    SAMPLES = 50
    FIRST = 20

    def __init__(self, now_s: float) -> None:
        self._kept = self._latest = math.inf
        self._turned_s = now_s
        self.clear(now_s)

    @property
    def mean_s(self) -> float:
        """Seconds; infinite while unknown."""
        return min(self._kept, self._latest)

    def clear(self, now_s: float) -> None:
        """Begin a new mean."""
        self._opened_s = now_s
        self._count, self._sum, self._squares = 0, 0.0, 0.0

    def add(self, seconds: float, now_s: float, *, memory_s: float) -> None:
        """Count one request."""
        self._count += 1
        self._sum += seconds
        self._squares += seconds * seconds
        enough = self._count >= self.SAMPLES and now_s - self._opened_s >= self.LEAST_S
        if enough or (self._count >= self.FIRST and self.mean_s == math.inf):
            self.close(now_s, memory_s=memory_s)

    def close(self, now_s: float, *, memory_s: float) -> None:
        """Let the mean since the last call compete, unless it is of too few."""
        if now_s - self._turned_s > memory_s / 2:
            self._kept, self._latest, self._turned_s = self._latest, math.inf, now_s
        if self._count >= 5:
            mean = self._sum / self._count
            variance = max(self._squares / self._count - mean * mean, 0.0)
            self._latest = min(self._latest, mean + 2 * math.sqrt(variance / self._count))
        self.clear(now_s)


class GradientLimit:
    """Follows how much slower requests have become than the same requests without a queue.

    After Gradient2 of Netflix's concurrency-limits: limit × min(1, tolerance / slowdown) + √limit, smoothed.
    What is different, because it is for services in Python:

    - The slowdown is a ratio of sums over *kinds* of requests (routes, say), each beside its own unloaded
      latency: a change of the mix is none of the limit. Gradient2's one average calls it a queue.
    - The unloaded latency is a minimum over ``memory_s`` and not a slow average, which under a lasting
      overload follows the queue and lets the limit grow for ever.
    - A minimum has to be measured again: while the limit is reached it dips for a moment, after ``probe_s``
      at most (BBR's ProbeRTT, Cardwell et al. 2016; Envoy's adaptive concurrency does likewise).
    - A dip that makes nothing faster shows a service that became slower without a queue: the unloaded
      latencies are learned anew, and the limit grows again.

    Args:
        initial: before anything is known.
        least: never below it but in a dip, so that the service is always asked enough to notice a recovery.
        most: never above it.
        tolerance: slowdown up to which there is no queue worth a reaction.
        window_s: a decision is taken at most once in this time …
        samples: … and after no fewer requests than this.
        memory_s: how long an unloaded latency is believed.
        probe_s: longest time without a dip while the limit is reached; infinite for no dips.
    """

    KINDS = 200  # beyond which they share one

    def __init__(
        self,
        *,
        initial: int = 10,
        least: int = 2,
        most: int = 1000,
        tolerance: float = 1.5,
        window_s: float = 0.1,
        samples: int = 20,
        memory_s: float = 30.0,
        probe_s: float = 8.0,
    ) -> None:
        self._least, self._most, self._tolerance = least, most, tolerance
        self._window_s, self._samples = window_s, samples
        self._memory_s, self._longest_probe_s = memory_s, probe_s
        self._limit = float(min(max(initial, least), most))
        self._starting = True  # doubling, as TCP does, until something slows down
        self._fresh = True  # nothing that is known was measured in a dip
        self._dip: int | None = None
        self._probe_s = 0.0
        self._next_probe_s = math.inf if probe_s == math.inf else 0.0
        self._dipped_from = 0.0
        self._before = (1.0, 0.0)  # the last dip: slowdown and unloaded latencies before it
        self._unloaded: dict[Hashable, _Unloaded] = {}
        self._window: _Window | None = None

    @property
    def limit(self) -> int:
        """The limit now."""
        return int(self._limit) if self._dip is None else self._dip

    def record(
        self, started_s: float, ended_s: float, *, in_flight: int, kind: Hashable, dropped: bool = False
    ) -> None:
        """Count a request, and decide when there were enough."""
        window = self._window
        unloaded = self._kind(kind, ended_s)
        if window is None:
            window = self._window = _Window(ended_s, settled_s=math.inf)
        if ended_s < window.settled_s:
            window.settle(started_s, ended_s, unloaded.mean_s)
            return
        window.add(ended_s - started_s, unloaded.mean_s, in_flight, dropped=dropped)
        if not dropped:
            unloaded.add(ended_s - started_s, ended_s, memory_s=self._memory_s)
        lasted_s = ended_s - window.settled_s
        if self._dip is None:
            if window.count >= self._samples and lasted_s >= self._window_s:
                self._decide(ended_s, window)
        elif window.count >= 2 * self._samples or lasted_s >= max(5 * self._window_s, 3 * window.mean_s):
            self._end_dip(ended_s, window)

    def _kind(self, kind: Hashable, now_s: float) -> _Unloaded:
        if kind not in self._unloaded:
            if len(self._unloaded) >= self.KINDS:
                kind = None
            self._unloaded.setdefault(kind, _Unloaded(now_s))
        return self._unloaded[kind]

    # ------------------------------------------------------------------ decisions, one a window

    def _decide(self, now_s: float, window: _Window) -> None:
        self._window = _Window(now_s)
        reached = window.busiest >= int(self._limit)
        slowdown = window.slowdown
        if window.dropped:
            self._limit = self._within(self._limit * 0.9)
        elif self._starting and slowdown <= self._tolerance:
            if reached:
                self._limit = self._within(self._limit * 2)
                self._settle(now_s)
            return
        elif window.busiest * 2 >= self._limit:
            gradient = min(max(self._tolerance / slowdown, 0.5), 1.0)
            target = self._limit * gradient + math.sqrt(self._limit)
            self._limit = self._within(self._limit + 0.5 * (target - self._limit))
        self._starting = False
        if reached and (now_s >= self._next_probe_s or self._limit < self._dipped_from / 2):
            self._begin_dip(now_s, slowdown)

    def _within(self, limit: float) -> float:
        return min(max(limit, self._least), self._most)

    def _begin_dip(self, now_s: float, slowdown: float) -> None:
        """Low enough that the queue, if there is one, is gone: below what the limit itself calls unloaded.

        The first one, when all that was ever seen may have been a queue, goes all the way.
        """
        unqueued = (self._limit - math.sqrt(self._limit)) / self._tolerance
        self._dip = self._least if self._fresh else max(int(0.6 * unqueued), 1)
        self._fresh = False
        self._dipped_from = self._limit
        self._before = (slowdown, self._known_s())
        self._settle(now_s)

    def _end_dip(self, now_s: float, window: _Window) -> None:
        """What was measured is as unloaded as it gets; a dip that taught something has a successor."""
        slowdown, known_s = self._before
        self._probe_s = min(max(2 * self._probe_s, 0.5), self._longest_probe_s)
        for unloaded in self._unloaded.values():
            unloaded.close(now_s, memory_s=self._memory_s)
        if slowdown > self._tolerance and window.slowdown > 0.9 * slowdown:
            self._unloaded.clear()
            self._starting = True
        elif (now_known_s := self._known_s()) < 0.9 * known_s:
            self._probe_s = 0.0
            target = self._limit * min(self._tolerance * now_known_s / (slowdown * known_s), 1.0)
            self._limit = self._within(target + math.sqrt(target))
        self._next_probe_s = now_s + self._probe_s
        self._dip = None
        self._settle(now_s)

    def _known_s(self) -> float:
        return sum(kind.mean_s for kind in self._unloaded.values() if kind.mean_s < math.inf)

    def _settle(self, now_s: float) -> None:
        """Count again once the change of the limit is through."""
        self._window = _Window(now_s, settled_s=math.inf)
        for unloaded in self._unloaded.values():
            unloaded.clear(now_s)


class _Window:
    """The requests that one decision is about: those that end after ``settled_s``."""

    __slots__ = (
        "busiest",
        "count",
        "dropped",
        "expected_s",
        "opened_s",
        "settled_s",
        "taken_s",
        "total_s",
        "turned",
    )

    def __init__(self, now_s: float, *, settled_s: float | None = None) -> None:
        self.opened_s = now_s
        self.settled_s = now_s if settled_s is None else settled_s
        self.count = self.busiest = 0
        self.total_s = self.taken_s = self.expected_s = 0.0
        self.dropped = self.turned = False

    def settle(self, started_s: float, ended_s: float, unloaded_s: float) -> None:
        """Once two generations are through, one latency more: the first to end are the short ones."""
        if self.settled_s < math.inf or started_s < self.opened_s:
            return
        if self.turned:
            self.settled_s = ended_s + (0.0 if unloaded_s == math.inf else unloaded_s)
        self.opened_s, self.turned = ended_s, True

    def add(self, seconds: float, unloaded_s: float, in_flight: int, *, dropped: bool) -> None:
        self.count += 1
        self.total_s += seconds
        self.busiest = max(self.busiest, in_flight)
        self.dropped |= dropped
        if unloaded_s < math.inf:
            self.taken_s += seconds
            self.expected_s += unloaded_s

    @property
    def mean_s(self) -> float:
        return self.total_s / self.count if self.count else 0.0

    @property
    def slowdown(self) -> float:
        return self.taken_s / self.expected_s if self.expected_s else 1.0
