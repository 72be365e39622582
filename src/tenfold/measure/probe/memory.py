"""The interpreter's memory: pauses of its collector, allocated blocks, and the lines that keep memory."""

from __future__ import annotations

import gc
import sys
import time
import tracemalloc
from typing import Any

from tenfold.callsites import CallSites
from tenfold.measure.probe import probe_protocol

FRAMES = 16  # of each allocation
LINES = 5


class GarbageCollections:
    """Time the collections of the process between :meth:`start` and :meth:`stop`."""

    def __init__(self) -> None:
        self._began = self._total_s = self._longest_s = 0.0
        self._pauses = 0

    def start(self) -> None:
        """Begin to time; calling it again changes nothing."""
        if self._note not in gc.callbacks:
            gc.callbacks.append(self._note)

    def stop(self) -> None:
        """Leave the collector as it was."""
        if self._note in gc.callbacks:
            gc.callbacks.remove(self._note)

    def drain(self, batch: probe_protocol.Batch) -> None:
        """Move the pauses since the last call into the batch."""
        batch.gc_pauses, batch.gc_pause_s, batch.gc_longest_s = self._pauses, self._total_s, self._longest_s
        batch.python_blocks = sys.getallocatedblocks()
        self._pauses, self._total_s, self._longest_s = 0, 0.0, 0.0

    def _note(self, phase: str, info: dict[str, Any]) -> None:
        now = time.perf_counter()
        if phase == "start":
            self._began = now
        elif self._began:
            self._pauses += 1
            self._total_s += now - self._began
            self._longest_s = max(self._longest_s, now - self._began)
            self._began = 0.0


class MemoryTrace:
    """Which lines allocate memory that stays in use, while :mod:`tracemalloc` traces: it is slow meanwhile.

    An app that traces by itself is left alone.
    """

    def __init__(self, sites: CallSites) -> None:
        self._sites = sites
        self._mine = False

    def obey(self, command: bytes, batch: probe_protocol.Batch) -> None:
        """Start or stop, as the collector says; on the stop the lines are put into the batch."""
        if command == probe_protocol.TRACE_MEMORY and not tracemalloc.is_tracing():
            tracemalloc.start(FRAMES)
            self._mine = True
        elif command == probe_protocol.STOP_TRACING and self._mine:
            batch.kept = self._lines()
            self.stop()

    def stop(self) -> None:
        """Stop tracing: the collector is gone."""
        if self._mine:
            tracemalloc.stop()
            self._mine = False

    def _lines(self) -> dict[str, int]:
        """Return the user lines that keep most of what was allocated meanwhile, in bytes; "" is all."""
        gc.collect()
        sums: dict[str, int] = {"": 0}
        for trace in tracemalloc.take_snapshot().traces:
            sums[""] += trace.size
            for frame in reversed(trace.traceback):  # the innermost first
                if path := self._sites.path(frame.filename):
                    line = f"{path}:{frame.lineno}"
                    sums[line] = sums.get(line, 0) + trace.size
                    break
        return dict(sorted(sums.items(), key=lambda item: -item[1])[: LINES + 1])
