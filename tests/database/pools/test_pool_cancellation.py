"""Cancellations at random moments: no connection is lost, and each is handed out clean."""

from __future__ import annotations

import asyncio
import gc
import random
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from psycopg import AsyncConnection
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

from tenfold.database import pool_options
from tenfold.database.pools.pool import AsyncMonitoredPool
from tenfold.deadlines import deadline
from tenfold.errors import DeadlineExceededError, PoolExhaustedError
from tests.measure import conftest

postgres_url = conftest.postgres_url
SIZE, OVERFLOW = 2, 1


@pytest.fixture
def url(postgres_url: str) -> str:
    return postgres_url.replace("postgresql:", "postgresql+psycopg:")


def engine_for(url: str, name: str, **changed: Any) -> AsyncEngine:
    # Tried at each checkout: one more place in which a cancellation can strike.
    options = {
        "pool_size": SIZE,
        "max_overflow": OVERFLOW,
        "timeout_s": 5.0,
        "max_waiting": 10,
        "ping_after_s": 0.0,
        "metrics": False,
        "application_name": name,
    }
    return create_async_engine(url, **pool_options(url, **{**options, **changed}))


async def by_connection(engine: AsyncEngine, lot: random.Random) -> None:
    async with engine.connect() as connection:
        await connection.execute(text("SELECT pg_sleep(:s)"), {"s": lot.choice((0, 0, 0.003))})
        await asyncio.sleep(lot.choice((0, 0.001)))
        await connection.execute(text("SELECT 1"))


async def by_session(engine: AsyncEngine, lot: random.Random) -> None:
    async with AsyncSession(engine) as session, session.begin():
        await session.execute(text("SELECT pg_sleep(:s)"), {"s": lot.choice((0, 0, 0.003))})
        await session.execute(text("SELECT 1"))


async def hurried(engine: AsyncEngine, lot: random.Random) -> None:
    with deadline(lot.choice((0.001, 0.005, 0.05))):
        await by_connection(engine, lot)


BODIES: tuple[Callable[[AsyncEngine, random.Random], Any], ...] = (by_connection, by_session, hurried)


async def storm(engine: AsyncEngine, lot: random.Random, tasks: int) -> None:
    """Many tasks on few connections, most of them cancelled at a random moment."""

    async def one() -> None:
        with suppress(PoolExhaustedError, DeadlineExceededError, DBAPIError):
            await lot.choice(BODIES)(engine, lot)

    running = [asyncio.create_task(one()) for _ in range(tasks)]
    for task in running:
        await asyncio.sleep(lot.choice((0, 0, 0.001, 0.004)))
        if lot.random() < 0.7:
            task.cancel()
    done, _ = await asyncio.wait(running, timeout=30)
    assert len(done) == tasks
    assert [task.exception() for task in done if not task.cancelled() and task.exception()] == []


async def settled(engine: AsyncEngine, *, seconds: float = 10.0) -> bool:
    """Return whether all connections come back; SQLAlchemy closes in tasks of its own."""
    pool = engine.pool
    assert isinstance(pool, AsyncMonitoredPool)
    loop = asyncio.get_running_loop()
    ends = loop.time() + seconds
    while pool.checkedout() or pool.waiting or pool.monitor.holders or pool.monitor._owners:
        if loop.time() > ends:
            return False
        await asyncio.sleep(0.01)
    return True


async def all_usable(engine: AsyncEngine, name: str, *, seconds: float = 10.0) -> None:
    """Check that all of the pool's connections can be had, clean, and that the server has no more."""
    held = [await engine.connect() for _ in range(SIZE + OVERFLOW)]
    count = text("SELECT count(*) FROM pg_stat_activity WHERE application_name = :name")
    try:
        for connection in held:
            assert await connection.scalar(text("SELECT 1")) == 1
        async with asyncio.timeout(seconds):
            while await held[0].scalar(count, {"name": name}) != SIZE + OVERFLOW:
                await held[0].rollback()  # a transaction sees pg_stat_activity as it was at first
                await asyncio.sleep(0.01)
    finally:
        for connection in held:
            await connection.close()


@pytest.mark.guarantee(
    "cancellation loses no connection, in the pool or on the server",
    pattern="pools",
    under="cancellations at random moments",
)
@pytest.mark.parametrize("seed", range(6))
def test_cancellation_never_leaks_a_connection(url: str, seed: int) -> None:
    async def run() -> None:
        engine = engine_for(url, f"storm {seed}")
        lot = random.Random(seed)
        for _ in range(4):
            await storm(engine, lot, tasks=25)
            assert await settled(engine)
        await all_usable(engine, f"storm {seed}")
        await engine.dispose()

    asyncio.run(run())


@pytest.mark.control("cancellation loses no connection, in the pool or on the server")
def test_the_control_a_pool_without_the_guard_loses_connections(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same cancellations, over a pool that loses a connection whose ping was cancelled."""

    def unguarded(pool: Any, record: Any) -> None:
        if record.dbapi_connection is not None and not pool._dialect._do_ping_w_event(
            record.dbapi_connection
        ):
            record.invalidate()

    monkeypatch.setattr(AsyncMonitoredPool, "_ping", unguarded)

    async def run() -> bool:
        engine = engine_for(url, "control")
        lot = random.Random(0)
        lost = False
        for _ in range(20):
            await storm(engine, lot, tasks=25)
            lost = lost or not await settled(engine, seconds=0.3)
            if lost:
                break
        await engine.dispose()
        return lost

    assert asyncio.run(run())


@pytest.mark.control("cancellation loses no connection, in the pool or on the server")
def test_the_control_a_cancelled_connect_leaves_a_connection_until_garbage_is_collected(url: str) -> None:
    """SQLAlchemy and psycopg by themselves; most of such runs leak, so a few are tried."""

    async def leaves(seed: int) -> bool:
        name = f"unshielded {seed}"
        engine = engine_for(url, name, connect_args={"async_creator_fn": AsyncConnection.connect})
        await storm(engine, random.Random(seed), tasks=40)
        assert await settled(engine)
        try:
            await all_usable(engine, name, seconds=0.5)
        except TimeoutError:
            return True
        finally:
            await engine.dispose()
        return False

    gc.disable()
    try:
        assert any(asyncio.run(leaves(seed)) for seed in range(20))
    finally:
        gc.enable()
        gc.collect()


def test_the_control_a_forgotten_connection_is_noticed(url: str) -> None:
    async def run() -> None:
        engine = engine_for(url, "forgotten")
        connection = await engine.connect()
        assert not await settled(engine, seconds=0.1)
        await connection.close()
        assert await settled(engine)
        await engine.dispose()

    asyncio.run(run())
