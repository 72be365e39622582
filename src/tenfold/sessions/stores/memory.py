"""A store in this process's memory: for tests and for one instance, gone with the process."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tenfold.errors import SessionStoreError
from tenfold.sessions.stores.store import Stored

__all__ = ["MemoryStore"]

MOST_MEMBERS = 1000


@dataclass(slots=True)
class _Entry:
    stored: Stored | None  # None is a tombstone
    until: float


class MemoryStore:
    """A :class:`tenfold.sessions.stores.store.Store` of dicts. Use from one event loop.

    Args:
        most: handles and groups kept at most; beyond, writes raise SessionStoreError.
        clock: seconds that only grow.
    """

    def __init__(self, *, most: int = 100_000, clock: Callable[[], float] = time.monotonic) -> None:
        self._most = most
        self._clock = clock
        self._entries: dict[str, _Entry] = {}
        self._groups: dict[str, dict[str, float]] = {}

    async def read(self, handle: str) -> Stored | None:
        entry = self._live(handle)
        return entry.stored if entry else None

    async def read_many(self, handles: Sequence[str]) -> list[Stored | None]:
        return [await self.read(handle) for handle in handles]

    async def create(self, handle: str, payload: bytes, *, ttl_s: float) -> bool:
        if self._live(handle) is not None:
            return False
        self._put(handle, Stored(1, payload), ttl_s)
        return True

    async def replace(
        self, handle: str, payload: bytes, *, version: int, ttl_s: float
    ) -> bool | Stored | None:
        entry = self._live(handle)
        if entry is None or entry.stored is None:
            return None
        if entry.stored.version != version:
            return entry.stored
        self._put(handle, Stored(version + 1, payload), ttl_s)
        return True

    async def revoke(self, handle: str, *, ttl_s: float) -> None:
        self._put(handle, None, ttl_s)

    async def enlist(
        self, group: str, handle: str, *, ttl_s: float, instead_of: Sequence[str] = ()
    ) -> list[str]:
        if group not in self._groups:
            self._make_room()
        members = self._groups.setdefault(group, {})
        over = [name for name, until in members.items() if until <= self._clock()]
        for gone in (*over, *instead_of):
            members.pop(gone, None)
        if handle not in members and (surplus := len(members) + 1 - MOST_MEMBERS) > 0:
            return sorted(members, key=members.__getitem__)[:surplus]
        members[handle] = max(members.get(handle, 0.0), self._clock() + ttl_s)
        return []

    async def members(self, group: str) -> list[str]:
        now = self._clock()
        return [handle for handle, until in self._groups.get(group, {}).items() if until > now]

    async def aclose(self) -> None:
        """Nothing was opened; what is kept stays."""

    def _live(self, handle: str) -> _Entry | None:
        entry = self._entries.get(handle)
        return entry if entry and entry.until > self._clock() else None

    def _put(self, handle: str, stored: Stored | None, ttl_s: float) -> None:
        if handle not in self._entries:
            self._make_room()
        self._entries[handle] = _Entry(stored, self._clock() + ttl_s)

    def _make_room(self) -> None:
        if len(self._entries) + len(self._groups) < self._most:
            return
        now = self._clock()
        self._entries = {handle: entry for handle, entry in self._entries.items() if entry.until > now}
        self._groups = {
            group: members
            for group, members in self._groups.items()
            if max(members.values(), default=0) > now
        }
        if len(self._entries) + len(self._groups) >= self._most:
            raise SessionStoreError(
                f"the memory store holds {self._most:,} sessions, as many as it may: use one that outlives "
                "the process, or raise most="
            )
