"""The cache of records in one process: bounded in age, and consistent with the process's own changes."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tenfold.sessions import MemoryStore, ServerSessions, Session
from tenfold.sessions.backend import StoredSession
from tenfold.sessions.record import Record
from tenfold.sessions.server_sessions import RecordCache
from tests.sessions.support.client import Client
from tests.sessions.support.interleaving import SteppedStore, run
from tests.sessions.support.service import Clock, WatchedStore, service

RECORD = Record(format=100, created=0, last_seen=0, ends=0)


def cached(store: MemoryStore, clock: Clock, cache_ms: float = 500) -> ServerSessions:
    sessions = ServerSessions(store, cache_ms=cache_ms)
    assert sessions._cache is not None
    sessions._cache.clock = clock
    return sessions


@pytest.fixture
def store() -> WatchedStore:
    return WatchedStore()


def test_cached_reads_cost_no_round_trip_until_the_bound(store: WatchedStore) -> None:
    clock = Clock(0)
    client = Client(service(sessions=cached(store, clock)))
    client.get("/put?a=1")
    store.operations.clear()
    for _ in range(10):
        assert client.get("/show").json["data"] == {"a": "1"}
    assert store.operations == []
    clock.now += 0.5
    client.get("/show")
    assert store.operations == ["read"]


@pytest.mark.guarantee(
    "a revocation by another instance takes effect within `cache_ms`",
    pattern="sessions",
    under="another instance's logout",
    control="the same table's first rows",
)
@pytest.mark.parametrize(("after_ms", "principal"), [(0, "ann"), (499, "ann"), (500, None), (5000, None)])
def test_revocation_by_another_instance_takes_effect_within_the_bound(
    store: WatchedStore, after_ms: int, principal: str | None
) -> None:
    """The first rows are the control: until the bound the cached session is still valid."""
    clock = Clock(0)
    here, there = Client(service(sessions=cached(store, clock))), Client(service(store=store))
    here.get("/login?who=ann")
    there.cookies = dict(here.cookies)
    here.get("/show")
    there.get("/logout")
    clock.now += after_ms / 1000
    assert here.get("/show").json["principal"] == principal


def test_own_changes_take_effect_at_once(store: WatchedStore) -> None:
    sessions = cached(store, Clock(0))
    client = Client(service(sessions=sessions))
    client.get("/login?who=ann")
    before = dict(client.cookies)
    client.get("/put?a=1")
    assert client.get("/show").json["data"] == {"a": "1"}
    client.get("/rotate")
    assert Client(client.app, before).get("/show").json["principal"] is None
    after = dict(client.cookies)
    asyncio.run(sessions.logout_everywhere("ann"))
    assert Client(client.app, after).get("/show").json["principal"] is None


def test_token_newer_than_the_cache_is_read_from_the_store(store: WatchedStore) -> None:
    here, there = Client(service(sessions=cached(store, Clock(0)))), Client(service(store=store))
    here.get("/put?a=1")
    there.cookies = dict(here.cookies)
    there.get("/login?who=ann")
    here.cookies = dict(there.cookies)
    assert here.get("/show").json["principal"] == "ann"


def test_writes_are_applied_to_the_store_not_to_the_cache(store: WatchedStore) -> None:
    clock = Clock(0)
    here, there = Client(service(sessions=cached(store, clock))), Client(service(store=store))
    here.get("/put?a=1")
    there.cookies = dict(here.cookies)
    there.get("/put?a=2&b=2")
    here.get("/put?a=1&c=3")  # the cached value, but not the stored one
    assert there.get("/show").json["data"] == {"a": "1", "b": "2", "c": "3"}
    clock.now += 0.1
    here.get("/show")
    there.get("/logout")
    assert here.get("/put?d=4").status == 409
    assert there.get("/show").json["data"] == {}


def test_read_overtaken_by_a_revocation_is_not_cached() -> None:
    store, clock = SteppedStore(), Clock(0)
    sessions = cached(store, clock)
    session = Session(sessions)
    session.login("ann")
    run(session.save())
    clock.now = 10
    reading: Any = sessions.load(session.pending_token or "")
    reading.send(None)  # about to read from the store
    found = run(sessions.load(session.pending_token or ""))
    assert isinstance(found, StoredSession)
    store_read = store._entries.copy()
    run(sessions.revoke(found))
    store._entries = store_read  # as the concurrent read saw it
    with pytest.raises(StopIteration):
        reading.send(None)
    assert sessions._cache is not None
    assert sessions._cache.get(found.handle) is None


def test_cache_is_bounded_and_evicts_the_least_recently_used() -> None:
    cache = RecordCache(1000, max_entries=2, clock=Clock(0))
    cache.put("a", 1, RECORD, at=0)
    cache.put("b", 1, RECORD, at=0)
    cache.get("a")
    cache.put("c", 1, RECORD, at=0)
    assert [cache.get(handle) is not None for handle in "abc"] == [True, False, True]


def test_older_version_does_not_replace_a_newer_one() -> None:
    cache = RecordCache(1000, clock=Clock(0))
    cache.put("a", 2, RECORD, at=0)
    cache.put("a", 1, RECORD, at=0)
    assert cache.get("a") == (2, RECORD)
