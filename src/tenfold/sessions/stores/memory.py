"""A session store in this process's memory: for tests and for one instance, gone with the process."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tenfold.errors import SessionStoreError
from tenfold.sessions.stores.store import StoredPayload

__all__ = ["MemoryStore"]

MAX_MEMBERS = 1000


@dataclass(slots=True)
class _MemoryEntry:
    stored: StoredPayload | None  # None is a tombstone
    until: float


class MemoryStore:
    """A :class:`tenfold.sessions.stores.store.Store` of dicts. Use from one event loop.

    Args:
        max_entries: handles and groups in total; beyond, writes raise SessionStoreError.
        clock: seconds, monotonic.
    """

    def __init__(self, *, max_entries: int = 100_000, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_entries = max_entries
        self._clock = clock
        self._entries: dict[str, _MemoryEntry] = {}
        self._groups: dict[str, dict[str, float]] = {}

    async def read(self, handle: str) -> StoredPayload | None:
        entry = self._live(handle)
        return entry.stored if entry else None

    async def read_many(self, handles: Sequence[str]) -> list[StoredPayload | None]:
        return [await self.read(handle) for handle in handles]

    async def create(self, handle: str, payload: bytes, *, ttl_s: float) -> bool:
        if self._live(handle) is not None:
            return False
        self._put(handle, StoredPayload(1, payload), ttl_s)
        return True

    async def replace(
        self, handle: str, payload: bytes, *, version: int, ttl_s: float
    ) -> bool | StoredPayload | None:
        entry = self._live(handle)
        if entry is None or entry.stored is None:
            return None
        if entry.stored.version != version:
            return entry.stored
        self._put(handle, StoredPayload(version + 1, payload), ttl_s)
        return True

    async def revoke(self, handle: str, *, ttl_s: float) -> None:
        self._put(handle, None, ttl_s)

    async def add_member(
        self, group: str, handle: str, *, ttl_s: float, replacing: Sequence[str] = ()
    ) -> list[str]:
        if group not in self._groups:
            self._make_room()
        members = self._groups.setdefault(group, {})
        expired = [name for name, until in members.items() if until <= self._clock()]
        for gone in (*expired, *replacing):
            members.pop(gone, None)
        if handle not in members and (surplus := len(members) + 1 - MAX_MEMBERS) > 0:
            return sorted(members, key=members.__getitem__)[:surplus]
        members[handle] = max(members.get(handle, 0.0), self._clock() + ttl_s)
        return []

    async def members(self, group: str) -> list[str]:
        now = self._clock()
        return [handle for handle, until in self._groups.get(group, {}).items() if until > now]

    async def aclose(self) -> None:
        """Do nothing: there are no connections, and the entries stay."""

    def _live(self, handle: str) -> _MemoryEntry | None:
        entry = self._entries.get(handle)
        return entry if entry and entry.until > self._clock() else None

    def _put(self, handle: str, stored: StoredPayload | None, ttl_s: float) -> None:
        if handle not in self._entries:
            self._make_room()
        self._entries[handle] = _MemoryEntry(stored, self._clock() + ttl_s)

    def _make_room(self) -> None:
        if len(self._entries) + len(self._groups) < self._max_entries:
            return
        now = self._clock()
        self._entries = {handle: entry for handle, entry in self._entries.items() if entry.until > now}
        self._groups = {
            group: members
            for group, members in self._groups.items()
            if max(members.values(), default=0) > now
        }
        if len(self._entries) + len(self._groups) >= self._max_entries:
            raise SessionStoreError(
                f"the memory store holds {self._max_entries:,} sessions, its limit: use one that outlives "
                "the process, or raise max_entries="
            )
