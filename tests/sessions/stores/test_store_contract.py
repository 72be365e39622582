"""The shipped contract, run against every store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.asyncio.cluster import RedisCluster
from sqlalchemy import create_engine, event
from sqlalchemy.ext.asyncio import create_async_engine

from tenfold.sessions.stores.contract import CHECKS, group_size_is_bounded
from tenfold.sessions.stores.memory import MemoryStore
from tenfold.sessions.stores.redis import RedisStore
from tenfold.sessions.stores.sqlalchemy import SQLStore
from tenfold.sessions.stores.store import Store
from tests.support.servers import RedisServer, form_cluster

Opened = Callable[[], AbstractAsyncContextManager[Store]]


@asynccontextmanager
async def _closing(store: Store) -> AsyncIterator[Store]:
    try:
        yield store
    finally:
        await store.aclose()


@pytest.fixture
def memory() -> Opened:
    return lambda: _closing(MemoryStore())


@pytest.fixture
def redis(redis_server: RedisServer) -> Opened:
    return lambda: _closing(RedisStore(redis_server.url, timeout_s=5))


@pytest.fixture
def redis_client(redis_server: RedisServer) -> Opened:
    @asynccontextmanager
    async def opened() -> AsyncIterator[Store]:
        async with Redis.from_url(redis_server.url) as client:
            yield RedisStore(client, timeout_s=5, prefix="others:")

    return opened


@pytest.fixture
def redis_cluster(redis_program: Path) -> Iterator[Opened]:
    """Two nodes that share the slots evenly, so that handles of one check lie on both."""
    nodes = [
        RedisServer(redis_program, "--cluster-enabled", "yes", password="of_every_node") for _ in range(2)
    ]
    form_cluster(nodes)

    @asynccontextmanager
    async def opened() -> AsyncIterator[Store]:
        async with RedisCluster.from_url(nodes[0].url) as client:
            yield RedisStore(client, timeout_s=5)

    yield opened
    for node in nodes:
        node.close()


def _disable_fsync(connection: Any, _: object) -> None:
    connection.execute("PRAGMA synchronous=OFF")


def _sql(url: str, *, threads: bool) -> Opened:
    @asynccontextmanager
    async def opened() -> AsyncIterator[Store]:
        engine = create_engine(url) if threads else create_async_engine(url)
        if engine.dialect.name == "sqlite":
            event.listen(getattr(engine, "sync_engine", engine), "connect", _disable_fsync)
        store = SQLStore(engine, timeout_s=20)
        await store.create_tables()
        yield store
        await store.aclose()
        disposed = engine.dispose()
        if disposed is not None:
            await disposed

    return opened


@pytest.fixture
def postgresql(postgresql_server: Any) -> Opened:
    return _sql(postgresql_server.url, threads=False)


@pytest.fixture
def postgresql_threads(postgresql_server: Any) -> Opened:
    return _sql(postgresql_server.url, threads=True)


@pytest.fixture
def sqlite(tmp_path: Path) -> Opened:
    return _sql(f"sqlite+aiosqlite:///{tmp_path}/sessions.db", threads=False)


@pytest.fixture
def sqlite_threads(tmp_path: Path) -> Opened:
    return _sql(f"sqlite:///{tmp_path}/sessions.db", threads=True)


REDIS = ["redis", "redis_client", "redis_cluster"]
DATABASES = ["postgresql", "postgresql_threads", "sqlite", "sqlite_threads"]


@pytest.mark.guarantee(
    "every store fulfils the same contract: no lost update, no restored session, no adopted "
    "handle, no ignored lifetime",
    pattern="stores",
    under="concurrent writers, late writes, expiry",
)
@pytest.mark.parametrize("backend", ["memory", *DATABASES])
def test_store_fulfils_the_contract(backend: str, request: pytest.FixtureRequest) -> None:
    _run_contract(request.getfixturevalue(backend))


@pytest.mark.guarantee(
    "every store fulfils the same contract: no lost update, no restored session, no adopted "
    "handle, no ignored lifetime"
)
@pytest.mark.parametrize("backend", REDIS)
@pytest.mark.usefixtures("redis_program")
def test_store_in_redis_fulfils_the_contract(backend: str, request: pytest.FixtureRequest) -> None:
    _run_contract(request.getfixturevalue(backend))


def _run_contract(opened: Opened) -> None:
    """Run all checks concurrently, so that they share their waits; first the one that keeps a store busy."""

    async def run() -> list[BaseException | None]:
        async with opened() as store:
            await group_size_is_bounded(store, asyncio.sleep)
            return await asyncio.gather(
                *(check(store, asyncio.sleep) for check in others), return_exceptions=True
            )

    others = [check for check in CHECKS if check is not group_size_is_bounded]
    errors = asyncio.run(run())
    assert [
        f"{check.__name__}: {error!r}" for check, error in zip(others, errors, strict=True) if error
    ] == []
