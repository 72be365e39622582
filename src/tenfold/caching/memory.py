"""The memory tier: entries of this process, bounded in bytes, and the generations of tags as far as known.

It may be used only while a listener confirms that no invalidation was missed: see
    :mod:`tenfold.caching.listener`.
"""

from __future__ import annotations

import threading
import time
from typing import Any

from tenfold.caching.entry import Entry, Serving, judge
from tenfold.positions import Token

__all__ = ["MemoryTier", "Slot"]

_ENTRY_OVERHEAD_BYTES = 400
_MAX_TAGS = 200_000


class Slot:
    """An entry that is kept, and its decoded value where callers may share it."""

    __slots__ = ("entry", "expires", "is_recent", "size", "value")

    def __init__(self, entry: Entry, size: int, expires: float) -> None:
        self.entry, self.size, self.expires = entry, size, expires
        self.is_recent = False
        self.value: Any = None


class MemoryTier:
    """Entries by key, and the generations of their tags. Thread-safe; a hit takes no lock.

    The eldest entries that were not read since the last round are evicted (second chance).

    Args:
        max_bytes: of encoded values, keys and a fixed overhead each.
        max_stale_s: longest time since the last confirmation that no invalidation was missed; None where
            there is none to miss, because this process is the only one.
    """

    def __init__(self, *, max_bytes: int, max_stale_s: float | None = None) -> None:
        self._max_bytes, self._max_stale_s = max_bytes, max_stale_s
        self._slots: dict[str, Slot] = {}
        self._tags: dict[str, bytes] = {}
        self._expected: dict[str, bytes] = {}  # of tags that this process has renewed: not heard yet
        self._bytes = 0
        self._lock = threading.Lock()
        self._confirmed = float("-inf")
        self.epoch = 0  # grows with each flush: what was read before one is not kept after it
        self.watermark: Token | None = None
        self._watermark_until = float("-inf")

    # ------------------------------------------------------------------ reading

    def find(
        self, key: str, token: Token | None, *, needs_watermark: bool = False
    ) -> tuple[Slot, Serving] | None:
        """Return the entry of a key if it may be served, and whether it is due for a refresh."""
        slot = self._slots.get(key)
        if slot is None:
            return None
        now = time.monotonic()
        if now >= slot.expires or (
            self._max_stale_s is not None and now - self._confirmed >= self._max_stale_s
        ):
            return None
        has_watermark = now < self._watermark_until
        if needs_watermark and not has_watermark:
            return None
        watermark = self.watermark if has_watermark else None
        serving = judge(slot.entry, self._tags, token, now=time.time(), watermark=watermark)
        if serving is Serving.MISS:
            return None
        slot.is_recent = True
        return slot, serving

    # ------------------------------------------------------------------ changing

    def keep(self, key: str, entry: Entry, *, epoch: int) -> None:
        """Keep an entry, unless an invalidation of its tags was heard or missed since ``epoch``.

        Args:
            epoch: :attr:`epoch` when the entry's tags were read.
        """
        size = len(entry.value) + len(key) + _ENTRY_OVERHEAD_BYTES
        if size > self._max_bytes:
            return
        with self._lock:
            if epoch != self.epoch:
                return
            if any(self._tags.setdefault(name, generation) != generation for name, generation in entry.tags):
                return
            self._drop(key)
            left_s = max(0.0, entry.expires_at - time.time())
            self._slots[key] = Slot(entry, size, time.monotonic() + left_s)
            self._bytes += size
            while self._bytes > self._max_bytes:
                self._evict()
            if len(self._tags) > _MAX_TAGS:
                self._flush()

    def set_generation(self, name: str, generation: bytes) -> None:
        """Record a tag's new generation: what had the former one is not found any more."""
        with self._lock:
            self._set(name, generation)

    def expect_generation(self, name: str, generation: bytes) -> None:
        """Record a generation that is about to be published by this process.

        Until it is heard, what is heard of the tag was published before it: taking that would let entries be
        found again that this process has just invalidated.
        """
        with self._lock:
            self._set(name, generation)
            self._expected[name] = generation

    def stop_expecting(self, name: str, generation: bytes) -> None:
        """Take what is heard of the tag again: the generation could not be published."""
        with self._lock:
            if self._expected.get(name) == generation:
                del self._expected[name]

    def hear_generation(self, name: str, generation: bytes) -> None:
        """Record a generation that any process has published."""
        with self._lock:
            if self._expected.get(name, generation) == generation:
                self._expected.pop(name, None)
                self._set(name, generation)

    def flush(self) -> None:
        """Drop all entries, because an invalidation may have been missed."""
        with self._lock:
            self._flush()

    def confirm(self, since: float) -> None:
        """Record that every invalidation before ``since`` (monotonic seconds) has been heard."""
        self._confirmed = since

    def set_watermark(self, token: Token | None, *, lasts_s: float) -> None:
        """Record that all invalidations of commits before ``token`` have been heard."""
        self.watermark, self._watermark_until = token, time.monotonic() + lasts_s

    def forget_confirmation(self) -> None:
        """Serve nothing until the next confirmation."""
        self._confirmed = self._watermark_until = float("-inf")
        self.flush()

    def _set(self, name: str, generation: bytes) -> None:
        self._tags[name] = generation
        if len(self._tags) > _MAX_TAGS:
            self._flush()

    def _flush(self) -> None:
        self.epoch += 1
        self._slots.clear()
        self._tags.clear()
        self._expected.clear()
        self._bytes = 0

    def _drop(self, key: str) -> None:
        if (slot := self._slots.pop(key, None)) is not None:
            self._bytes -= slot.size

    def _evict(self) -> None:
        key = next(iter(self._slots))
        slot = self._slots.pop(key)
        if slot.is_recent:
            slot.is_recent = False
            self._slots[key] = slot
        else:
            self._bytes -= slot.size
