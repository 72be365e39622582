"""A correct store, and stores with one fault each, which the contract must detect."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from tenfold.sessions.stores.store import StoredPayload


class Clock:
    """A clock that the checks' ``wait`` advances."""

    now = 1000.0

    async def wait(self, seconds: float) -> None:
        self.now += seconds
        await asyncio.sleep(0)


class CorrectStore:
    most = 1000

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.entries: dict[str, tuple[StoredPayload | None, float]] = {}
        self.groups: dict[str, dict[str, float]] = {}

    def live(self, handle: str) -> tuple[StoredPayload | None, float] | None:
        entry = self.entries.get(handle)
        return entry if entry and entry[1] > self.clock.now else None

    async def read(self, handle: str) -> StoredPayload | None:
        entry = self.live(handle)
        return entry[0] if entry else None

    async def read_many(self, handles: Sequence[str]) -> list[StoredPayload | None]:
        return [await self.read(handle) for handle in handles]

    async def create(self, handle: str, payload: bytes, *, ttl_s: float) -> bool:
        if self.live(handle):
            return False
        self.entries[handle] = StoredPayload(1, payload), self.clock.now + ttl_s
        return True

    async def replace(
        self, handle: str, payload: bytes, *, version: int, ttl_s: float
    ) -> bool | StoredPayload | None:
        entry = self.live(handle)
        if entry is None or entry[0] is None:
            return None
        if entry[0].version != version:
            return entry[0]
        self.entries[handle] = StoredPayload(version + 1, payload), self.clock.now + ttl_s
        return True

    async def revoke(self, handle: str, *, ttl_s: float) -> None:
        self.entries[handle] = None, self.clock.now + ttl_s

    async def add_member(
        self, group: str, handle: str, *, ttl_s: float, replacing: Sequence[str] = ()
    ) -> list[str]:
        members = self.groups.setdefault(group, {})
        for gone in replacing:
            members.pop(gone, None)
        if handle not in members and (surplus := len(members) + 1 - self.most) > 0:
            return sorted(members, key=members.__getitem__)[:surplus]
        members[handle] = max(members.get(handle, 0.0), self.clock.now + ttl_s)
        return []

    async def members(self, group: str) -> list[str]:
        return [handle for handle, until in self.groups.get(group, {}).items() if until > self.clock.now]

    async def aclose(self) -> None:
        pass


class Upserts(CorrectStore):
    async def replace(
        self, handle: str, payload: bytes, *, version: int, ttl_s: float
    ) -> bool | StoredPayload | None:
        entry = self.live(handle)
        if entry is None or entry[0] is None:
            return None
        self.entries[handle] = StoredPayload(entry[0].version + 1, payload), self.clock.now + ttl_s
        return True


class ComparesThenSets(CorrectStore):
    """As a GET and a SET do."""

    async def replace(
        self, handle: str, payload: bytes, *, version: int, ttl_s: float
    ) -> bool | StoredPayload | None:
        entry = self.live(handle)
        if entry is None or entry[0] is None or entry[0].version != version:
            return await super().replace(handle, payload, version=version, ttl_s=ttl_s)
        await asyncio.sleep(0)
        self.entries[handle] = StoredPayload(version + 1, payload), self.clock.now + ttl_s
        return True


class ChecksThenCreates(CorrectStore):
    async def create(self, handle: str, payload: bytes, *, ttl_s: float) -> bool:
        if self.live(handle):
            return False
        await asyncio.sleep(0)
        self.entries[handle] = StoredPayload(1, payload), self.clock.now + ttl_s
        return True


class HidesConflicts(CorrectStore):
    async def replace(
        self, handle: str, payload: bytes, *, version: int, ttl_s: float
    ) -> bool | StoredPayload | None:
        result = await super().replace(handle, payload, version=version, ttl_s=ttl_s)
        return None if isinstance(result, StoredPayload) else result


class ReplaceCreates(CorrectStore):
    async def replace(
        self, handle: str, payload: bytes, *, version: int, ttl_s: float
    ) -> bool | StoredPayload | None:
        if self.live(handle) is None:
            self.entries[handle] = StoredPayload(version + 1, payload), self.clock.now + ttl_s
            return True
        return await super().replace(handle, payload, version=version, ttl_s=ttl_s)


class CreateOverwrites(CorrectStore):
    async def create(self, handle: str, payload: bytes, *, ttl_s: float) -> bool:
        if (entry := self.live(handle)) and entry[0] is None:
            return False
        self.entries[handle] = StoredPayload(1, payload), self.clock.now + ttl_s
        return True


class NoTombstone(CorrectStore):
    async def revoke(self, handle: str, *, ttl_s: float) -> None:
        self.entries.pop(handle, None)


class TombstoneOnlyInPlace(CorrectStore):
    async def revoke(self, handle: str, *, ttl_s: float) -> None:
        if self.live(handle):
            await super().revoke(handle, ttl_s=ttl_s)


class TombstoneIgnoredByCreate(CorrectStore):
    async def create(self, handle: str, payload: bytes, *, ttl_s: float) -> bool:
        if (entry := self.live(handle)) and entry[0] is None:
            del self.entries[handle]
        return await super().create(handle, payload, ttl_s=ttl_s)


class TombstoneExpiresWithTheSession(CorrectStore):
    async def revoke(self, handle: str, *, ttl_s: float) -> None:
        entry = self.live(handle)
        self.entries[handle] = None, entry[1] if entry else self.clock.now + ttl_s


class TombstoneNeverExpires(CorrectStore):
    async def revoke(self, handle: str, *, ttl_s: float) -> None:
        self.entries[handle] = None, float("inf")


class RevocationLosesRaces(CorrectStore):
    """Checks the version, and then writes over whatever was written meanwhile."""

    async def replace(
        self, handle: str, payload: bytes, *, version: int, ttl_s: float
    ) -> bool | StoredPayload | None:
        result = await super().replace(handle, payload, version=version, ttl_s=ttl_s)
        if result is True:
            after = self.entries[handle]
            await asyncio.sleep(0.02)
            self.entries[handle] = after
        return result


class IgnoresLifetimes(CorrectStore):
    async def create(self, handle: str, payload: bytes, *, ttl_s: float) -> bool:
        return await super().create(handle, payload, ttl_s=1e9)


class NeverExtends(CorrectStore):
    async def replace(
        self, handle: str, payload: bytes, *, version: int, ttl_s: float
    ) -> bool | StoredPayload | None:
        until = self.entries.get(handle, (None, 0.0))[1]
        result = await super().replace(handle, payload, version=version, ttl_s=ttl_s)
        if result is True:
            self.entries[handle] = self.entries[handle][0], until
        return result


class StoresText(CorrectStore):
    async def create(self, handle: str, payload: bytes, *, ttl_s: float) -> bool:
        return await super().create(handle, payload.decode(errors="replace").encode(), ttl_s=ttl_s)


class StripsWrites(CorrectStore):
    async def replace(
        self, handle: str, payload: bytes, *, version: int, ttl_s: float
    ) -> bool | StoredPayload | None:
        return await super().replace(handle, payload.rstrip(b"\0"), version=version, ttl_s=ttl_s)


class CountsFromZero(CorrectStore):
    async def read(self, handle: str) -> StoredPayload | None:
        stored = await super().read(handle)
        return replace(stored, version=stored.version - 1) if stored else None


class ResetsTheVersion(CorrectStore):
    async def replace(
        self, handle: str, payload: bytes, *, version: int, ttl_s: float
    ) -> bool | StoredPayload | None:
        result = await super().replace(handle, payload, version=version, ttl_s=ttl_s)
        if result is True and version == 9:  # as versions that are compared as text would
            self.entries[handle] = StoredPayload(1, payload), self.clock.now + ttl_s
        return result


class SortsReadMany(CorrectStore):
    async def read_many(self, handles: Sequence[str]) -> list[StoredPayload | None]:
        return await super().read_many(sorted(handles))


class SkipsMissing(CorrectStore):
    async def read_many(self, handles: Sequence[str]) -> list[StoredPayload | None]:
        return [stored for stored in await super().read_many(handles) if stored]


class IgnoresCase(CorrectStore):
    async def read(self, handle: str) -> StoredPayload | None:
        return await super().read(handle.lower())

    async def create(self, handle: str, payload: bytes, *, ttl_s: float) -> bool:
        return await super().create(handle.lower(), payload, ttl_s=ttl_s)


class InventsSessions(CorrectStore):
    async def read(self, handle: str) -> StoredPayload | None:
        return await super().read(handle) or StoredPayload(1, b"")


class ExpiresAtOnce(CorrectStore):
    async def create(self, handle: str, payload: bytes, *, ttl_s: float) -> bool:
        return await super().create(handle, payload, ttl_s=0)


class ListsMembersTwice(CorrectStore):
    async def members(self, group: str) -> list[str]:
        return [handle for handle in await super().members(group) for _ in range(2)]


class SharesOneGroup(CorrectStore):
    async def add_member(
        self, group: str, handle: str, *, ttl_s: float, replacing: Sequence[str] = ()
    ) -> list[str]:
        return await super().add_member("", handle, ttl_s=ttl_s, replacing=replacing)

    async def members(self, group: str) -> list[str]:
        return await super().members("")


class SortsMembersByName(CorrectStore):
    async def members(self, group: str) -> list[str]:
        return sorted(await super().members(group))


class MembersNeverExpire(CorrectStore):
    async def add_member(
        self, group: str, handle: str, *, ttl_s: float, replacing: Sequence[str] = ()
    ) -> list[str]:
        return await super().add_member(group, handle, ttl_s=1e9, replacing=replacing)


class LastAddDecides(CorrectStore):
    async def add_member(
        self, group: str, handle: str, *, ttl_s: float, replacing: Sequence[str] = ()
    ) -> list[str]:
        self.groups.get(group, {}).pop(handle, None)
        return await super().add_member(group, handle, ttl_s=ttl_s, replacing=replacing)


class FirstAddDecides(CorrectStore):
    async def add_member(
        self, group: str, handle: str, *, ttl_s: float, replacing: Sequence[str] = ()
    ) -> list[str]:
        if handle in self.groups.get(group, {}):
            return []
        return await super().add_member(group, handle, ttl_s=ttl_s, replacing=replacing)


class UnboundedGroups(CorrectStore):
    most = 10**9


class FullGroupsLoseNewMembers(CorrectStore):
    async def add_member(
        self, group: str, handle: str, *, ttl_s: float, replacing: Sequence[str] = ()
    ) -> list[str]:
        await super().add_member(group, handle, ttl_s=ttl_s, replacing=replacing)
        return []


class FullGroupsDropMembers(CorrectStore):
    async def add_member(
        self, group: str, handle: str, *, ttl_s: float, replacing: Sequence[str] = ()
    ) -> list[str]:
        surplus = await super().add_member(group, handle, ttl_s=ttl_s, replacing=replacing)
        return surplus and await super().add_member(group, handle, ttl_s=ttl_s, replacing=surplus)


class IgnoresReplacing(CorrectStore):
    async def add_member(
        self, group: str, handle: str, *, ttl_s: float, replacing: Sequence[str] = ()
    ) -> list[str]:
        return await super().add_member(group, handle, ttl_s=ttl_s)


class GroupsAmongHandles(CorrectStore):
    async def add_member(
        self, group: str, handle: str, *, ttl_s: float, replacing: Sequence[str] = ()
    ) -> list[str]:
        self.entries[group] = None, self.clock.now + ttl_s
        return await super().add_member(group, handle, ttl_s=ttl_s, replacing=replacing)
