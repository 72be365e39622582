"""Event loop lag of a worker, and the lines of user code that block the loop."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections import Counter, deque
from typing import Any

from tenfold.measure.probe import probe_protocol
from tenfold.measure.probe.recorder import Recorder

TICK_S = 0.05
STUCK_S = 0.05  # a loop this late is sampled for the line that blocks it
LINES = 200


class LoopMonitor:
    """A timer in the loop measures its own lag; another thread samples the line on which a late loop stands.

    It ticks while a collector listens; a request starts it when it is ``idle``. A loop that is late because
    other threads hold the interpreter lock looks the same as one that is blocked: the ranking compares with
    the process's CPU use.
    """

    def __init__(self, recorder: Recorder) -> None:
        self.idle = True
        self._recorder = recorder
        self.loop: asyncio.AbstractEventLoop | None = None
        self.thread = 0
        self._due = 0.0
        self._lags: deque[float] = deque(maxlen=1_000)
        self._lines: Counter[str] = Counter()
        self._limiter: Any = None
        self._busy, self._total, self._waiting = -1, 0, 0

    def start(self) -> None:
        """Start the timer in the running loop. Call it from a coroutine."""
        self.loop = asyncio.get_running_loop()
        self.thread = threading.get_ident()
        self._recorder.native_ids[self.thread] = threading.get_native_id()
        self._limiter = _thread_limiter()
        self.idle = False
        self._schedule()

    def sample(self) -> None:
        """Count the line of user code on which a late loop stands. Call it from another thread."""
        if self.idle or time.perf_counter() < self._due + STUCK_S:
            return
        frame = sys._current_frames().get(self.thread)
        where = self._recorder.sites.find(frame).where
        if where and (where in self._lines or len(self._lines) < LINES):
            self._lines[where] += 1

    def drain(self, batch: probe_protocol.Batch) -> None:
        """Move lags, lines and thread counts into the batch."""
        batch.lags_s = [self._lags.popleft() for _ in range(len(self._lags))]
        lines, self._lines = self._lines, Counter()
        batch.blockers = dict(lines)
        batch.threads_busy, batch.threads_total = self._busy, self._total
        batch.threads_waiting = self._waiting
        self._busy, self._waiting = -1, 0
        if not self.idle and (late := time.perf_counter() - self._due) > STUCK_S:
            batch.loop_late_s = late  # its tick is not recorded before it runs, which may be never

    def _schedule(self) -> None:
        assert self.loop is not None
        self._due = time.perf_counter() + TICK_S
        self.loop.call_later(TICK_S, self._tick)

    def _tick(self) -> None:
        if not self._recorder.is_on:
            self.idle = True
            return
        self._lags.append(max(0.0, time.perf_counter() - self._due))
        if self._limiter is not None:
            self._busy = max(self._busy, int(self._limiter.borrowed_tokens))
            self._total = int(min(self._limiter.total_tokens, 1e6))
            self._waiting = max(self._waiting, int(self._limiter.statistics().tasks_waiting))
        self._schedule()


def _thread_limiter() -> Any:
    """Return AnyIO's limiter of worker threads, in which sync endpoints run; None where AnyIO is not used."""
    to_thread: Any = sys.modules.get("anyio.to_thread")
    try:
        return to_thread.current_default_thread_limiter() if to_thread is not None else None
    except Exception:  # another event loop than AnyIO knows
        return None
