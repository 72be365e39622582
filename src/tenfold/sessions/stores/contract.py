"""The contract of session stores, as checks to run against yours, with pytest or without.

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

Each check takes a store and a function that lets seconds pass (for a store with a fake clock: that advances
it), makes new handles, and raises AssertionError with a sentence about the violation.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable

from tenfold.sessions.stores.store import Store, StoredPayload

__all__ = ["CHECKS", "StoreCheck", "Wait"]

Wait = Callable[[float], Awaitable[None]]
StoreCheck = Callable[[Store, Wait], Awaitable[None]]

LONG_S = 60.0
SHORT_S = 1.0  # a store that is slower than this between two calls fails for that alone
WRITERS, WRITES, MAX_ATTEMPTS = 8, 5, 1000
MAX_MEMBERS = 1000


def _handle() -> str:
    return secrets.token_urlsafe(24)


def _expect(holds: object, sentence: str) -> None:
    if not holds:
        raise AssertionError(sentence)


# ------------------------------------------------------------------ reading and writing


async def unknown_handle_reads_as_none(store: Store, wait: Wait) -> None:
    handle = _handle()
    _expect(await store.read(handle) is None, "read returns something for a handle that was never written")
    _expect(
        await store.read_many([handle]) == [None],
        "read_many returns something for a handle that was never written",
    )
    _expect(await store.read_many([]) == [], "read_many of nothing is not an empty list")


async def created_payload_is_read_as_version_1(store: Store, wait: Wait) -> None:
    handle = _handle()
    _expect(await store.create(handle, b"first", ttl_s=LONG_S) is True, "create did not return True")
    _expect(
        await store.read(handle) == StoredPayload(1, b"first"),
        "a created payload is not read back as version 1",
    )


async def payloads_are_preserved_byte_for_byte(store: Store, wait: Wait) -> None:
    for payload in (b"", b"\0", b"\x01" * 40, bytes(range(256)), b'{"a": "\xc3\xa4"}\r\n', bytes(65_536)):
        handle = _handle()
        await store.create(handle, payload, ttl_s=LONG_S)
        stored = await store.read(handle)
        _expect(stored and stored.payload == payload, f"{len(payload)} bytes did not come back as they were")
        await store.replace(handle, payload + b"\0", version=1, ttl_s=LONG_S)
        stored = await store.read(handle)
        _expect(stored and stored.payload == payload + b"\0", f"{len(payload) + 1} bytes did not come back")


async def second_create_is_refused(store: Store, wait: Wait) -> None:
    handle = _handle()
    await store.create(handle, b"first", ttl_s=LONG_S)
    _expect(await store.create(handle, b"second", ttl_s=LONG_S) is False, "a second create was not refused")
    _expect(await store.read(handle) == StoredPayload(1, b"first"), "a second create changed what was there")


async def one_of_concurrent_creates_wins(store: Store, wait: Wait) -> None:
    handle = _handle()
    payloads = [bytes([number]) for number in range(WRITERS)]
    won = await asyncio.gather(*(store.create(handle, payload, ttl_s=LONG_S) for payload in payloads))
    _expect(won.count(True) == 1, f"{won.count(True)} of {WRITERS} concurrent creates returned True")
    stored = await store.read(handle)
    _expect(
        stored == StoredPayload(1, payloads[won.index(True)]),
        "the payload of the create that returned True is not the one that is stored",
    )


async def each_write_increments_the_version(store: Store, wait: Wait) -> None:
    handle = _handle()
    await store.create(handle, b"1", ttl_s=LONG_S)
    for version in range(1, 12):
        written = await store.replace(handle, b"%d" % (version + 1), version=version, ttl_s=LONG_S)
        _expect(written is True, f"replace of version {version} did not return True")
    _expect(await store.read(handle) == StoredPayload(12, b"12"), "eleven writes do not end at version 12")


async def conflicting_write_returns_the_stored_payload(store: Store, wait: Wait) -> None:
    handle = _handle()
    await store.create(handle, b"1", ttl_s=LONG_S)
    await store.replace(handle, b"2", version=1, ttl_s=LONG_S)
    for version in (1, 3):
        result = await store.replace(handle, b"late", version=version, ttl_s=LONG_S)
        _expect(
            result == StoredPayload(2, b"2"),
            f"replace of version {version} did not return the stored version 2",
        )
    _expect(
        await store.read(handle) == StoredPayload(2, b"2"), "a replace of another version was not refused"
    )


async def replace_never_creates(store: Store, wait: Wait) -> None:
    handle = _handle()
    for version in (0, 1):
        result = await store.replace(handle, b"planted", version=version, ttl_s=LONG_S)
        _expect(result is None, "replace of a handle that was never created did not return None")
    _expect(await store.read(handle) is None, "replace created a session")


async def no_concurrent_update_is_lost(store: Store, wait: Wait) -> None:
    handle = _handle()
    await store.create(handle, b"0", ttl_s=LONG_S)

    async def count() -> None:
        for _ in range(WRITES):
            stored: bool | StoredPayload | None = await store.read(handle)
            for _ in range(MAX_ATTEMPTS):
                if not isinstance(stored, StoredPayload):
                    break
                await asyncio.sleep(0)  # lets other writers run in between where there is no network
                payload = b"%d" % (int(stored.payload) + 1)
                stored = await store.replace(handle, payload, version=stored.version, ttl_s=LONG_S)
            _expect(stored is True, "a write never succeeded, or its session vanished meanwhile")

    await asyncio.gather(*(count() for _ in range(WRITERS)))
    total = WRITERS * WRITES
    stored = await store.read(handle)
    _expect(
        stored and int(stored.payload) == total,
        f"{stored} is stored after {total} increments by {WRITERS} concurrent writers",
    )


async def read_many_preserves_the_order(store: Store, wait: Wait) -> None:
    handles = [_handle() for _ in range(20)]
    for number, handle in enumerate(handles):
        if number % 3:
            await store.create(handle, b"%d" % number, ttl_s=LONG_S)
    asked = [*reversed(handles), handles[1]]
    expected = [await store.read(handle) for handle in asked]
    _expect(
        await store.read_many(asked) == expected,
        "read_many does not return what read returns, in the order of its argument",
    )


async def similar_handles_are_distinct(store: Store, wait: Wait) -> None:
    stem = secrets.token_hex(16)
    handles = [stem + end for end in ("", "a", "A", "-", "_", "a" * 32, "a" * 31 + "b", "A" * 32)]
    for number, handle in enumerate(handles):
        _expect(
            await store.create(handle, b"%d" % number, ttl_s=LONG_S),
            f"{handle} is mistaken for another handle",
        )
    for number, handle in enumerate(handles):
        _expect(
            await store.read(handle) == StoredPayload(1, b"%d" % number),
            f"{handle} is mistaken for another handle",
        )


# ------------------------------------------------------------------ lifetimes


async def payload_expires(store: Store, wait: Wait) -> None:
    handle = _handle()
    await store.create(handle, b"1", ttl_s=SHORT_S)
    await wait(SHORT_S + 0.1)
    _expect(await store.read(handle) is None, "a payload is read after it expired")
    _expect(await store.read_many([handle]) == [None], "read_many returns a payload after it expired")
    result = await store.replace(handle, b"2", version=1, ttl_s=LONG_S)
    _expect(result is None, "a replace restored an expired session")
    _expect(await store.create(handle, b"3", ttl_s=LONG_S), "an expired session prevents a create")
    _expect(await store.read(handle) == StoredPayload(1, b"3"), "a create after an expiry is not version 1")


async def replace_sets_the_lifetime(store: Store, wait: Wait) -> None:
    longer, shorter = _handle(), _handle()
    await store.create(longer, b"1", ttl_s=SHORT_S)
    await store.replace(longer, b"2", version=1, ttl_s=LONG_S)
    await store.create(shorter, b"1", ttl_s=LONG_S)
    await store.replace(shorter, b"2", version=1, ttl_s=SHORT_S)
    await wait(SHORT_S + 0.1)
    _expect(await store.read(longer) == StoredPayload(2, b"2"), "a replace did not extend the lifetime")
    _expect(await store.read(shorter) is None, "a replace did not shorten the lifetime")


# ------------------------------------------------------------------ revocation


async def revoked_session_is_never_restored(store: Store, wait: Wait) -> None:
    handle = _handle()
    await store.create(handle, b"1", ttl_s=LONG_S)
    await store.revoke(handle, ttl_s=LONG_S)
    await store.revoke(handle, ttl_s=LONG_S)
    _expect(await store.read(handle) is None, "a revoked session is read")
    _expect(await store.read_many([handle]) == [None], "read_many returns a revoked session")
    for version in (0, 1, 2):
        result = await store.replace(handle, b"late", version=version, ttl_s=LONG_S)
        _expect(result is None, "a replace of a revoked session did not return None")
    _expect(not await store.create(handle, b"again", ttl_s=LONG_S), "a revoked handle was created again")
    _expect(await store.read(handle) is None, "a late write restored a revoked session")


async def handle_can_be_revoked_before_it_is_created(store: Store, wait: Wait) -> None:
    handle = _handle()
    await store.revoke(handle, ttl_s=LONG_S)
    _expect(not await store.create(handle, b"1", ttl_s=LONG_S), "a create ignored a tombstone")
    _expect(await store.read(handle) is None, "a session that was revoked before its create is read")


async def revocation_wins_over_concurrent_writes(store: Store, wait: Wait) -> None:
    handle = _handle()
    await store.create(handle, b"0", ttl_s=LONG_S)
    revoked = False

    async def write() -> None:
        for _ in range(MAX_ATTEMPTS):
            if (stored := await store.read(handle)) is None:
                return
            was_revoked = revoked
            written = await store.replace(handle, b"late", version=stored.version, ttl_s=LONG_S)
            _expect(
                not (was_revoked and written is True), "a write that began after the revocation was accepted"
            )
            await asyncio.sleep(0)

    async def revoke() -> None:
        nonlocal revoked
        await store.revoke(handle, ttl_s=LONG_S)
        revoked = True

    writers = [asyncio.ensure_future(write()) for _ in range(WRITERS)]
    await asyncio.sleep(0.01)
    await asyncio.gather(revoke(), *writers)
    _expect(
        await store.read(handle) is None, "a write that was concurrent with a revocation restored the session"
    )


async def tombstone_lasts_for_its_lifetime(store: Store, wait: Wait) -> None:
    handle = _handle()
    await store.create(handle, b"1", ttl_s=SHORT_S)
    await store.revoke(handle, ttl_s=3 * SHORT_S)
    await wait(SHORT_S + 0.1)
    _expect(
        not await store.create(handle, b"2", ttl_s=LONG_S), "a tombstone expired with the session it replaced"
    )
    await wait(2 * SHORT_S + 0.1)
    _expect(await store.create(handle, b"3", ttl_s=LONG_S), "a tombstone outlives its lifetime")


# ------------------------------------------------------------------ groups


async def group_lists_its_members(store: Store, wait: Wait) -> None:
    group, other, handles = _handle(), _handle(), [_handle() for _ in range(3)]
    _expect(await store.members(group) == [], "an empty group has members")
    for handle in (*handles, handles[0]):
        await store.add_member(group, handle, ttl_s=LONG_S)
    await store.add_member(other, handles[1], ttl_s=LONG_S)
    _expect(sorted(await store.members(group)) == sorted(handles), "a group does not list each member once")
    _expect(await store.members(other) == [handles[1]], "one group is mistaken for another")


async def members_are_listed_oldest_first(store: Store, wait: Wait) -> None:
    group, handles = _handle(), sorted((_handle() for _ in range(5)), reverse=True)
    for handle in handles:
        await store.add_member(group, handle, ttl_s=LONG_S)
        await wait(0.02)
    _expect(await store.members(group) == handles, "members of equal lifetimes are not listed oldest first")


async def membership_expires(store: Store, wait: Wait) -> None:
    group, long, short, renewed = (_handle() for _ in range(4))
    await store.add_member(group, long, ttl_s=LONG_S)
    await store.add_member(group, long, ttl_s=SHORT_S)
    await store.add_member(group, renewed, ttl_s=SHORT_S)
    await store.add_member(group, renewed, ttl_s=LONG_S)
    await store.add_member(group, short, ttl_s=SHORT_S)
    await wait(SHORT_S + 0.1)
    found = await store.members(group)
    _expect(short not in found, "a membership is listed after it expired")
    _expect(long in found, "adding a member again with a shorter lifetime cut the first one short")
    _expect(renewed in found, "adding a member again with a longer lifetime did not extend the first one")


async def group_size_is_bounded(store: Store, wait: Wait) -> None:
    group = _handle()
    handles = [_handle() for _ in range(MAX_MEMBERS + 1)]
    first, last = handles[0], handles[-1]
    _expect(await store.add_member(group, first, ttl_s=LONG_S - 1) == [], "an empty group refuses a member")
    for at in range(1, MAX_MEMBERS, 50):
        some = handles[at : min(at + 50, MAX_MEMBERS)]
        await asyncio.gather(*(store.add_member(group, handle, ttl_s=LONG_S) for handle in some))
    surplus = await store.add_member(group, last, ttl_s=LONG_S)
    _expect(surplus == [first], "a full group does not return the member that expires first")
    _expect(first in await store.members(group), "a full group dropped a member by itself")
    _expect(last not in await store.members(group), f"a group has more than {MAX_MEMBERS:,} members")
    again = await store.add_member(group, handles[1], ttl_s=LONG_S)
    _expect(again == [], "a full group refuses to renew one of its members")
    _expect(
        await store.add_member(group, last, ttl_s=LONG_S, replacing=surplus) == [],
        "a full group refuses a replacement",
    )
    found = await store.members(group)
    _expect(last in found and first not in found, "the replaced member is listed, or the new one is not")


async def groups_and_handles_have_separate_names(store: Store, wait: Wait) -> None:
    name, handle = _handle(), _handle()
    await store.add_member(name, handle, ttl_s=LONG_S)
    _expect(
        await store.create(name, b"1", ttl_s=LONG_S),
        "a group prevents the create of a handle with the same name",
    )
    _expect(await store.members(name) == [handle], "a create changed the group with the same name")


CHECKS: tuple[StoreCheck, ...] = (
    unknown_handle_reads_as_none,
    created_payload_is_read_as_version_1,
    payloads_are_preserved_byte_for_byte,
    second_create_is_refused,
    one_of_concurrent_creates_wins,
    each_write_increments_the_version,
    conflicting_write_returns_the_stored_payload,
    replace_never_creates,
    no_concurrent_update_is_lost,
    read_many_preserves_the_order,
    similar_handles_are_distinct,
    payload_expires,
    replace_sets_the_lifetime,
    revoked_session_is_never_restored,
    handle_can_be_revoked_before_it_is_created,
    revocation_wins_over_concurrent_writes,
    tombstone_lasts_for_its_lifetime,
    group_lists_its_members,
    members_are_listed_oldest_first,
    membership_expires,
    group_size_is_bounded,
    groups_and_handles_have_separate_names,
)
