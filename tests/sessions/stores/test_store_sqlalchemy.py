"""SQLStore with a paused, exhausted or unreachable database or without its tables; and sweeping."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, event, make_url, text
from sqlalchemy.ext.asyncio import create_async_engine

from tenfold.breaker import Breaker
from tenfold.errors import SettingsError
from tenfold.sessions.stores.sqlalchemy import SQLStore
from tenfold.sessions.stores.store import StoredPayload
from tests.sessions.support import calls
from tests.sessions.support.calls import succeeds_eventually
from tests.support.servers import PostgreSQLServer

HANDLE = "a-handle-that-must-not-be-logged"


@asynccontextmanager
async def open_store(url: str, *, threads: bool = False, **options: Any) -> AsyncIterator[SQLStore]:
    """A store in tables of its own."""
    pool = {"pool_size": 2, "max_overflow": 0} if "postgresql" in url else {}
    engine = create_engine(url, **pool) if threads else create_async_engine(url, **pool)
    store = SQLStore(engine, **({"timeout_s": 10} | options))
    await store.create_tables()
    try:
        yield store
    finally:
        await store.aclose()
        if (disposed := engine.dispose()) is not None:
            await disposed


@pytest.fixture(params=["postgresql", "postgresql threads", "sqlite", "sqlite threads"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, bool]:
    threads = request.param.endswith("threads")
    if request.param.startswith("postgresql"):
        return request.getfixturevalue("postgresql_server").url, threads
    return f"sqlite{'' if threads else '+aiosqlite'}:///{tmp_path}/sessions.db", threads


async def error_text(call: Any) -> str:
    text = await calls.error_text(call)
    assert HANDLE not in text
    return text


# ------------------------------------------------------------------ tables


@pytest.mark.guarantee("every key and row has a lifetime")
def test_sweep_deletes_expired_rows_only(url: tuple[str, bool]) -> None:
    async def run() -> None:
        async with open_store(url[0], threads=url[1], table="swept") as store:
            await store.sweep()
            await store.create("live", b"1", ttl_s=60)
            await store.revoke("gone", ttl_s=60)
            await store.add_member("group", "live", ttl_s=60)
            for number in range(25):
                await store.create(f"expired{number}", b"", ttl_s=0.2)
                await store.add_member(f"group{number}", "expired", ttl_s=0.2)
            await asyncio.sleep(0.3)
            both = await asyncio.gather(store.sweep(batch=10), store.sweep(batch=10))
            assert sum(both) + await store.sweep() == 50
            assert await store.sweep() == 0
            assert await store.read("live") == StoredPayload(1, b"1")
            assert not await store.create("gone", b"", ttl_s=60)
            assert await store.members("group") == ["live"]

    asyncio.run(run())


def test_sweep_deletes_at_most_a_batch_per_statement(postgresql_server: PostgreSQLServer) -> None:
    async def run() -> None:
        async with open_store(postgresql_server.url, table="batched") as store:
            for number in range(25):
                await store.create(f"expired{number}", b"", ttl_s=0.001)
            await asyncio.sleep(0.05)
            deleted: list[int] = []

            @event.listens_for(store._engine.sync_engine, "after_cursor_execute")
            def count(_c: object, cursor: Any, statement: str, *_: object) -> None:
                if statement.startswith("DELETE FROM batched "):
                    deleted.append(cursor.rowcount)

            await store.sweep(batch=10)
            assert deleted == [10, 10, 5]

    asyncio.run(run())


def test_ddl_creates_the_tables(url: tuple[str, bool]) -> None:
    async def run() -> None:
        async with open_store(url[0], threads=url[1]) as other:
            store = SQLStore(other._engine, table="by_hand", timeout_s=10)

            def execute(connection: Any) -> None:
                for statement in ("DROP TABLE IF EXISTS by_hand", "DROP TABLE IF EXISTS by_hand_groups"):
                    connection.execute(text(statement))
                for statement in store.ddl().split(";")[:-1]:
                    connection.execute(text(statement))

            await other._run(execute)
            assert await store.create("a", b"1", ttl_s=60)
            await store.add_member("g", "a", ttl_s=60)
            assert await store.members("g") == ["a"]

    asyncio.run(run())


def test_error_about_missing_tables_names_the_remedy(url: tuple[str, bool]) -> None:
    async def run() -> None:
        async with open_store(url[0], threads=url[1]) as other:
            breaker = Breaker(failures=1, cool_down_s=60)
            store = SQLStore(other._engine, table="nowhere", timeout_s=10, breaker=breaker)
            if "postgresql" in url[0]:  # SQLite calls it an operational error, as it calls a locked file
                assert "create_tables()" in await error_text(store.create(HANDLE, b"secret", ttl_s=60))
                assert breaker.is_closed
            else:
                await error_text(store.create(HANDLE, b"secret", ttl_s=60))

    asyncio.run(run())


def test_unsupported_database_is_refused() -> None:
    class MySQL:
        class dialect:
            name = "mysql"

    with pytest.raises(SettingsError, match="PostgreSQL and SQLite, not on mysql"):
        SQLStore(MySQL())


def test_lifetimes_are_measured_by_the_database_clock(postgresql_server: PostgreSQLServer) -> None:
    """Instances whose clocks differ agree."""

    async def run() -> None:
        async with open_store(postgresql_server.url) as store:
            await store.create("clock", b"", ttl_s=60)
            async with store._engine.connect() as connection:
                row = await connection.execute(
                    text(
                        "SELECT expires_ms - EXTRACT(EPOCH FROM clock_timestamp()) * 1000 "
                        "FROM tenfold_sessions WHERE handle = 'clock'"
                    )
                )
            assert 50_000 < float(row.scalar_one()) <= 60_000

    asyncio.run(run())


# ------------------------------------------------------------------ faults


@pytest.mark.guarantee("a paused store costs its timeout three times, then nothing")
@pytest.mark.parametrize("threads", [False, True])
def test_paused_database_costs_the_timeout_three_times(
    postgresql_server: PostgreSQLServer, threads: bool
) -> None:
    async def run() -> list[str]:
        breaker = Breaker(failures=3, cool_down_s=0.5)
        async with open_store(
            postgresql_server.url, threads=threads, timeout_s=0.3, breaker=breaker
        ) as store:
            await succeeds_eventually(lambda: store.revoke("paused", ttl_s=60))
            os.killpg(postgresql_server.process.pid, signal.SIGSTOP)
            _signal_sessions(postgresql_server, signal.SIGSTOP)
            try:
                texts = [await error_text(store.read(HANDLE)) for _ in range(6)]
            finally:
                _signal_sessions(postgresql_server, signal.SIGCONT)
            await succeeds_eventually(lambda: store.read(HANDLE))
            return texts

    texts = asyncio.run(run())
    assert ["within 0.3 s" in text for text in texts] == [True] * 3 + [False] * 3
    assert all("not asked for another" in text for text in texts[3:])


def _signal_sessions(server: PostgreSQLServer, number: signal.Signals) -> None:
    """Each connection's process leads a group of its own."""
    import psutil

    for process in [psutil.Process(server.process.pid), *psutil.Process(server.process.pid).children()]:
        process.send_signal(number)


@pytest.mark.guarantee("every failure is one error without secrets, and ends when the server is back")
def test_exhausted_pool_is_an_error_within_the_timeout(postgresql_server: PostgreSQLServer) -> None:
    async def run() -> None:
        breaker = Breaker(failures=10**9, ratio=2)
        async with open_store(postgresql_server.url, timeout_s=0.3, breaker=breaker) as store:
            async with store._engine.connect(), store._engine.connect():
                assert "look at its load and at the pool" in await error_text(store.read(HANDLE))
            assert await succeeds_eventually(lambda: store.read(HANDLE)) is None

    asyncio.run(run())


def test_unreachable_database_is_one_sentence_without_its_password() -> None:
    async def run() -> str:
        url = make_url("postgresql+psycopg://owner:the-password@127.0.0.1:1/postgres")
        engine = create_async_engine(url)
        store = SQLStore(engine, timeout_s=10)
        try:
            return await error_text(store.read(HANDLE))
        finally:
            await store.aclose()
            await engine.dispose()

    sentence = asyncio.run(run())
    assert "PostgreSQL at 127.0.0.1:1 cannot be reached" in sentence
    assert "the-password" not in sentence


REFUSALS = [
    (
        "postgresql+psycopg://stranger:the-password@{server}/postgres",
        "refuses our user, password or database",
    ),
    ("postgresql+psycopg://owner:the-password@{server}/nowhere", "refuses our user, password or database"),
    ("postgresql+psycopg://owner:the-password@{server}/postgres?sslmode=require", "do not agree on TLS"),
]


@pytest.mark.parametrize(("url", "reason"), REFUSALS)
def test_refused_login_and_tls_are_named(postgresql_server: PostgreSQLServer, url: str, reason: str) -> None:
    async def run() -> str:
        server = f"127.0.0.1:{postgresql_server.port}"
        engine = create_async_engine(url.format(server=server))
        store = SQLStore(engine, timeout_s=10)
        try:
            return await error_text(store.read(HANDLE))
        finally:
            await store.aclose()
            await engine.dispose()

    sentence = asyncio.run(run())
    assert reason in sentence
    assert "the-password" not in sentence


def test_cancelled_calls_leave_the_pool_usable(postgresql_server: PostgreSQLServer) -> None:
    async def run() -> None:
        async with open_store(postgresql_server.url, timeout_s=5) as store:
            await store.create("kept", b"1", ttl_s=60)
            for round in range(30):
                reads = [asyncio.ensure_future(store.read("kept")) for _ in range(6)]
                for _ in range(round % 8):
                    await asyncio.sleep(0)
                for read in reads[::2]:
                    read.cancel()
                results = await asyncio.gather(*reads, return_exceptions=True)
                assert results[1::2] == [StoredPayload(1, b"1")] * 3

    asyncio.run(run())
