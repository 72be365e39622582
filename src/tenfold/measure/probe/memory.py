"""The interpreter's memory: pauses of its garbage collector, and how many blocks it has allocated."""

from __future__ import annotations

import gc
import sys
import time
from typing import Any

from tenfold.measure.probe import probe_protocol


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
