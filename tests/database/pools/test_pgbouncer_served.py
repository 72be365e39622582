"""The real PgBouncer with what was rendered for it, in front of a real PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import psycopg
import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine

from tenfold.database import pool_options
from tenfold.database.pools.pgbouncer import driver_options
from tenfold.deadlines import deadline
from tenfold.errors import DeadlineExceededError
from tests.database.support import pgbouncer_server
from tests.database.support.pgbouncer_server import Program, Running, run_pgbouncer
from tests.measure import conftest

postgres_url = conftest.postgres_url
program = pgbouncer_server.program
PREPARES = (1, 22)  # from there on psycopg's prepared statements work behind it


@pytest.fixture(scope="module")
def behind(postgres_url: str) -> int:
    """The port of a server with a role and a database whose names are awkward."""
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        if not connection.execute("SELECT 1 FROM pg_roles WHERE rolname = 'pooled'").fetchone():
            connection.execute("CREATE ROLE pooled LOGIN PASSWORD 'p\"w'' d'")
            connection.execute('CREATE DATABASE "it\'s" OWNER pooled')
        return connection.info.port


def running(program: Program, behind: int, *changed: str) -> AbstractContextManager[Running]:
    return run_pgbouncer(program, behind, *changed, databases={"shop": "it's"}, users={"pooled": "p\"w' d"})


@pytest.fixture(scope="module")
def pooled(program: Program, behind: int) -> Iterator[Running]:
    with running(program, behind) as pooler:
        yield pooler


def options(pooled: Running, *, driver: str = "psycopg", **changed: Any) -> dict[str, Any]:
    closes = psycopg.capabilities.has_send_close_prepared()
    matching = driver_options(driver, version=pooled.version, closes_prepared=closes)
    return pool_options(
        pooled.url.replace("psycopg", driver), **{"metrics": False, "timeout_s": 30.0, **matching, **changed}
    )


async def many(pooled: Running, *, driver: str = "psycopg", **changed: Any) -> None:
    """Ten clients at once, each with the same statement often enough to be prepared."""
    url = pooled.url.replace("psycopg", driver)
    engine = create_async_engine(url, **options(pooled, driver=driver, **changed))

    async def client() -> None:
        async with engine.connect() as connection:
            for number in range(12):
                query = text("SELECT CAST(:number AS int) + 0 FROM pg_sleep(0.002)")
                assert await connection.scalar(query, {"number": number}) == number
                await connection.commit()

    try:
        # All end by themselves: one that was cancelled could keep its connection until garbage is collected.
        for error in await asyncio.gather(*(client() for _ in range(10)), return_exceptions=True):
            if error is not None:
                raise error
    finally:
        await engine.dispose()


@pytest.mark.guarantee(
    "PgBouncer's clients do not disturb each other", pattern="pools", under="ten clients on two connections"
)
@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
def test_many_clients_share_few_connections(pooled: Running, driver: str, postgres_url: str) -> None:
    asyncio.run(many(pooled, driver=driver))
    with psycopg.connect(postgres_url) as connection:
        query = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'pooled'"
        assert (connection.execute(query).fetchone() or (0,))[0] <= 2


def prepared(pooled: Running) -> int:
    """The number of prepared statements on the server's connections after many clients."""
    asyncio.run(many(pooled))
    engine = create_engine(pooled.url, **options(pooled))
    with engine.connect() as connection:
        count = connection.scalar(text("SELECT count(*) FROM pg_prepared_statements"))
    engine.dispose()
    assert isinstance(count, int)
    return count


@pytest.mark.guarantee("PgBouncer's clients do not disturb each other")
def test_statements_are_prepared_where_it_keeps_them_apart(pooled: Running) -> None:
    closes = psycopg.capabilities.has_send_close_prepared()
    assert (prepared(pooled) > 0) == (pooled.version >= PREPARES and closes)


@pytest.mark.control("PgBouncer's clients do not disturb each other")
def test_the_control_without_max_prepared_statements_they_break(program: Program, behind: int) -> None:
    apart = program.version >= (1, 21)
    broken = pytest.raises(DBAPIError, match="prepared statement")
    with running(program, behind, *["max_prepared_statements = 0"] * apart) as pooler, broken:
        asyncio.run(many(pooler, connect_args={"prepare_threshold": 1}))


def shown_to_the_next(pooled: Running, **changed: Any) -> str:
    """The statement_timeout that a client finds after another with a deadline of five seconds."""
    first = create_engine(pooled.url, **options(pooled, **changed))
    other = create_engine(pooled.url, **options(pooled, statement_timeout="off"))
    with deadline(5), first.connect() as connection:
        assert connection.scalar(text("SHOW statement_timeout")) != "0"
    with other.connect() as connection, other.connect() as another:
        shown = {str(each.scalar(text("SHOW statement_timeout"))) for each in (connection, another)}
    for engine in (first, other):
        engine.dispose()
    return max(shown)


@pytest.mark.guarantee("PgBouncer's clients do not disturb each other")
def test_transaction_timeout_ends_with_its_transaction(pooled: Running) -> None:
    assert shown_to_the_next(pooled) == "0"
    engine = create_engine(pooled.url, **options(pooled))
    late = pytest.raises(DeadlineExceededError)
    with deadline(0.2), engine.connect() as connection, late:
        connection.execute(text("SELECT pg_sleep(5)"))
    engine.dispose()


@pytest.mark.control("PgBouncer's clients do not disturb each other")
def test_the_control_session_timeout_leaks_to_the_next_client(program: Program, behind: int) -> None:
    with running(program, behind) as pooler:
        assert shown_to_the_next(pooler, statement_timeout="session") == "5624ms"
