"""A store that is right, and stores that are wrong in one thing each: what the contract has to find."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace as changed

from tenfold.sessions.stores.store import Stored


class Clock:
    """Turned by the checks' ``wait``."""

    now = 1000.0

    async def wait(self, seconds: float) -> None:
        self.now += seconds
        await asyncio.sleep(0)


class Right:
    most = 1000

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.kept: dict[str, tuple[Stored | None, float]] = {}
        self.groups: dict[str, dict[str, float]] = {}

    def live(self, handle: str) -> tuple[Stored | None, float] | None:
        entry = self.kept.get(handle)
        return entry if entry and entry[1] > self.clock.now else None

    async def read(self, handle: str) -> Stored | None:
        entry = self.live(handle)
        return entry[0] if entry else None

    async def read_many(self, handles: Sequence[str]) -> list[Stored | None]:
        return [await self.read(handle) for handle in handles]

    async def create(self, handle: str, payload: bytes, *, ttl_s: float) -> bool:
        if self.live(handle):
            return False
        self.kept[handle] = Stored(1, payload), self.clock.now + ttl_s
        return True

    async def replace(
        self, handle: str, payload: bytes, *, version: int, ttl_s: float
    ) -> bool | Stored | None:
        entry = self.live(handle)
        if entry is None or entry[0] is None:
            return None
        if entry[0].version != version:
            return entry[0]
        self.kept[handle] = Stored(version + 1, payload), self.clock.now + ttl_s
        return True

    async def revoke(self, handle: str, *, ttl_s: float) -> None:
        self.kept[handle] = None, self.clock.now + ttl_s

    async def enlist(
        self, group: str, handle: str, *, ttl_s: float, instead_of: Sequence[str] = ()
    ) -> list[str]:
        members = self.groups.setdefault(group, {})
        for gone in instead_of:
            members.pop(gone, None)
        if handle not in members and (surplus := len(members) + 1 - self.most) > 0:
            return sorted(members, key=members.__getitem__)[:surplus]
        members[handle] = max(members.get(handle, 0.0), self.clock.now + ttl_s)
        return []

    async def members(self, group: str) -> list[str]:
        return [handle for handle, until in self.groups.get(group, {}).items() if until > self.clock.now]

    async def aclose(self) -> None:
        pass


class Upserts(Right):
    async def replace(
        self, handle: str, payload: bytes, *, version: int, ttl_s: float
    ) -> bool | Stored | None:
        entry = self.live(handle)
        if entry is None or entry[0] is None:
            return None
        self.kept[handle] = Stored(entry[0].version + 1, payload), self.clock.now + ttl_s
        return True


class ComparesThenSets(Right):
    """As a GET and a SET would."""

    async def replace(
        self, handle: str, payload: bytes, *, version: int, ttl_s: float
    ) -> bool | Stored | None:
        entry = self.live(handle)
        if entry is None or entry[0] is None or entry[0].version != version:
            return await super().replace(handle, payload, version=version, ttl_s=ttl_s)
        await asyncio.sleep(0)
        self.kept[handle] = Stored(version + 1, payload), self.clock.now + ttl_s
        return True


class LooksThenCreates(Right):
    async def create(self, handle: str, payload: bytes, *, ttl_s: float) -> bool:
        if self.live(handle):
            return False
        await asyncio.sleep(0)
        self.kept[handle] = Stored(1, payload), self.clock.now + ttl_s
        return True


class RefusesSilently(Right):
    async def replace(
        self, handle: str, payload: bytes, *, version: int, ttl_s: float
    ) -> bool | Stored | None:
        told = await super().replace(handle, payload, version=version, ttl_s=ttl_s)
        return None if isinstance(told, Stored) else told


class Adopts(Right):
    async def replace(
        self, handle: str, payload: bytes, *, version: int, ttl_s: float
    ) -> bool | Stored | None:
        if self.live(handle) is None:
            self.kept[handle] = Stored(version + 1, payload), self.clock.now + ttl_s
            return True
        return await super().replace(handle, payload, version=version, ttl_s=ttl_s)


class Overwrites(Right):
    async def create(self, handle: str, payload: bytes, *, ttl_s: float) -> bool:
        if (entry := self.live(handle)) and entry[0] is None:
            return False
        self.kept[handle] = Stored(1, payload), self.clock.now + ttl_s
        return True


class NoTombstone(Right):
    async def revoke(self, handle: str, *, ttl_s: float) -> None:
        self.kept.pop(handle, None)


class TombstoneOnlyInPlace(Right):
    async def revoke(self, handle: str, *, ttl_s: float) -> None:
        if self.live(handle):
            await super().revoke(handle, ttl_s=ttl_s)


class TombstoneIgnoredByCreate(Right):
    async def create(self, handle: str, payload: bytes, *, ttl_s: float) -> bool:
        if (entry := self.live(handle)) and entry[0] is None:
            del self.kept[handle]
        return await super().create(handle, payload, ttl_s=ttl_s)


class TombstoneGoesWithTheSession(Right):
    async def revoke(self, handle: str, *, ttl_s: float) -> None:
        entry = self.live(handle)
        self.kept[handle] = None, entry[1] if entry else self.clock.now + ttl_s


class TombstoneStays(Right):
    async def revoke(self, handle: str, *, ttl_s: float) -> None:
        self.kept[handle] = None, float("inf")


class RevocationLosesRaces(Right):
    """The version is checked, and then written whatever came meanwhile."""

    async def replace(
        self, handle: str, payload: bytes, *, version: int, ttl_s: float
    ) -> bool | Stored | None:
        told = await super().replace(handle, payload, version=version, ttl_s=ttl_s)
        if told is True:
            after = self.kept[handle]
            await asyncio.sleep(0.02)
            self.kept[handle] = after
        return told


class ForgetsLifetimes(Right):
    async def create(self, handle: str, payload: bytes, *, ttl_s: float) -> bool:
        return await super().create(handle, payload, ttl_s=1e9)


class NeverProlongs(Right):
    async def replace(
        self, handle: str, payload: bytes, *, version: int, ttl_s: float
    ) -> bool | Stored | None:
        until = self.kept.get(handle, (None, 0.0))[1]
        told = await super().replace(handle, payload, version=version, ttl_s=ttl_s)
        if told is True:
            self.kept[handle] = self.kept[handle][0], until
        return told


class KeepsText(Right):
    async def create(self, handle: str, payload: bytes, *, ttl_s: float) -> bool:
        return await super().create(handle, payload.decode(errors="replace").encode(), ttl_s=ttl_s)


class StripsWrites(Right):
    async def replace(
        self, handle: str, payload: bytes, *, version: int, ttl_s: float
    ) -> bool | Stored | None:
        return await super().replace(handle, payload.rstrip(b"\0"), version=version, ttl_s=ttl_s)


class CountsFromZero(Right):
    async def read(self, handle: str) -> Stored | None:
        kept = await super().read(handle)
        return changed(kept, version=kept.version - 1) if kept else None


class StopsCounting(Right):
    async def replace(
        self, handle: str, payload: bytes, *, version: int, ttl_s: float
    ) -> bool | Stored | None:
        told = await super().replace(handle, payload, version=version, ttl_s=ttl_s)
        if told is True and version == 9:  # as one who keeps versions as text might
            self.kept[handle] = Stored(1, payload), self.clock.now + ttl_s
        return told


class SortsMany(Right):
    async def read_many(self, handles: Sequence[str]) -> list[Stored | None]:
        return await super().read_many(sorted(handles))


class SkipsTheMissing(Right):
    async def read_many(self, handles: Sequence[str]) -> list[Stored | None]:
        return [kept for kept in await super().read_many(handles) if kept]


class IgnoresCase(Right):
    async def read(self, handle: str) -> Stored | None:
        return await super().read(handle.lower())

    async def create(self, handle: str, payload: bytes, *, ttl_s: float) -> bool:
        return await super().create(handle.lower(), payload, ttl_s=ttl_s)


class InventsSessions(Right):
    async def read(self, handle: str) -> Stored | None:
        return await super().read(handle) or Stored(1, b"")


class ForgetsAtOnce(Right):
    async def create(self, handle: str, payload: bytes, *, ttl_s: float) -> bool:
        return await super().create(handle, payload, ttl_s=0)


class NamesMembersTwice(Right):
    async def members(self, group: str) -> list[str]:
        return [handle for handle in await super().members(group) for _ in range(2)]


class OneGroupForAll(Right):
    async def enlist(
        self, group: str, handle: str, *, ttl_s: float, instead_of: Sequence[str] = ()
    ) -> list[str]:
        return await super().enlist("", handle, ttl_s=ttl_s, instead_of=instead_of)

    async def members(self, group: str) -> list[str]:
        return await super().members("")


class SortsMembersByName(Right):
    async def members(self, group: str) -> list[str]:
        return sorted(await super().members(group))


class MembersForEver(Right):
    async def enlist(
        self, group: str, handle: str, *, ttl_s: float, instead_of: Sequence[str] = ()
    ) -> list[str]:
        return await super().enlist(group, handle, ttl_s=1e9, instead_of=instead_of)


class LastEnlistingDecides(Right):
    async def enlist(
        self, group: str, handle: str, *, ttl_s: float, instead_of: Sequence[str] = ()
    ) -> list[str]:
        self.groups.get(group, {}).pop(handle, None)
        return await super().enlist(group, handle, ttl_s=ttl_s, instead_of=instead_of)


class FirstEnlistingDecides(Right):
    async def enlist(
        self, group: str, handle: str, *, ttl_s: float, instead_of: Sequence[str] = ()
    ) -> list[str]:
        if handle in self.groups.get(group, {}):
            return []
        return await super().enlist(group, handle, ttl_s=ttl_s, instead_of=instead_of)


class GroupsWithoutEnd(Right):
    most = 10**9


class FullGroupsTakeNobody(Right):
    async def enlist(
        self, group: str, handle: str, *, ttl_s: float, instead_of: Sequence[str] = ()
    ) -> list[str]:
        await super().enlist(group, handle, ttl_s=ttl_s, instead_of=instead_of)
        return []


class FullGroupsForget(Right):
    async def enlist(
        self, group: str, handle: str, *, ttl_s: float, instead_of: Sequence[str] = ()
    ) -> list[str]:
        surplus = await super().enlist(group, handle, ttl_s=ttl_s, instead_of=instead_of)
        return surplus and await super().enlist(group, handle, ttl_s=ttl_s, instead_of=surplus)


class NobodyLeaves(Right):
    async def enlist(
        self, group: str, handle: str, *, ttl_s: float, instead_of: Sequence[str] = ()
    ) -> list[str]:
        return await super().enlist(group, handle, ttl_s=ttl_s)


class GroupsAmongHandles(Right):
    async def enlist(
        self, group: str, handle: str, *, ttl_s: float, instead_of: Sequence[str] = ()
    ) -> list[str]:
        self.kept[group] = None, self.clock.now + ttl_s
        return await super().enlist(group, handle, ttl_s=ttl_s, instead_of=instead_of)
