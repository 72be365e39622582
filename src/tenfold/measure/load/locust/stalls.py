"""Stalls of the generator: whether it was busy itself, waited for a CPU, or stood in a call that blocks.

A greenlet beats every few milliseconds. When it does not, a native thread reads what Linux accounts to the
main thread in ``/proc/PID/task/TID/schedstat`` (time on a CPU, time in the run queue; the kernel's
Documentation/scheduler/sched-stats.rst) and divides the stall; what is neither is a call that blocks all
users, whose line in the locustfile is sampled.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from pathlib import Path
from time import perf_counter

import gevent
from gevent.monkey import get_original

from tenfold.callsites import CallSites
from tenfold.measure.trial import Stalls

__all__ = ["StallWatch"]

BEAT_S, LOOK_S, STALL_S = 0.005, 0.01, 0.01

_sleep = get_original("time", "sleep")
_start_thread = get_original("_thread", "start_new_thread")
_thread_id = get_original("_thread", "get_ident")


class StallWatch:
    """Watches the thread that makes it, from :meth:`start` to :meth:`stop`. Not without Linux.

    Args:
        folder: paths are shown relative to it.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._sites = CallSites(folder or Path.cwd())
        self._main = _thread_id()
        self._schedstat = Path(f"/proc/self/task/{os.getpid()}/schedstat")
        self._beat_at = self._longest_s = 0.0
        self._is_watching = False
        self._on_cpu_s = self._queued_s = self._blocked_s = 0.0
        self._lines: Counter[str] = Counter()

    def start(self) -> None:
        """Begin to watch."""
        if self._read() is None:
            return
        self._is_watching, self._beat_at = True, perf_counter()
        self._beats = gevent.spawn(self._beat)
        _start_thread(self._look, ())

    def stop(self) -> Stalls | None:
        """End it, and return how long the thread stalled for each reason; None where Linux does not say."""
        if not self._is_watching:
            return None
        self._is_watching = False
        self._beats.kill(block=False)
        line = self._lines.most_common(1)[0][0] if self._lines else ""
        return Stalls(self._on_cpu_s, self._queued_s, self._blocked_s, line)

    def _beat(self) -> None:
        while True:
            now = perf_counter()
            self._longest_s = max(self._longest_s, now - self._beat_at)
            self._beat_at = now
            gevent.sleep(BEAT_S)

    def _look(self) -> None:
        before, seen = self._read(), perf_counter()
        while self._is_watching:
            _sleep(LOOK_S)
            now, times = perf_counter(), self._read()
            # A stall that ends right before this look has left a late beat.
            silent_s, self._longest_s = max(now - self._beat_at, self._longest_s), 0.0
            if before is not None and times is not None and silent_s > STALL_S:
                self._divide(min(now - seen, silent_s), times[0] - before[0], times[1] - before[1])
            before, seen = times, now

    def _divide(self, stall_s: float, on_cpu_s: float, queued_s: float) -> None:
        on_cpu_s = min(on_cpu_s, stall_s)
        queued_s = min(queued_s, stall_s - on_cpu_s)
        blocked_s = stall_s - on_cpu_s - queued_s
        self._on_cpu_s += on_cpu_s
        self._queued_s += queued_s
        self._blocked_s += blocked_s
        if blocked_s > stall_s / 2 and (
            line := self._sites.find(sys._current_frames().get(self._main)).where
        ):
            self._lines[line] += 1

    def _read(self) -> tuple[float, float] | None:
        """Seconds of the thread on a CPU and in the run queue."""
        try:
            on_cpu, queued, _ = self._schedstat.read_text().split()
        except (OSError, ValueError):
            return None
        return int(on_cpu) / 1e9, int(queued) / 1e9
