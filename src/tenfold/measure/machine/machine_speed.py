"""Variation of the machine's own speed: fixed work, timed repeatedly beside the service.

On a shared host a core's speed changes with what its neighbours do to caches and memory, by a factor of two
within seconds, which need not show as steal. A service's capacity changes with it, and no search finds one
narrow interval for two speeds; so the spread is measured beside the service and reported with the result.

The work is typical of interpreters and databases, following pointers through memory: arithmetic in registers
keeps its speed when everything else slows down. It is timed in CPU time of its own thread: waiting for a core
is not slowness of the core.
"""

from __future__ import annotations

import random
import time

from tenfold.measure.machine.sampling_thread import SamplingThread

INTERVAL_S = 0.5
OBJECTS = 4_000
REPEATS = 3  # the fastest of three counts: an interrupt is not slowness
FEWEST = 20  # timings for which a spread is given


class SpeedGauge(SamplingThread):
    """Time the work twice a second while entered; costs about 0.5 % of a core."""

    def __init__(self) -> None:
        self._seconds: list[float] = []
        super().__init__(name="tenfold-speed")

    @property
    def spread(self) -> float | None:
        """The 90th percentile of the timings over the 10th; None for too few timings."""
        return spread(self._seconds)

    def _run(self) -> None:
        shuffle = random.Random(1)  # noqa: S311 - the same work every time, not a secret
        objects = [(shuffle.random(), str(number)) for number in range(OBJECTS)]
        while not self._stopping.wait(INTERVAL_S):
            self._seconds.append(min(_time_work(objects) for _ in range(REPEATS)))


def spread(seconds: list[float]) -> float | None:
    """Return the 90th percentile of ``seconds`` over the 10th, or None for fewer than ``FEWEST``."""
    if len(seconds) < FEWEST:
        return None
    ordered = sorted(seconds)
    low, high = ordered[len(ordered) // 10], ordered[len(ordered) * 9 // 10]
    return high / low if low > 0 else None


def _time_work(objects: list[tuple[float, str]]) -> float:
    begun = time.thread_time()
    dict(sorted(objects))
    return time.thread_time() - begun
