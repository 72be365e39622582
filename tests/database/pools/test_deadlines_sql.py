"""enforce_deadlines on a real PostgreSQL: statements and waits for a connection end in time."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from tenfold.database.pools.statement_timeout import enforce_deadlines
from tenfold.deadlines import deadline
from tenfold.errors import DeadlineExceededError
from tests.measure.conftest import postgres_url
from tests.support.waiting import eventually

__all__ = ["postgres_url"]  # the fixture
SLEEP = text("SELECT pg_sleep(:seconds) /* deadline test */")


@pytest.fixture
def url(postgres_url: str) -> str:
    return postgres_url.replace("postgresql:", "postgresql+psycopg:")


@pytest.fixture
def engine(url: str) -> Iterator[Engine]:
    made = create_engine(url, pool_size=1, max_overflow=0, pool_timeout=20)
    enforce_deadlines(made)
    yield made
    made.dispose()


def sleeping(postgres_url: str) -> int:
    """The number of backends that run the test's sleep."""
    with psycopg.connect(postgres_url) as connection:
        query = (
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE state = 'active' AND query LIKE '%deadline test%' AND pid <> pg_backend_pid()"
        )
        row = connection.execute(query).fetchone()
        assert row is not None
        return int(row[0])


def timeout_now(connection: Any) -> float:
    """statement_timeout in seconds, 0 for none."""
    query = text("SELECT setting FROM pg_settings WHERE name = 'statement_timeout'")
    return int(connection.execute(query).scalar_one()) / 1000


@pytest.mark.guarantee(
    "the server ends a statement at its request's deadline",
    pattern="overload",
    under="`pg_sleep(30)` under 0.2 s",
)
def test_deadline_ends_a_statement_on_the_server_in_a_transaction(engine: Engine, postgres_url: str) -> None:
    started = time.monotonic()
    with deadline(0.2), pytest.raises(DeadlineExceededError), engine.connect() as connection:
        connection.execute(SLEEP, {"seconds": 30})
    assert time.monotonic() - started < 15
    assert sleeping(postgres_url) == 0


@pytest.mark.control("the server ends a statement at its request's deadline")
def test_the_control_without_enforced_deadlines_it_goes_on(url: str, postgres_url: str) -> None:
    bare = create_engine(url)
    with deadline(0.01), bare.connect() as connection:
        connection.execute(SLEEP, {"seconds": 0.3})  # far beyond the deadline
    bare.dispose()


def test_timeout_ends_with_its_transaction(engine: Engine) -> None:
    with deadline(5), engine.connect() as connection:
        assert 0 < timeout_now(connection) <= 5
    with engine.connect() as connection:
        assert timeout_now(connection) == 0


def test_connection_serves_on_after_its_statement_was_ended(engine: Engine) -> None:
    with deadline(0.05), contextlib.suppress(DeadlineExceededError), engine.connect() as connection:
        connection.execute(SLEEP, {"seconds": 30})
    with engine.connect() as connection:
        assert connection.execute(text("SELECT 1")).scalar_one() == 1


def test_timeout_of_a_long_transaction_shrinks(engine: Engine) -> None:
    with engine.connect() as connection, deadline(60):
        assert 30 < timeout_now(connection) <= 60
        with deadline(10):
            assert timeout_now(connection) <= 10


def test_most_s_bounds_what_is_left(url: str) -> None:
    engine = create_engine(url)
    enforce_deadlines(engine, most_s=1.5)
    with deadline(60), engine.connect() as connection:
        assert timeout_now(connection) == 1.5
    engine.dispose()


def test_no_statement_begins_after_the_deadline(engine: Engine) -> None:
    with engine.connect() as connection:
        connection.execute(text("SELECT 1"))
        with deadline(0), pytest.raises(DeadlineExceededError):
            connection.execute(text("SELECT 1"))


@pytest.mark.parametrize("disposed", [False, True])
def test_waiting_for_a_connection_ends_with_the_deadline(engine: Engine, disposed: bool) -> None:
    if disposed:
        engine.dispose()
    with engine.connect():
        started = time.monotonic()
        with deadline(0.1), pytest.raises(DeadlineExceededError), engine.connect():
            pass
        assert time.monotonic() - started < 15  # pool_timeout is 20


def test_other_errors_stay_what_they_are(engine: Engine) -> None:
    with deadline(60), engine.connect() as connection:
        with pytest.raises(Exception, match="does not exist") as caught:
            connection.execute(text("SELECT nothing FROM nowhere"))
        assert not isinstance(caught.value, DeadlineExceededError)


@pytest.mark.guarantee("the server ends a statement at its request's deadline")
def test_asynchronous_engines(url: str, postgres_url: str) -> None:
    async def test(engine: AsyncEngine) -> None:
        enforce_deadlines(engine)
        with deadline(0.2), pytest.raises(DeadlineExceededError):
            async with engine.connect() as connection:
                await connection.execute(SLEEP, {"seconds": 30})
        async with engine.connect() as connection:
            assert await connection.run_sync(timeout_now) == 0
            with deadline(0.1), pytest.raises(DeadlineExceededError):
                async with engine.connect():
                    pass
        await engine.dispose()

    asyncio.run(test(create_async_engine(url, pool_size=1, max_overflow=0, pool_timeout=20)))
    eventually(lambda: sleeping(postgres_url) == 0)


def test_other_databases_refuse_statements_after_the_deadline() -> None:
    engine = create_engine("sqlite://")
    enforce_deadlines(engine)
    with engine.connect() as connection, deadline(60):
        assert connection.execute(text("SELECT 1")).scalar_one() == 1
        with deadline(0), pytest.raises(DeadlineExceededError):
            connection.execute(text("SELECT 1"))
