"""Concurrency limits that adapt to what the service can do. Pure: times in, a limit out.

Little's law: requests in flight = throughput × latency. Beyond the knee, more requests in flight only add
latency. A limit records every finished request and moves towards the knee, as in Netflix's
concurrency-limits. Times are seconds of any one clock.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from typing import Protocol

__all__ = ["AIMDLimit", "FixedLimit", "GradientLimit", "Limit"]


class Limit(Protocol):
    """The number of requests that may be in flight.

    One that is low for a moment to measure something says so by a property ``is_probing``, if it has that.
    """

    @property
    def limit(self) -> int:
        """The limit now, at least 1."""

    def record(
        self, started_s: float, ended_s: float, *, in_flight: int, kind: Hashable, dropped: bool = False
    ) -> None:
        """Record a finished request.

        Args:
            started_s: when it was admitted.
            ended_s: when it was answered; never descends from call to call.
            in_flight: requests in flight as it ended, itself included.
            kind: a hashable label; requests of one kind cost about the same and are compared with each other.
            dropped: it failed because something below is overloaded too.
        """


class FixedLimit:
    """A constant limit."""

    def __init__(self, limit: int) -> None:
        self.limit = limit

    def record(
        self, started_s: float, ended_s: float, *, in_flight: int, kind: Hashable, dropped: bool = False
    ) -> None:
        """Do nothing."""


class AIMDLimit:
    """Additive increase, multiplicative decrease (Chiu and Jain, 1989), towards a latency of ``target_s``.

    The limit grows by one for each ``limit`` requests within ``target_s`` and shrinks by a tenth for one
    beyond it. For services whose latencies hardly differ from request to request, with a known bound. A
    ``target_s`` that the service misses even when idle leaves the limit at ``minimum``.
    """

    def __init__(
        self,
        *,
        target_s: float,
        initial: int = 20,
        minimum: int = 2,
        maximum: int = 1000,
        backoff: float = 0.9,
    ) -> None:
        self._target_s = target_s
        self._minimum, self._maximum, self._backoff = minimum, maximum, backoff
        self._limit = float(initial)
        self._lowered_s = -math.inf

    @property
    def limit(self) -> int:
        """The limit now."""
        return int(self._limit)

    def record(
        self, started_s: float, ended_s: float, *, in_flight: int, kind: Hashable, dropped: bool = False
    ) -> None:
        """Adjust the limit; slow requests admitted before the last decrease are ignored."""
        if dropped or ended_s - started_s > self._target_s:
            if started_s >= self._lowered_s:
                self._limit = max(self._limit * self._backoff, self._minimum)
                self._lowered_s = ended_s
        elif in_flight * 2 >= self._limit:
            self._limit = min(self._limit + 1 / self._limit, self._maximum)


class _UnloadedLatency:
    """The latency of one kind of request without a queue: the lowest mean of the last ``memory_s``.

    A minimum over noisy means would be too low, so the means are few and large, and each enters with the
    upper end of its confidence interval (two standard errors).
    """

    __slots__ = ("_count", "_kept", "_latest", "_opened_s", "_rotated_s", "_squares", "_sum")

    MIN_SPAN_S = 1.0
    MIN_SAMPLES = 50
    FIRST_SAMPLES = 20

    def __init__(self, now_s: float) -> None:
        self._kept = self._latest = math.inf
        self._rotated_s = now_s
        self.clear(now_s)

    @property
    def mean_s(self) -> float:
        """The mean in seconds; infinite while unknown."""
        return min(self._kept, self._latest)

    def clear(self, now_s: float) -> None:
        """Start a new mean."""
        self._opened_s = now_s
        self._count, self._sum, self._squares = 0, 0.0, 0.0

    def add(self, seconds: float, now_s: float, *, memory_s: float) -> None:
        """Add one request."""
        self._count += 1
        self._sum += seconds
        self._squares += seconds * seconds
        enough = self._count >= self.MIN_SAMPLES and now_s - self._opened_s >= self.MIN_SPAN_S
        if enough or (self._count >= self.FIRST_SAMPLES and self.mean_s == math.inf):
            self.close(now_s, memory_s=memory_s)

    def relearn(self, slowdown: float) -> None:
        """Forget the minimum: requests take ``slowdown`` times as long without a queue."""
        self._kept, self._latest = math.inf, self.mean_s * slowdown

    def close(self, now_s: float, *, memory_s: float) -> None:
        """Compare the mean since the last call with the minimum, unless it is of fewer than five requests."""
        if now_s - self._rotated_s > memory_s / 2:
            self._kept, self._latest, self._rotated_s = self._latest, math.inf, now_s
        if self._count >= 5:
            mean = self._sum / self._count
            variance = max(self._squares / self._count - mean * mean, 0.0)
            self._latest = min(self._latest, mean + 2 * math.sqrt(variance / self._count))
        self.clear(now_s)


class GradientLimit:
    """Adapts to the slowdown: the latency of requests relative to the same requests without a queue.

    After Gradient2 of Netflix's concurrency-limits: limit × min(1, tolerance / slowdown) + √limit, smoothed.
    The differences, made for services in Python:

    - The slowdown is a ratio of sums over *kinds* of requests (routes, say), each relative to its own
      unloaded latency: a change of the mix does not change the limit. Gradient2's single average mistakes it
      for a queue.
    - The unloaded latency is a minimum over ``memory_s`` and not a slow average, which under a lasting
      overload follows the queue and lets the limit grow for ever.
    - A minimum has to be measured again: while the limit is reached it dips for a moment, after ``probe_s``
      at most (BBR's ProbeRTT, Cardwell et al. 2016; Envoy's adaptive concurrency does likewise).
    - Short requests may wait for ``slack_s``: what slows 3 ms down to 8 is another process on the machine,
      and no overload. WeChat's services call 20 ms of queueing one (Zhou et al., SoCC 2018).
    - The limit shrinks at once, and only its growth is smoothed.
    - If a dip makes no request faster, the service became slower without a queue: what the dip has measured
      is unloaded from then on, and the limit grows again.

    Args:
        initial: the limit before any request was recorded.
        minimum: lower bound outside of dips; enough requests always run to notice a recovery.
        maximum: upper bound.
        tolerance: slowdown up to which the limit does not shrink.
        slack_s: added latency up to which it does not shrink either, seconds.
        window_s: shortest time between two decisions, seconds.
        samples: least number of requests between two decisions.
        memory_s: how long an unloaded latency is kept, seconds.
        probe_s: longest time without a dip while the limit is reached, seconds; infinite for no dips.
    """

    MAX_KINDS = 200  # beyond which they share one

    def __init__(  # noqa: PLR0913 - each option by its name
        self,
        *,
        initial: int = 10,
        minimum: int = 2,
        maximum: int = 1000,
        tolerance: float = 1.5,
        slack_s: float = 0.02,
        window_s: float = 0.1,
        samples: int = 20,
        memory_s: float = 30.0,
        probe_s: float = 8.0,
    ) -> None:
        self._minimum, self._maximum, self._tolerance = minimum, maximum, tolerance
        self._slack_s = slack_s
        self._window_s, self._samples = window_s, samples
        self._memory_s, self._longest_probe_s = memory_s, probe_s
        self._limit = float(min(max(initial, minimum), maximum))
        self._starting = True  # doubling, as TCP does, until something slows down
        self._fresh = True  # no latency has been measured in a dip yet
        self._dip: int | None = None
        self._probe_s = 0.0
        self._next_probe_s = math.inf if probe_s == math.inf else 0.0
        self._limit_before_dip = 0.0
        self._before_dip = (1.0, tolerance, 0.0)  # slowdown, the tolerated one, unloaded latencies
        self._unloaded: dict[Hashable, _UnloadedLatency] = {}
        self._window: _Window | None = None

    @property
    def limit(self) -> int:
        """The limit now."""
        return int(self._limit) if self._dip is None else self._dip

    @property
    def is_probing(self) -> bool:
        """Whether the limit is low for a moment, to measure latencies without a queue."""
        return self._dip is not None

    def record(
        self, started_s: float, ended_s: float, *, in_flight: int, kind: Hashable, dropped: bool = False
    ) -> None:
        """Record a request, and decide when there were enough."""
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

    def _kind(self, kind: Hashable, now_s: float) -> _UnloadedLatency:
        if kind not in self._unloaded:
            if len(self._unloaded) >= self.MAX_KINDS:
                kind = None
            self._unloaded.setdefault(kind, _UnloadedLatency(now_s))
        return self._unloaded[kind]

    # ------------------------------------------------------------------ decisions, one a window

    def _decide(self, now_s: float, window: _Window) -> None:
        self._window = _Window(now_s)
        reached = window.busiest >= int(self._limit)
        slowdown, tolerance = window.slowdown, self._tolerated(window)
        if window.dropped:
            self._limit = self._clamp(self._limit * 0.9)
        elif self._starting and slowdown <= tolerance:
            if reached:
                self._limit = self._clamp(self._limit * 2)
                self._restart_window(now_s)
            return
        elif window.busiest * 2 >= self._limit:
            gradient = min(max(tolerance / slowdown, 0.5), 1.0)
            target = self._limit * gradient + math.sqrt(self._limit)
            # Down at once: each decision too late costs as many slow answers as the limit is too high.
            step = target - self._limit
            self._limit = self._clamp(self._limit + (step if step < 0 else 0.5 * step))
        self._starting = False
        if reached and (now_s >= self._next_probe_s or self._limit < self._limit_before_dip / 2):
            self._begin_dip(now_s, slowdown, tolerance)

    def _tolerated(self, window: _Window) -> float:
        """The slowdown up to which the limit does not shrink."""
        return (
            max(self._tolerance, 1.0 + self._slack_s / window.unloaded_s)
            if window.unloaded_s
            else self._tolerance
        )

    def _clamp(self, limit: float) -> float:
        return min(max(limit, self._minimum), self._maximum)

    def _begin_dip(self, now_s: float, slowdown: float, tolerance: float) -> None:
        """Lower the limit so far that a queue, if any, drains: below what the limit itself calls unloaded.

        The first dip goes to the minimum, since every latency so far may have included a queue.
        """
        unqueued = (self._limit - math.sqrt(self._limit)) / tolerance
        self._dip = self._minimum if self._fresh else max(int(0.6 * unqueued), 1)
        self._fresh = False
        self._limit_before_dip = self._limit
        self._before_dip = (slowdown, tolerance, self._known_latencies_s())
        self._restart_window(now_s)

    def _end_dip(self, now_s: float, window: _Window) -> None:
        """Take the dip's latencies as unloaded ones; if they were lower than before, dip again soon."""
        slowdown, tolerance, known_s = self._before_dip
        self._probe_s = min(max(2 * self._probe_s, 0.5), self._longest_probe_s)
        is_slower = slowdown > tolerance and window.slowdown > 0.9 * slowdown
        for unloaded in self._unloaded.values():
            if is_slower:
                unloaded.relearn(window.slowdown)
            unloaded.close(now_s, memory_s=self._memory_s)
        if not is_slower and (now_known_s := self._known_latencies_s()) < 0.9 * known_s:
            self._probe_s = 0.0
            target = self._limit * min(tolerance * now_known_s / (slowdown * known_s), 1.0)
            self._limit = self._clamp(target + math.sqrt(target))
        self._next_probe_s = now_s + self._probe_s
        self._dip = None
        self._restart_window(now_s)

    def _known_latencies_s(self) -> float:
        return sum(kind.mean_s for kind in self._unloaded.values() if kind.mean_s < math.inf)

    def _restart_window(self, now_s: float) -> None:
        """Start a window that waits until the change of the limit has taken effect."""
        self._window = _Window(now_s, settled_s=math.inf)
        for unloaded in self._unloaded.values():
            unloaded.clear(now_s)


class _Window:
    """The requests of one decision: those that end after ``settled_s``."""

    __slots__ = (
        "actual_s",
        "busiest",
        "count",
        "dropped",
        "expected_s",
        "first_generation_ended",
        "known",
        "opened_s",
        "settled_s",
        "total_s",
    )

    def __init__(self, now_s: float, *, settled_s: float | None = None) -> None:
        self.opened_s = now_s
        self.settled_s = now_s if settled_s is None else settled_s
        self.count = self.known = self.busiest = 0
        self.total_s = self.actual_s = self.expected_s = 0.0
        self.dropped = self.first_generation_ended = False

    def settle(self, started_s: float, ended_s: float, unloaded_s: float) -> None:
        """Set ``settled_s``: two generations of requests later, and one latency, as short ones end first."""
        if self.settled_s < math.inf or started_s < self.opened_s:
            return
        if self.first_generation_ended:
            self.settled_s = ended_s + (0.0 if unloaded_s == math.inf else unloaded_s)
        self.opened_s, self.first_generation_ended = ended_s, True

    def add(self, seconds: float, unloaded_s: float, in_flight: int, *, dropped: bool) -> None:
        self.count += 1
        self.total_s += seconds
        self.busiest = max(self.busiest, in_flight)
        self.dropped |= dropped
        if unloaded_s < math.inf:
            self.known += 1
            self.actual_s += seconds
            self.expected_s += unloaded_s

    @property
    def mean_s(self) -> float:
        return self.total_s / self.count if self.count else 0.0

    @property
    def slowdown(self) -> float:
        return self.actual_s / self.expected_s if self.expected_s else 1.0

    @property
    def unloaded_s(self) -> float:
        """The mean unloaded latency of these requests; 0 if unknown."""
        return self.expected_s / self.known if self.known else 0.0
