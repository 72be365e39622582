"""What readers get while writers write and a replica lags: never older than what they have seen."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session

from tenfold.caching import QueryCache
from tenfold.database import DatabaseRouter, HealthLimits
from tenfold.database.replicas.fence import LoadWatch
from tests.caching.support.workload import READ, WRITE, Outcome, Workload
from tests.database.conftest import Servers
from tests.support.waiting import eventually

LAG_MS = 2000


@pytest.fixture
def router(servers: Servers, make_router: Callable[..., DatabaseRouter]) -> DatabaseRouter:
    """Over a primary and two replicas, of which the later may be 10 s behind and still serve."""
    return make_router(servers.urls, metrics=False, health=HealthLimits(max_lag_s=10))


def make_late_router(servers: Servers, make_router: Callable[..., DatabaseRouter]) -> DatabaseRouter:
    """Over the primary and the first replica, which may be a minute behind and still serve."""
    urls = servers.urls[0], servers.urls[1][:1]
    return make_router(urls, metrics=False, health=HealthLimits(max_lag_s=60))


def run(
    servers: Servers, router: DatabaseRouter, caches: list[QueryCache], *, operations: int, seed: int = 1
) -> Outcome:
    with servers.hold_back(servers.replicas[0], LAG_MS):
        return Workload(router, caches, bound_s=1.5, seed=seed).run(operations=operations)


@pytest.mark.guarantee(
    "a reader is served nothing from the cache that is older than what they have seen",
    pattern="caching",
    under="a replica is 2 s behind while writers write",
)
def test_reader_with_a_token_gets_nothing_older(
    servers: Servers, router: DatabaseRouter, make_cache: Callable[..., QueryCache]
) -> None:
    caches = [make_cache(fence=router.fence) for _ in range(3)]
    outcome = run(servers, router, caches, operations=6000)
    assert (outcome.older_than_seen, outcome.older_than_bound) == (0, 0)
    hits = [cache.stats()["workload.read"] for cache in caches]
    assert sum(each.get("memory", 0) + each.get("redis", 0) for each in hits) > 1000, "it has to cache, too"


@pytest.mark.control(
    "a reader is served nothing from the cache that is older than what they have seen",
    "without `fence=`, what a late replica answered is kept",
)
def test_the_control_without_a_fence_older_values_are_served(
    servers: Servers, router: DatabaseRouter, make_cache: Callable[..., QueryCache]
) -> None:
    outcome = run(servers, router, [make_cache() for _ in range(3)], operations=6000)
    assert outcome.older_than_seen > 0


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 4))
def test_soak(
    servers: Servers, router: DatabaseRouter, make_cache: Callable[..., QueryCache], seed: int
) -> None:
    outcome = run(
        servers, router, [make_cache(fence=router.fence) for _ in range(3)], operations=100_000, seed=seed
    )
    assert (outcome.older_than_seen, outcome.older_than_bound) == (0, 0)


# ------------------------------------------------------------------ one race at a time


class Shelf:
    """One counter, its cached read, and hooks in the load."""

    def __init__(self, cache: QueryCache, router: DatabaseRouter, **options: Any) -> None:
        self.router, self.cache = router, cache
        self.loads = 0
        self.before_read: Callable[[], object] = lambda: None
        self.after_read: Callable[[], object] = lambda: None

        @cache.query(**{"ttl": 60, "tags": ["counter:{counter}"], **options})
        def value(counter: int = 0) -> int:
            self.loads += 1
            self.before_read()
            with router.read() as session:
                found: int = session.execute(READ, {"id": counter}).scalar_one()
            self.after_read()
            return found

        self.value = value

    def write(self) -> int:
        with self.router.write() as session:
            value: int = session.execute(WRITE, {"id": 0}).scalar_one()
            self.cache.invalidate("counter:0", session=session)
        return value


def test_value_loaded_before_an_invalidation_and_stored_after_it_is_not_served(
    router: DatabaseRouter, make_cache: Callable[..., QueryCache]
) -> None:
    shelf = Shelf(make_cache(fence=router.fence), router)
    written: list[int] = []

    def write_once() -> None:
        shelf.after_read = lambda: None
        written.append(shelf.write())

    shelf.after_read = write_once
    assert shelf.value() == written[0] - 1, "the load had read before the commit"
    assert shelf.value() == written[0]


def test_caller_after_an_invalidation_does_not_join_the_old_load(
    router: DatabaseRouter, make_cache: Callable[..., QueryCache]
) -> None:
    shelf = Shelf(make_cache(fence=router.fence), router)
    has_read, may_end = threading.Event(), threading.Event()

    def stall() -> None:
        shelf.after_read = lambda: None
        has_read.set()
        assert may_end.wait(20)

    shelf.after_read = stall
    old = threading.Thread(target=shelf.value)
    old.start()
    assert has_read.wait(20)
    written = shelf.write()
    assert shelf.value() == written, "while the old load still runs"
    may_end.set()
    old.join(20)
    assert shelf.value() == written


def test_load_on_a_late_replica_waits_for_the_commit_or_goes_to_the_primary(
    servers: Servers, make_router: Callable[..., DatabaseRouter], make_cache: Callable[..., QueryCache]
) -> None:
    router = make_late_router(servers, make_router)
    shelf = Shelf(make_cache(fence=router.fence), router)
    with servers.hold_back(servers.replicas[0], 50_000):
        with router.consistency_context():  # a writer, whose token the readers do not have
            written = shelf.write()
        with router.consistency_context():
            assert shelf.value() == written
        assert shelf.loads == 1
        with router.consistency_context(), router.read() as session:
            assert session.execute(READ, {"id": 0}).scalar_one() < written, "the replica is late indeed"


@pytest.mark.guarantee(
    "a cached value does not lack a commit that its reader has seen",
    pattern="caching",
    under="a COMMIT waits for its standby while another reader loads on the primary",
)
def test_value_read_during_a_commit_is_not_served_to_its_writer(
    servers: Servers, make_router: Callable[..., DatabaseRouter], make_cache: Callable[..., QueryCache]
) -> None:
    router = make_router((servers.urls[0], []), metrics=False)
    before, after = read_around_a_slow_commit(servers, router, make_cache(fence=router.fence))
    assert after == before + 1


class LenientFence:
    """A fence that takes what was read on the primary for what was read on a replica."""

    def __init__(self, fence: Any) -> None:
        self._fence = fence

    def __getattr__(self, name: str) -> Any:
        return getattr(self._fence, name)

    @contextmanager
    def watch_load(self, required: Any) -> Iterator[Any]:
        with self._fence.watch_load(required) as watch:
            yield watch
        watch.on_primary = False


@pytest.mark.control(
    "a cached value does not lack a commit that its reader has seen",
    "a position that equals the reader's is taken for enough",
)
def test_the_control_an_equal_position_on_the_primary_lacks_the_commit(
    servers: Servers, make_router: Callable[..., DatabaseRouter], make_cache: Callable[..., QueryCache]
) -> None:
    """Unless the server writes something of its own meanwhile, which moves the position: several attempts."""
    router = make_router((servers.urls[0], []), metrics=False)
    found = (
        read_around_a_slow_commit(
            servers, router, make_cache(fence=LenientFence(router.fence), prefix=f"attempt-{n}:")
        )
        for n in range(5)
    )
    assert any(after == before for before, after in found), "damage was expected"


def read_around_a_slow_commit(servers: Servers, router: DatabaseRouter, cache: QueryCache) -> tuple[int, int]:
    """What is read while a COMMIT waits for its standby, and what its writer reads afterwards.

    The load is told the very position that the writer gets, and reads the old row.
    """
    shelf = Shelf(cache, router)
    token: list[str | None] = []

    def write() -> None:
        with router.consistency_context():
            with router.write() as session:
                session.execute(WRITE, {"id": 0})  # no invalidation: only the position can tell
            token.append(router.token())

    shelf.value(), cache.invalidate("counter:0")  # which asks for positions and opens connections
    with servers.with_setting(servers.primary, "synchronous_standby_names", "replica_that_is_away"):
        writer = threading.Thread(target=write)
        writer.start()
        eventually(lambda: waits_for_standby(servers))
        before = shelf.value()
    writer.join(30)
    with router.consistency_context(token[0]):
        return before, shelf.value()


def waits_for_standby(servers: Servers) -> bool:
    return bool(
        servers.primary.fetch("select count(*) from pg_stat_activity where wait_event = 'SyncRep'")[0][0]
    )


@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
def test_snapshot_opened_before_a_commit_fills_nothing(
    router: DatabaseRouter, make_cache: Callable[..., QueryCache], level: str
) -> None:
    cache = make_cache(fence=router.fence)

    @cache.query(ttl=60, tags=["counter:0"])
    def value(session: Session) -> int:
        return int(session.execute(READ, {"id": 0}).scalar_one())

    shelf = Shelf(cache, router)
    with router.get_write_session() as session:
        session.connection(execution_options={"isolation_level": level})
        former = session.execute(READ, {"id": 0}).scalar_one()
        written = shelf.write()
        assert value(session) == former, "its own snapshot"
    with router.get_write_session() as session:
        assert value(session) == written


def test_session_with_changes_of_its_own_fills_nothing(
    router: DatabaseRouter, make_cache: Callable[..., QueryCache]
) -> None:
    cache = make_cache(fence=router.fence)

    @cache.query(ttl=60, tags=["counter:0"])
    def value(session: Session) -> int:
        return int(session.execute(READ, {"id": 0}).scalar_one())

    with router.get_write_session() as session:
        changed = session.execute(WRITE, {"id": 0}).scalar_one()
        assert value(session) == changed
        session.rollback()
    with router.get_write_session() as session:
        assert value(session) == changed - 1
        session.execute(text("select 1"))
        assert value(session) == changed - 1


def test_invalidation_waits_for_the_commit_and_a_rollback_has_none(
    router: DatabaseRouter, make_cache: Callable[..., QueryCache]
) -> None:
    shelf = Shelf(make_cache(fence=router.fence), router)
    first = shelf.value()
    session = router.get_write_session()
    session.execute(WRITE, {"id": 0})
    shelf.cache.invalidate("counter:0", session=session)
    assert (shelf.value(), shelf.loads) == (first, 1), "before the commit"
    session.rollback()
    assert (shelf.value(), shelf.loads) == (first, 1), "after a rollback"
    session.execute(WRITE, {"id": 0})
    shelf.cache.invalidate("counter:0", session=session)
    session.commit()
    session.close()
    assert shelf.value() == first + 1


async def async_values(router: DatabaseRouter, cache: QueryCache) -> list[int]:
    @cache.query(ttl=60, tags=["counter:0"])
    async def value(counter: int = 0) -> int:
        async with router.read() as session:
            return int((await session.execute(READ, {"id": counter})).scalar_one())

    found = [await value(), await value()]
    async with router.write() as session:
        await session.execute(WRITE, {"id": 0})
        cache.invalidate("counter:0", session=session)
    return [*found, await value(), await value()]


def test_async_sessions_invalidate_after_their_commit(
    router: DatabaseRouter, make_cache: Callable[..., QueryCache]
) -> None:
    import asyncio

    cache = make_cache(fence=router.fence)

    async def main() -> list[int]:
        try:
            return await async_values(router, cache)
        finally:
            await cache.aclose()
            await router.aclose()

    first, again, then, at_last = asyncio.run(main())
    assert (again, then, at_last) == (first, first + 1, first + 1)


def test_load_of_raw_sql_without_tags_shows_what_its_reader_has_seen(
    router: DatabaseRouter, make_cache: Callable[..., QueryCache]
) -> None:
    """Nothing invalidates it, and only its position tells that it is too old."""
    shelf = Shelf(make_cache(fence=router.fence), router, tags=None)
    with router.consistency_context():
        first = shelf.value()
        with router.write() as session:
            session.execute(WRITE, {"id": 0})
        assert shelf.value() == first + 1


def test_cancelled_load_leaves_no_connection_in_use(
    router: DatabaseRouter, make_cache: Callable[..., QueryCache], monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf = Shelf(make_cache(fence=router.fence), router)
    shelf.value()

    def cancel(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    shelf.cache.invalidate("counter:0")
    monkeypatch.setattr(LoadWatch, "add", cancel)
    with pytest.raises(KeyboardInterrupt):
        shelf.value()
    monkeypatch.undo()
    assert [state["in_flight"] for state in router.servers().values()] == [0, 0]
    assert shelf.value() >= 0


@pytest.mark.parametrize("has_session", [True, False])
def test_invalidation_of_another_engine_asks_the_primary(
    servers: Servers,
    make_router: Callable[..., DatabaseRouter],
    make_cache: Callable[..., QueryCache],
    has_session: bool,
) -> None:
    """A script that writes past the router, or raw: a late replica must not fill the cache again."""
    from sqlalchemy import create_engine

    router = make_late_router(servers, make_router)
    shelf = Shelf(make_cache(fence=router.fence), router)
    engine = create_engine(servers.primary.url.replace("postgresql:", "postgresql+psycopg:"))
    with servers.hold_back(servers.replicas[0], 50_000):
        with router.consistency_context():
            before = shelf.value()
        with router.consistency_context(), Session(engine) as session:
            with router.read() as reader:  # the context has a token, which is no commit's
                reader.execute(READ, {"id": 0})
            session.execute(WRITE, {"id": 0})
            if has_session:
                shelf.cache.invalidate("counter:0", session=session)
            session.commit()
            if not has_session:
                shelf.cache.invalidate("counter:0")
        with router.consistency_context():
            assert [shelf.value(), shelf.value()] == [before + 1] * 2
    engine.dispose()


def test_hit_moves_the_reader_so_that_later_reads_show_no_older_state(
    servers: Servers, make_router: Callable[..., DatabaseRouter], make_cache: Callable[..., QueryCache]
) -> None:
    router = make_late_router(servers, make_router)
    shelf = Shelf(make_cache(fence=router.fence), router)
    with servers.hold_back(servers.replicas[0], 50_000):
        with router.consistency_context():
            written = shelf.write()
            assert shelf.value() == written
        with router.consistency_context():
            assert shelf.value() == written
            assert shelf.loads == 1, "a hit"
            with router.read() as session:
                assert session.execute(READ, {"id": 0}).scalar_one() == written, "not from the late replica"
