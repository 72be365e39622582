"""Findings of a pool: leaks, idle transactions, second connections."""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from tenfold.database.pools.request_context import job_context
from tests.database.support import pools
from tests.database.support.pools import found, kinds, line, options, pool

postgres_url, url, engine_of = pools.postgres_url, pools.url, pools.engine_of


@pytest.mark.guarantee(
    "leaks, pauses in transactions and second connections are found", pattern="pools", under="each of them"
)
def test_a_connection_held_for_too_long_is_reported_once(
    engine_of: Callable[..., Engine], caplog: pytest.LogCaptureFixture
) -> None:
    engine = engine_of(leak_after_s=0.0)
    connection = engine.connect()  # mark: leak
    with caplog.at_level(logging.WARNING, "tenfold.database"):
        pool(engine).update()
        pool(engine).update()
    finding = found(engine, "held too long")
    assert f"taken at {line(__file__, 'leak')}" in finding.claim
    assert finding.numbers["count"] == 1
    assert [record.message for record in caplog.records if "held too long" in record.message]
    connection.close()


@pytest.mark.control("leaks, pauses in transactions and second connections are found")
def test_a_connection_given_back_in_time_is_not_reported(engine_of: Callable[..., Engine]) -> None:
    engine = engine_of(leak_after_s=30.0)
    with engine.connect():
        pool(engine).update()
    assert kinds(engine) == set()


def test_a_forgotten_connection_comes_back_by_garbage_collection(engine_of: Callable[..., Engine]) -> None:
    """The monitor must not keep alive a connection that SQLAlchemy would reclaim."""
    engine = engine_of(max_overflow=0)
    engine.connect()
    gc.collect()
    assert pool(engine).monitor.holders == {}
    engine.connect().close()


def test_holder_whose_task_ended_is_reported_as_ended(url: str) -> None:
    async def forget(engine: AsyncEngine, kept: list[Any]) -> None:
        kept.append(await engine.connect())

    async def run() -> str:
        engine = create_async_engine(url, **options(url, leak_after_s=0.0))
        kept: list[Any] = []
        await asyncio.create_task(forget(engine, kept))
        gc.collect()
        pool(engine).update()
        await kept[0].close()
        await engine.dispose()
        return found(engine, "held too long").claim

    assert "its task has ended" in asyncio.run(run())


@pytest.mark.guarantee("leaks, pauses in transactions and second connections are found")
def test_idle_transaction_is_found(url: str) -> None:
    async def run() -> AsyncEngine:
        engine = create_async_engine(url, **options(url, idle_in_transaction_s=0.05))
        async with engine.connect() as connection:
            await connection.execute(text("SELECT 1"))
            await asyncio.sleep(0.06)
            await connection.execute(text("SELECT 2"))  # mark: resumed
        await engine.dispose()
        return engine

    finding = found(asyncio.run(run()), "idle in a transaction")
    assert line(__file__, "resumed") in finding.claim
    assert float(finding.numbers["worst_s"]) >= 0.05


@pytest.mark.control("leaks, pauses in transactions and second connections are found")
@pytest.mark.parametrize("how", ["commit first", "autocommit", "quick"])
def test_idle_connection_without_a_transaction_is_no_finding(
    engine_of: Callable[..., Engine], how: str
) -> None:
    engine = engine_of(idle_in_transaction_s=5.0 if how == "quick" else 0.05)
    with engine.connect() as connection:
        if how == "autocommit":
            connection = connection.execution_options(isolation_level="AUTOCOMMIT")
        connection.execute(text("SELECT 1"))
        if how == "commit first":
            connection.commit()
        time.sleep(0.06)
        connection.execute(text("SELECT 2"))
    assert kinds(engine) == set()


@pytest.mark.guarantee("leaks, pauses in transactions and second connections are found")
def test_two_connections_in_one_task_are_found(url: str) -> None:
    async def both(engine: AsyncEngine) -> None:
        async with engine.connect(), engine.connect():  # mark: both
            pass

    async def one_each(engine: AsyncEngine) -> None:
        async def one() -> None:
            async with engine.connect() as connection:
                await connection.execute(text("SELECT 1"))

        await asyncio.gather(*(one() for _ in range(10)))
        for _ in range(3):
            await one()

    async def run(body: Callable[[AsyncEngine], Any]) -> AsyncEngine:
        engine = create_async_engine(url, **options(url, max_overflow=20, timeout_s=5))
        await body(engine)
        await engine.dispose()
        return engine

    assert line(__file__, "both") in found(asyncio.run(run(both)), "two connections at once").claim
    assert "two connections at once" not in kinds(asyncio.run(run(one_each)))


def test_two_connections_in_one_request_are_found_whatever_its_threads(
    engine_of: Callable[..., Engine],
) -> None:
    engine = engine_of(max_overflow=9)

    async def run() -> None:
        with job_context("GET /both"), engine.connect():
            await asyncio.to_thread(lambda: engine.connect().close())

    asyncio.run(run())
    assert found(engine, "two connections at once").numbers["route"] == "GET /both"


def test_a_warning_before_the_pool_is_full(
    engine_of: Callable[..., Engine], caplog: pytest.LogCaptureFixture
) -> None:
    engine = engine_of(pool_size=2, max_overflow=10)
    with caplog.at_level(logging.WARNING, "tenfold.database"):
        held = [engine.connect() for _ in range(10)]
        assert "nearly full" not in kinds(engine)
        held += [engine.connect() for _ in range(2)]
        held.pop().close()
        held.append(engine.connect())
        assert found(engine, "nearly full").numbers["count"] == 3
    assert len([record for record in caplog.records if "nearly full" in record.message]) == 1
    for connection in held:
        connection.close()
