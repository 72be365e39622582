"""A store that is right, and stores that are wrong in one thing each: what the contract has to find."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace as changed

from tenfold.sessions.stores.store import StoredPayload


class Clock:
    """Turned by the checks' ``wait``."""

    now = 1000.0

    async def wait(self, seconds: float) -> None:
        self.now += seconds
        await asyncio.sleep(0)


class CorrectStore:
    most = 1000

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.kept: dict[str, tuple[StoredPayload | None, float]] = {}
        self.groups: dict[str, dict[str, float]] = {}

    def live(self, handle: str) -> tuple[StoredPayload | None, float] | None:
        entry = self.kept.get(handle)
        return entry if entry and entry[1] > self.clock.now else None

    async def read(self, handle: str) -> StoredPayload | None:
        entry = self.live(handle)
        return entry[0] if entry else None

    async def read_many(self, handles: Sequence[str]) -> list[StoredPayload | None]:
        return [await self.read(handle) for handle in handles]

    async def create(self, handle: str, payload: bytes, *, ttl_s: float) -> bool:
        if self.live(handle):
            return False
        self.kept[handle] = StoredPayload(1, payload), self.clock.now + ttl_s
        return True

    async def replace(
        self, handle: str, payload: bytes, *, version: int, ttl_s: float
    ) -> bool | StoredPayload | None:
        entry = self.live(handle)
        if entry is None or entry[0] is None:
            return None
        if entry[0].version != version:
            return entry[0]
        self.kept[handle] = StoredPayload(version + 1, payload), self.clock.now + ttl_s
        return True

    async def revoke(self, handle: str, *, ttl_s: float) -> None:
        self.kept[handle] = None, self.clock.now + ttl_s

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
        self.kept[handle] = StoredPayload(entry[0].version + 1, payload), self.clock.now + ttl_s
        return True


class ComparesThenSets(CorrectStore):
    """As a GET and a SET would."""

    async def replace(
        self, handle: str, payload: bytes, *, version: int, ttl_s: float
    ) -> bool | StoredPayload | None:
        entry = self.live(handle)
        if entry is None or entry[0] is None or entry[0].version != version:
            return await super().replace(handle, payload, version=version, ttl_s=ttl_s)
        await asyncio.sleep(0)
        self.kept[handle] = StoredPayload(version + 1, payload), self.clock.now + ttl_s
        return True


class ChecksThenCreates(CorrectStore):
    async def create(self, handle: str, payload: bytes, *, ttl_s: float) -> bool:
        if self.live(handle):
            return False
        await asyncio.sleep(0)
        self.kept[handle] = StoredPayload(1, payload), self.clock.now + ttl_s
        return True


class HidesConflicts(CorrectStore):
    async def replace(
        self, handle: str, payload: bytes, *, version: int, ttl_s: float
    ) -> bool | StoredPayload | None:
        told = await super().replace(handle, payload, version=version, ttl_s=ttl_s)
        return None if isinstance(told, StoredPayload) else told


class ReplaceCreates(CorrectStore):
    async def replace(
        self, handle: str, payload: bytes, *, version: int, ttl_s: float
    ) -> bool | StoredPayload | None:
        if self.live(handle) is None:
            self.kept[handle] = StoredPayload(version + 1, payload), self.clock.now + ttl_s
            return True
        return await super().replace(handle, payload, version=version, ttl_s=ttl_s)


class CreateOverwrites(CorrectStore):
    async def create(self, handle: str, payload: bytes, *, ttl_s: float) -> bool:
        if (entry := self.live(handle)) and entry[0] is None:
            return False
        self.kept[handle] = StoredPayload(1, payload), self.clock.now + ttl_s
        return True


class NoTombstone(CorrectStore):
    async def revoke(self, handle: str, *, ttl_s: float) -> None:
        self.kept.pop(handle, None)


class TombstoneOnlyInPlace(CorrectStore):
    async def revoke(self, handle: str, *, ttl_s: float) -> None:
        if self.live(handle):
            await super().revoke(handle, ttl_s=ttl_s)


class TombstoneIgnoredByCreate(CorrectStore):
    async def create(self, handle: str, payload: bytes, *, ttl_s: float) -> bool:
        if (entry := self.live(handle)) and entry[0] is None:
            del self.kept[handle]
        return await super().create(handle, payload, ttl_s=ttl_s)


class TombstoneExpiresWithTheSession(CorrectStore):
    async def revoke(self, handle: str, *, ttl_s: float) -> None:
        entry = self.live(handle)
        self.kept[handle] = None, entry[1] if entry else self.clock.now + ttl_s


class TombstoneNeverExpires(CorrectStore):
    async def revoke(self, handle: str, *, ttl_s: float) -> None:
        self.kept[handle] = None, float("inf")


class RevocationLosesRaces(CorrectStore):
    """The version is checked, and then written whatever came meanwhile."""

    async def replace(
        self, handle: str, payload: bytes, *, version: int, ttl_s: float
    ) -> bool | StoredPayload | None:
        told = await super().replace(handle, payload, version=version, ttl_s=ttl_s)
        if told is True:
            after = self.kept[handle]
            await asyncio.sleep(0.02)
            self.kept[handle] = after
        return told


class IgnoresLifetimes(CorrectStore):
    async def create(self, handle: str, payload: bytes, *, ttl_s: float) -> bool:
        return await super().create(handle, payload, ttl_s=1e9)


class NeverExtends(CorrectStore):
    async def replace(
        self, handle: str, payload: bytes, *, version: int, ttl_s: float
    ) -> bool | StoredPayload | None:
        until = self.kept.get(handle, (None, 0.0))[1]
        told = await super().replace(handle, payload, version=version, ttl_s=ttl_s)
        if told is True:
            self.kept[handle] = self.kept[handle][0], until
        return told


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
        kept = await super().read(handle)
        return changed(kept, version=kept.version - 1) if kept else None


class ResetsTheVersion(CorrectStore):
    async def replace(
        self, handle: str, payload: bytes, *, version: int, ttl_s: float
    ) -> bool | StoredPayload | None:
        told = await super().replace(handle, payload, version=version, ttl_s=ttl_s)
        if told is True and version == 9:  # as one who keeps versions as text might
            self.kept[handle] = StoredPayload(1, payload), self.clock.now + ttl_s
        return told


class SortsReadMany(CorrectStore):
    async def read_many(self, handles: Sequence[str]) -> list[StoredPayload | None]:
        return await super().read_many(sorted(handles))


class SkipsMissing(CorrectStore):
    async def read_many(self, handles: Sequence[str]) -> list[StoredPayload | None]:
        return [kept for kept in await super().read_many(handles) if kept]


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
        self.kept[group] = None, self.clock.now + ttl_s
        return await super().add_member(group, handle, ttl_s=ttl_s, replacing=replacing)
