"""What every session store has to do, as checks to run against yours, with pytest or without.

    import asyncio
    import pytest
    from tenfold.sessions.stores.contract import CHECKS

    @pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
    def test_my_store(check):
        async def run():
            store = MyStore()
            try:
                await check(store, asyncio.sleep)
            finally:
                await store.aclose()

        asyncio.run(run())

Each check takes a store and how to let seconds pass (for a store whose clock is given, whatever turns it),
makes handles nobody had before, and raises AssertionError with a sentence about what went wrong.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable

from tenfold.sessions.stores.store import Store, Stored

__all__ = ["CHECKS", "Check", "Wait"]

Wait = Callable[[float], Awaitable[None]]
Check = Callable[[Store, Wait], Awaitable[None]]

LONG_S = 60.0
SHORT_S = 0.5  # a store that is slower than this between two calls fails for that alone
WRITERS, WRITES, PATIENCE = 8, 5, 1000
MOST_MEMBERS = 1000


def _handle() -> str:
    return secrets.token_urlsafe(24)


def _expect(holds: object, sentence: str) -> None:
    if not holds:
        raise AssertionError(sentence)


# ------------------------------------------------------------------ reading and writing


async def unknown_handles_are_nothing(store: Store, wait: Wait) -> None:
    handle = _handle()
    _expect(await store.read(handle) is None, "a handle that was never written is read as something")
    _expect(await store.read_many([handle]) == [None], "read_many finds what was never written")
    _expect(await store.read_many([]) == [], "read_many of nothing is not an empty list")


async def what_was_created_is_read(store: Store, wait: Wait) -> None:
    handle = _handle()
    _expect(await store.create(handle, b"first", ttl_s=LONG_S) is True, "create did not answer True")
    _expect(await store.read(handle) == Stored(1, b"first"), "what was created is not read back as version 1")


async def payloads_are_bytes(store: Store, wait: Wait) -> None:
    for payload in (b"", b"\0", b"\x01" * 40, bytes(range(256)), b'{"a": "\xc3\xa4"}\r\n', bytes(65_536)):
        handle = _handle()
        await store.create(handle, payload, ttl_s=LONG_S)
        kept = await store.read(handle)
        _expect(kept and kept.payload == payload, f"{len(payload)} bytes did not come back as they were")
        await store.replace(handle, payload + b"\0", version=1, ttl_s=LONG_S)
        kept = await store.read(handle)
        _expect(kept and kept.payload == payload + b"\0", f"{len(payload) + 1} bytes did not come back")


async def a_second_create_is_refused(store: Store, wait: Wait) -> None:
    handle = _handle()
    await store.create(handle, b"first", ttl_s=LONG_S)
    _expect(await store.create(handle, b"second", ttl_s=LONG_S) is False, "a second create was not refused")
    _expect(await store.read(handle) == Stored(1, b"first"), "a second create changed what was there")


async def one_of_many_creates_wins(store: Store, wait: Wait) -> None:
    handle = _handle()
    payloads = [bytes([number]) for number in range(WRITERS)]
    won = await asyncio.gather(*(store.create(handle, payload, ttl_s=LONG_S) for payload in payloads))
    _expect(won.count(True) == 1, f"{won.count(True)} of {WRITERS} creates at once believe to have won")
    kept = await store.read(handle)
    _expect(kept == Stored(1, payloads[won.index(True)]), "the create that won is not the one that is kept")


async def a_write_counts_the_version(store: Store, wait: Wait) -> None:
    handle = _handle()
    await store.create(handle, b"1", ttl_s=LONG_S)
    for version in range(1, 12):
        written = await store.replace(handle, b"%d" % (version + 1), version=version, ttl_s=LONG_S)
        _expect(written is True, f"replace of version {version} did not answer True")
    _expect(await store.read(handle) == Stored(12, b"12"), "eleven writes do not end at version 12")


async def a_late_write_is_told_what_is_kept(store: Store, wait: Wait) -> None:
    handle = _handle()
    await store.create(handle, b"1", ttl_s=LONG_S)
    await store.replace(handle, b"2", version=1, ttl_s=LONG_S)
    for version in (1, 3):
        told = await store.replace(handle, b"late", version=version, ttl_s=LONG_S)
        _expect(told == Stored(2, b"2"), f"replace of version {version} is not told that 2 is kept")
    _expect(await store.read(handle) == Stored(2, b"2"), "a write on another version was not refused")


async def a_write_never_creates(store: Store, wait: Wait) -> None:
    handle = _handle()
    for version in (0, 1):
        told = await store.replace(handle, b"planted", version=version, ttl_s=LONG_S)
        _expect(told is None, "replace of a handle that is not there did not answer None")
    _expect(await store.read(handle) is None, "replace adopted a handle that nobody had created")


async def no_write_is_lost(store: Store, wait: Wait) -> None:
    handle = _handle()
    await store.create(handle, b"0", ttl_s=LONG_S)

    async def count() -> None:
        for _ in range(WRITES):
            kept: bool | Stored | None = await store.read(handle)
            for _ in range(PATIENCE):
                if not isinstance(kept, Stored):
                    break
                await asyncio.sleep(0)  # so that others come between also where there is no network
                payload = b"%d" % (int(kept.payload) + 1)
                kept = await store.replace(handle, payload, version=kept.version, ttl_s=LONG_S)
            _expect(kept is True, "a write never succeeded, or its session vanished meanwhile")

    await asyncio.gather(*(count() for _ in range(WRITERS)))
    total = WRITERS * WRITES
    kept = await store.read(handle)
    _expect(
        kept and int(kept.payload) == total, f"{kept} is kept after {total} increments by {WRITERS} at once"
    )


async def many_are_read_in_order(store: Store, wait: Wait) -> None:
    handles = [_handle() for _ in range(20)]
    for number, handle in enumerate(handles):
        if number % 3:
            await store.create(handle, b"%d" % number, ttl_s=LONG_S)
    asked = [*reversed(handles), handles[1]]
    expected = [await store.read(handle) for handle in asked]
    _expect(await store.read_many(asked) == expected, "read_many is not what read finds, in the order asked")


async def handles_do_not_mix(store: Store, wait: Wait) -> None:
    stem = secrets.token_hex(16)
    handles = [stem + end for end in ("", "a", "A", "-", "_", "a" * 32, "a" * 31 + "b", "A" * 32)]
    for number, handle in enumerate(handles):
        _expect(await store.create(handle, b"%d" % number, ttl_s=LONG_S), f"{handle} is taken for another")
    for number, handle in enumerate(handles):
        _expect(await store.read(handle) == Stored(1, b"%d" % number), f"{handle} is mixed up with another")


# ------------------------------------------------------------------ lifetimes


async def a_payload_expires(store: Store, wait: Wait) -> None:
    handle = _handle()
    await store.create(handle, b"1", ttl_s=SHORT_S)
    await wait(SHORT_S + 0.1)
    _expect(await store.read(handle) is None, "a payload is read after its lifetime")
    _expect(await store.read_many([handle]) == [None], "read_many finds a payload after its lifetime")
    told = await store.replace(handle, b"2", version=1, ttl_s=LONG_S)
    _expect(told is None, "a write brought back what had expired")
    _expect(await store.create(handle, b"3", ttl_s=LONG_S), "what has expired is in the way of a create")
    _expect(await store.read(handle) == Stored(1, b"3"), "a create after an expiry is not version 1")


async def a_write_sets_the_lifetime(store: Store, wait: Wait) -> None:
    longer, shorter = _handle(), _handle()
    await store.create(longer, b"1", ttl_s=SHORT_S)
    await store.replace(longer, b"2", version=1, ttl_s=LONG_S)
    await store.create(shorter, b"1", ttl_s=LONG_S)
    await store.replace(shorter, b"2", version=1, ttl_s=SHORT_S)
    await wait(SHORT_S + 0.1)
    _expect(await store.read(longer) == Stored(2, b"2"), "a write did not prolong the lifetime")
    _expect(await store.read(shorter) is None, "a write did not shorten the lifetime")


# ------------------------------------------------------------------ revocation


async def what_was_revoked_stays_gone(store: Store, wait: Wait) -> None:
    handle = _handle()
    await store.create(handle, b"1", ttl_s=LONG_S)
    await store.revoke(handle, ttl_s=LONG_S)
    await store.revoke(handle, ttl_s=LONG_S)
    _expect(await store.read(handle) is None, "a revoked session is read")
    _expect(await store.read_many([handle]) == [None], "read_many finds a revoked session")
    for version in (0, 1, 2):
        told = await store.replace(handle, b"late", version=version, ttl_s=LONG_S)
        _expect(told is None, "a late write to a revoked session did not answer None")
    _expect(not await store.create(handle, b"again", ttl_s=LONG_S), "a revoked handle was created again")
    _expect(await store.read(handle) is None, "a late write brought a revoked session back")


async def a_handle_can_be_revoked_before_it_is_created(store: Store, wait: Wait) -> None:
    handle = _handle()
    await store.revoke(handle, ttl_s=LONG_S)
    _expect(not await store.create(handle, b"1", ttl_s=LONG_S), "a create went past a tombstone")
    _expect(await store.read(handle) is None, "a session that was revoked first is read")


async def revocation_wins_every_race(store: Store, wait: Wait) -> None:
    handle = _handle()
    await store.create(handle, b"0", ttl_s=LONG_S)
    revoked = False

    async def write() -> None:
        for _ in range(PATIENCE):
            if (kept := await store.read(handle)) is None:
                return
            known = revoked
            written = await store.replace(handle, b"late", version=kept.version, ttl_s=LONG_S)
            _expect(not (known and written is True), "a write began after a revocation and was accepted")
            await asyncio.sleep(0)

    async def revoke() -> None:
        nonlocal revoked
        await store.revoke(handle, ttl_s=LONG_S)
        revoked = True

    writers = [asyncio.ensure_future(write()) for _ in range(WRITERS)]
    await asyncio.sleep(0.01)
    await asyncio.gather(revoke(), *writers)
    _expect(await store.read(handle) is None, "a write that raced with a revocation brought the session back")


async def a_tombstone_lasts_as_long_as_it_was_told(store: Store, wait: Wait) -> None:
    handle = _handle()
    await store.create(handle, b"1", ttl_s=SHORT_S)
    await store.revoke(handle, ttl_s=3 * SHORT_S)
    await wait(SHORT_S + 0.1)
    _expect(
        not await store.create(handle, b"2", ttl_s=LONG_S), "a tombstone went with the session it replaced"
    )
    await wait(2 * SHORT_S + 0.1)
    _expect(await store.create(handle, b"3", ttl_s=LONG_S), "a tombstone is kept beyond its time")


# ------------------------------------------------------------------ groups


async def a_group_names_its_members(store: Store, wait: Wait) -> None:
    group, other, handles = _handle(), _handle(), [_handle() for _ in range(3)]
    _expect(await store.members(group) == [], "a group that nobody is in has members")
    for handle in (*handles, handles[0]):
        await store.enlist(group, handle, ttl_s=LONG_S)
    await store.enlist(other, handles[1], ttl_s=LONG_S)
    _expect(sorted(await store.members(group)) == sorted(handles), "a group does not name each member once")
    _expect(await store.members(other) == [handles[1]], "two groups are mixed up")


async def members_come_oldest_first(store: Store, wait: Wait) -> None:
    group, handles = _handle(), sorted((_handle() for _ in range(5)), reverse=True)
    for handle in handles:
        await store.enlist(group, handle, ttl_s=LONG_S)
        await wait(0.02)
    _expect(await store.members(group) == handles, "members of equal lifetimes do not come oldest first")


async def a_membership_expires(store: Store, wait: Wait) -> None:
    group, long, short, renewed = (_handle() for _ in range(4))
    await store.enlist(group, long, ttl_s=LONG_S)
    await store.enlist(group, long, ttl_s=SHORT_S)
    await store.enlist(group, renewed, ttl_s=SHORT_S)
    await store.enlist(group, renewed, ttl_s=LONG_S)
    await store.enlist(group, short, ttl_s=SHORT_S)
    await wait(SHORT_S + 0.1)
    found = await store.members(group)
    _expect(short not in found, "a membership is named after its time")
    _expect(long in found, "a second, shorter enlisting cut the first one short")
    _expect(renewed in found, "a second, longer enlisting did not prolong the first one")


async def a_group_is_bounded(store: Store, wait: Wait) -> None:
    group = _handle()
    handles = [_handle() for _ in range(MOST_MEMBERS + 1)]
    first, last = handles[0], handles[-1]
    _expect(await store.enlist(group, first, ttl_s=LONG_S - 1) == [], "an empty group takes nobody")
    for at in range(1, MOST_MEMBERS, 50):
        some = handles[at : min(at + 50, MOST_MEMBERS)]
        await asyncio.gather(*(store.enlist(group, handle, ttl_s=LONG_S) for handle in some))
    surplus = await store.enlist(group, last, ttl_s=LONG_S)
    _expect(surplus == [first], "a full group does not answer who has to go first")
    _expect(first in await store.members(group), "a full group forgets a member that nobody revoked yet")
    _expect(last not in await store.members(group), f"a group has more than {MOST_MEMBERS:,} members")
    again = await store.enlist(group, handles[1], ttl_s=LONG_S)
    _expect(again == [], "a full group takes a member of its own for a new one")
    _expect(await store.enlist(group, last, ttl_s=LONG_S, instead_of=surplus) == [], "nobody can be replaced")
    found = await store.members(group)
    _expect(last in found and first not in found, "the one that has to go did not make room for the new one")


async def groups_and_handles_do_not_mix(store: Store, wait: Wait) -> None:
    name, handle = _handle(), _handle()
    await store.enlist(name, handle, ttl_s=LONG_S)
    _expect(await store.create(name, b"1", ttl_s=LONG_S), "a group is in the way of a handle of its name")
    _expect(await store.members(name) == [handle], "a handle is taken for a group of its name")


CHECKS: tuple[Check, ...] = (
    unknown_handles_are_nothing,
    what_was_created_is_read,
    payloads_are_bytes,
    a_second_create_is_refused,
    one_of_many_creates_wins,
    a_write_counts_the_version,
    a_late_write_is_told_what_is_kept,
    a_write_never_creates,
    no_write_is_lost,
    many_are_read_in_order,
    handles_do_not_mix,
    a_payload_expires,
    a_write_sets_the_lifetime,
    what_was_revoked_stays_gone,
    a_handle_can_be_revoked_before_it_is_created,
    revocation_wins_every_race,
    a_tombstone_lasts_as_long_as_it_was_told,
    a_group_names_its_members,
    members_come_oldest_first,
    a_membership_expires,
    a_group_is_bounded,
    groups_and_handles_do_not_mix,
)
