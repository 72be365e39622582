"""What this process read a moment ago, for as long as a revocation elsewhere may go unnoticed."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from tenfold.sessions.record import Record

ENTRIES = 10_000


@dataclass(slots=True)
class _Entry:
    """A record as it was read at ``at``; without one: nothing that was read before ``at`` may come in."""

    at: float
    version: int = 0
    record: Record | None = None


class RecordCache:
    """Records by handle, none older than ``bound_ms``; the least recently used goes first.

    The age counts from the moment at which the read *began*, so that the bound holds for what was revoked
    while the answer was on its way. What this process itself revoked or wrote is right at once.

    Args:
        bound_ms: how old a record may be; 0 keeps nothing.
        entries: how many.
        clock: seconds that only grow.
    """

    def __init__(
        self, bound_ms: float, *, entries: int = ENTRIES, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._bound_s = bound_ms / 1000
        self._most = entries
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self.clock = clock

    def get(self, handle: str) -> tuple[int, Record] | None:
        """Version and record."""
        entry = self._entries.get(handle)
        if entry is None or entry.record is None:
            return None
        if self.clock() - entry.at >= self._bound_s:
            del self._entries[handle]
            return None
        self._entries.move_to_end(handle)
        return entry.version, entry.record

    def put(self, handle: str, version: int, record: Record, *, at: float) -> None:
        """``at`` is when the read or write began; what this process has dropped since then is not taken."""
        entry = self._entries.get(handle)
        if entry and (entry.version > version or (entry.record is None and entry.at >= at)):
            return
        self._set(handle, _Entry(at, version, record))

    def drop(self, handle: str) -> None:
        """Forgets a record, also one that is still on its way here."""
        self._set(handle, _Entry(self.clock()))

    def _set(self, handle: str, entry: _Entry) -> None:
        if self._bound_s <= 0:
            return
        self._entries[handle] = entry
        self._entries.move_to_end(handle)
        if len(self._entries) > self._most:
            self._entries.popitem(last=False)
