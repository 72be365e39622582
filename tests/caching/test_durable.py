"""The log of invalidations: what a dead writer or a Redis that was away would lose."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis as redis_py
from prometheus_client import CollectorRegistry
from sqlalchemy import create_engine, text
from sqlalchemy.engine import Engine
from sqlalchemy.orm import Session

from tenfold.caching import InvalidationLog, QueryCache
from tenfold.database import DatabaseRouter
from tenfold.errors import SettingsError
from tests.caching.support.workload import READ, WRITE, Workload
from tests.database.conftest import Servers
from tests.support.servers import RedisServer
from tests.support.waiting import eventually

BOUND_S = 2.5  # 2 s and the time of a test's own reads


@pytest.fixture(scope="module")
def engine(servers: Servers) -> Iterator[Engine]:
    engine = create_engine(servers.primary.url.replace("postgresql:", "postgresql+psycopg:"))
    InvalidationLog.create_table(engine)
    InvalidationLog.create_table(engine)  # twice does no harm
    yield engine
    engine.dispose()


@pytest.fixture
def make_durable(own_redis: RedisServer, engine: Engine) -> Iterator[Callable[..., QueryCache]]:
    made: list[QueryCache] = []

    def make(**options: Any) -> QueryCache:
        options = {"durable": engine, "registry": CollectorRegistry(), **options}
        made.append(QueryCache(own_redis.url, **options))
        return made[-1]

    yield make
    for cache in made:
        cache.close()


class Counter:
    """One row, written in a session, read through a cache."""

    def __init__(self, cache: QueryCache, engine: Engine) -> None:
        self.cache, self.engine, self.loads = cache, engine, 0

        @cache.query(ttl=60, tags=["counter"], name="counter")
        def read() -> int:
            self.loads += 1
            with Session(engine) as session:
                return int(session.execute(READ, {"id": 0}).scalar_one())

        self.read = read

    def write(self) -> int:
        with Session(self.engine) as session:
            value = int(session.execute(WRITE, {"id": 0}).scalar_one())
            self.cache.invalidate("counter", session=session)
            session.commit()
        return value

    def is_cached(self) -> bool:
        self.read()
        loads = self.loads
        self.read()
        return loads == self.loads


def die_after_commit(cache: QueryCache, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this instance die right after its commits: it applies no invalidation."""
    monkeypatch.setattr(cache, "renew_committed", lambda *_: None)


@pytest.mark.guarantee(
    "a cached value is stale for two seconds at most",
    pattern="caching",
    under="the writer dies right after its commit; durable=",
)
def test_invalidation_of_a_dead_writer_is_applied(
    make_durable: Callable[..., QueryCache], engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, writer = Counter(make_durable(), engine), Counter(make_durable(), engine)
    eventually(reader.is_cached)
    die_after_commit(writer.cache, monkeypatch)
    written = writer.write()
    eventually(lambda: reader.read() == written, within_s=BOUND_S)
    eventually(reader.is_cached)


@pytest.mark.control("a cached value is stale for two seconds at most", "without durable=")
def test_the_control_without_a_log_the_invalidation_is_lost(
    make_durable: Callable[..., QueryCache], engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = Counter(make_durable(durable=None), engine)
    writer = Counter(make_durable(durable=None), engine)
    eventually(reader.is_cached)
    die_after_commit(writer.cache, monkeypatch)
    written = writer.write()
    with pytest.raises(AssertionError):
        eventually(lambda: reader.read() == written, within_s=BOUND_S)


def test_rolled_back_transaction_leaves_nothing_in_the_log(
    make_durable: Callable[..., QueryCache], engine: Engine
) -> None:
    cache = make_durable()
    with engine.begin() as connection:
        connection.execute(text("delete from tenfold_cache_log"))
    with Session(engine) as session:
        session.execute(WRITE, {"id": 0})
        cache.invalidate("counter", session=session)
        session.rollback()
        session.execute(text("select 1"))
        session.commit()
    with engine.begin() as connection:
        assert connection.execute(text("select count(*) from tenfold_cache_log")).scalar_one() == 0


def test_nothing_is_served_while_no_relay_runs(
    make_durable: Callable[..., QueryCache], engine: Engine
) -> None:
    counter = Counter(make_durable(), engine)
    eventually(counter.is_cached)
    with engine.connect() as connection, connection.begin():
        connection.execute(text("lock table tenfold_cache_log"))  # the relay cannot go on
        eventually(lambda: not counter.is_cached(), within_s=BOUND_S)
        with Session(engine) as session:  # not through the cache: nothing tells it
            written = session.execute(WRITE, {"id": 0}).scalar_one()
            session.commit()
        assert [counter.read() for _ in range(5)] == [written] * 5
    eventually(counter.is_cached)


def test_another_relay_takes_over(make_durable: Callable[..., QueryCache], engine: Engine) -> None:
    first, second = Counter(make_durable(), engine), Counter(make_durable(), engine)
    eventually(first.is_cached)
    eventually(second.is_cached)
    terminate = text("select pg_terminate_backend(pid) from pg_locks where locktype = 'advisory' and granted")
    for _ in range(3):
        with engine.begin() as connection:
            connection.execute(terminate)
        written = first.write()
        assert first.read() == written
        eventually(lambda: second.read() == written, within_s=BOUND_S)  # noqa: B023 - at once
        eventually(second.is_cached)


@pytest.mark.parametrize("lost", ["[tv]:", ""], ids=["no watermark", "former watermark"])
def test_changes_that_a_failover_lost_are_repeated(
    make_durable: Callable[..., QueryCache], engine: Engine, own_redis: RedisServer, lost: str
) -> None:
    """A replica that lacked the last writes is promoted: old generations, old values."""
    counter = Counter(make_durable(), engine)
    eventually(counter.is_cached)
    client = redis_py.Redis.from_url(own_redis.url)
    former = {key: client.get(key) for key in client.scan_iter(f"tenfold:cache:{lost}*")}
    written = counter.write()
    eventually(counter.is_cached)
    client.flushall()
    for key, value in former.items():
        client.set(key, value, px=900 if key.endswith(b"watermark") else None)
    eventually(lambda: counter.read() == written, within_s=BOUND_S)
    eventually(counter.is_cached)
    assert counter.read() == written
    client.close()


def test_caches_of_one_database_have_relays_of_their_own(
    make_durable: Callable[..., QueryCache], engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    counters = [Counter(make_durable(prefix=prefix), engine) for prefix in ("one:", "two:")]
    for counter in counters:
        eventually(counter.is_cached)
        die_after_commit(counter.cache, monkeypatch)
        written = counter.write()
        eventually(lambda: counter.read() == written, within_s=BOUND_S)  # noqa: B023 - at once


def test_missing_table_is_said(
    make_durable: Callable[..., QueryCache], engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    with engine.begin() as connection:
        connection.execute(text("alter table tenfold_cache_log rename to away"))
    try:
        counter = Counter(make_durable(), engine)
        counter.read()
        eventually(lambda: "tenfold_cache_log is missing: create it with InvalidationLog" in caplog.text)
        assert not counter.is_cached(), "nothing is served without the log"
    finally:
        with engine.begin() as connection:
            connection.execute(text("alter table away rename to tenfold_cache_log"))


def test_async_sessions_write_the_log(make_durable: Callable[..., QueryCache], servers: Servers) -> None:
    import asyncio

    from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

    async def main(driver: str) -> str:
        engine = create_async_engine(servers.primary.url.replace("postgresql:", f"postgresql+{driver}:"))
        cache = make_durable()
        async with AsyncSession(engine) as session:
            await session.execute(WRITE, {"id": 0})
            cache.invalidate("counter", "other", session=session)
            await session.commit()
            found = await session.execute(text("select tags from tenfold_cache_log order by id desc limit 1"))
            tags = found.scalar_one()
        await cache.aclose()
        await engine.dispose()
        return ",".join(sorted(tags))

    for driver in ("psycopg", "asyncpg"):
        assert asyncio.run(main(driver)) == "counter,other"


def test_readers_with_tokens_are_served_up_to_the_watermark(
    make_durable: Callable[..., QueryCache],
    make_router: Callable[..., DatabaseRouter],
    servers: Servers,
    engine: Engine,
) -> None:
    """A token beyond the load's position is no miss once all invalidations before it have been applied."""
    router = make_router(servers.urls, metrics=False)
    cache = make_durable(fence=router.fence)
    loads = 0

    @cache.query(ttl=60, tags=["counter:0"])
    def read() -> int:
        nonlocal loads
        loads += 1
        with router.read() as session:
            return int(session.execute(READ, {"id": 0}).scalar_one())

    read()
    with router.consistency_context():
        with router.write() as session:
            session.execute(WRITE, {"id": 1})  # another row: moves the token, not the tag
        token = router.token()

    def is_hit() -> bool:
        before = loads
        with router.consistency_context(token):
            read()
        return loads == before

    with router.write() as session:  # moves the position beyond the token
        session.execute(WRITE, {"id": 2})
    eventually(is_hit, within_s=5)


def test_workload_with_a_log(
    make_durable: Callable[..., QueryCache], make_router: Callable[..., DatabaseRouter], servers: Servers
) -> None:
    router = make_router(servers.urls, metrics=False)
    caches = [make_durable(fence=router.fence) for _ in range(2)]
    outcome = Workload(router, caches, bound_s=2.0).run(operations=3000)
    assert (outcome.older_than_seen, outcome.older_than_bound) == (0, 0)


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(SettingsError, match="needs PostgreSQL"):
        QueryCache("redis://127.0.0.1:1", durable="sqlite://", metrics=False)
    with pytest.raises(SettingsError, match="in a cluster"):
        QueryCache("redis+cluster://127.0.0.1:1", durable="postgresql://127.0.0.1/x", metrics=False)
    with pytest.raises(SettingsError, match="needs Redis"):
        QueryCache(durable="postgresql://127.0.0.1/x", metrics=False)
