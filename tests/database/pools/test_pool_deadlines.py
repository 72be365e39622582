"""A request's deadline bounds the wait for a connection and, on the server, its statements."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import create_async_engine

from tenfold.database import pool_options
from tenfold.database.drivers import SocketPoll
from tenfold.database.pools import statement_timeout
from tenfold.database.pools.pool import MonitoredPool, PoolDeadlineError
from tenfold.database.pools.statement_timeout import StatementTimeouts, enforce_deadlines
from tenfold.deadlines import deadline
from tenfold.errors import DeadlineExceededError
from tests.measure import conftest
from tests.support.waiting import eventually

postgres_url = conftest.postgres_url
SLEEP = text("SELECT pg_sleep(5)")
SHOWN = text("SHOW statement_timeout")
SETTING = text("SELECT setting::int FROM pg_settings WHERE name = 'statement_timeout'")


@pytest.fixture
def url(postgres_url: str) -> str:
    return postgres_url.replace("postgresql:", "postgresql+psycopg:")


@pytest.fixture
def engine_of(url: str) -> Iterator[Callable[..., Engine]]:
    engines: list[Engine] = []

    def make(**changed: Any) -> Engine:
        options = {"pool_size": 1, "max_overflow": 0, "metrics": False, "timeout_s": 30.0}
        engines.append(create_engine(url, **pool_options(url, **{**options, **changed})))
        return engines[-1]

    yield make
    for engine in engines:
        engine.dispose()


@given(st.floats(0, 100_000))
def test_step_is_at_most_a_third_longer(left_s: float) -> None:
    assert left_s * 1000 <= statement_timeout.step_ms(left_s) <= max(left_s * 1000, 1) * 1.34 + 1


@pytest.mark.parametrize(
    ("left_s", "step"),
    [(0, 1), (0.1, 100), (1, 1000), (4.99, 5624), (5, 5624), (10, 10_000), (10.001, 13_336)],
)
def test_the_steps(left_s: float, step: int) -> None:
    assert statement_timeout.step_ms(left_s) == step


@pytest.mark.guarantee(
    "no wait and no statement outlives its request",
    pattern="pools",
    under="a taken pool, `pg_sleep(5)` under 0.2 s",
)
def test_wait_for_a_connection_ends_with_the_deadline(engine_of: Callable[..., Engine]) -> None:
    engine = engine_of()
    started = time.monotonic()
    with engine.connect(), deadline(0.1), pytest.raises(PoolDeadlineError, match=r"in 0\.\d s.* held by 1"):
        engine.connect()
    assert time.monotonic() - started < 20


def test_expired_deadline_refuses_checkout_and_statement(
    engine_of: Callable[..., Engine],
) -> None:
    engine = engine_of()
    with deadline(0), pytest.raises(DeadlineExceededError):
        engine.connect()
    with engine.connect() as connection:
        with deadline(0), pytest.raises(DeadlineExceededError):
            connection.execute(text("SELECT 1"))
        assert connection.scalar(text("SELECT 1")) == 1
    assert isinstance(engine.pool, MonitoredPool)
    assert engine.pool.checkedout() == 0


@pytest.mark.guarantee("no wait and no statement outlives its request")
@pytest.mark.parametrize("statement_timeout", ["session", "transaction"])
def test_deadline_ends_a_statement_on_the_server(
    engine_of: Callable[..., Engine], statement_timeout: str
) -> None:
    engine = engine_of(statement_timeout=statement_timeout)
    late = pytest.raises(DeadlineExceededError, match="PostgreSQL ended a statement")
    with deadline(0.2), engine.connect() as connection, late:
        connection.execute(SLEEP)
    with engine.connect() as connection:  # the next checkout has time again
        assert connection.scalar(SHOWN) == "0"


@pytest.mark.control("no wait and no statement outlives its request")
def test_the_control_without_statement_timeout_the_server_works_on(engine_of: Callable[..., Engine]) -> None:
    engine = engine_of(statement_timeout="off")
    with deadline(0.2), engine.connect() as connection:
        assert connection.scalar(SHOWN) == "0"


def test_deadline_ends_a_statement_of_an_async_engine(url: str) -> None:
    async def run() -> None:
        engine = create_async_engine(url, **pool_options(url, metrics=False))
        with deadline(0.2):
            async with engine.connect() as connection:
                with pytest.raises(DeadlineExceededError, match="PostgreSQL ended a statement"):
                    await connection.execute(SLEEP)
        async with engine.connect() as connection:
            assert await connection.scalar(SHOWN) == "0"
        await engine.dispose()

    asyncio.run(run())


def test_own_statement_timeout_is_never_raised(engine_of: Callable[..., Engine]) -> None:
    engine = engine_of(connect_args={"options": "-c statement_timeout=700"})
    for seconds, shown in ((60, "700ms"), (0.5, "563ms"), (60, "700ms")):
        with deadline(seconds), engine.connect() as connection:
            assert connection.scalar(SHOWN) == shown


@pytest.mark.parametrize("statement_timeout", ["session", "transaction"])
def test_timeout_of_a_long_transaction_shrinks(
    engine_of: Callable[..., Engine], statement_timeout: str
) -> None:
    engine = engine_of(statement_timeout=statement_timeout)
    with deadline(60), engine.connect() as connection:
        connection.execute(text("SELECT 1"))
        with deadline(5):
            assert 0 < connection.scalar(SETTING) <= 5000
        connection.rollback()
        assert connection.scalar(SETTING) > 5000  # the next has what is left of the minute


def test_enforce_deadlines_leaves_monitored_pools_alone(engine_of: Callable[..., Engine]) -> None:
    engine = engine_of()
    enforce_deadlines(engine)
    assert len(engine.dialect.dispatch.do_execute) == 0  # the pool listens from its first connection on
    with engine.connect():
        assert len(engine.dialect.dispatch.do_execute) == 1


def test_the_same_deadline_costs_no_second_round_trip(engine_of: Callable[..., Engine]) -> None:
    engine = engine_of()
    with mock.patch.object(
        statement_timeout, "execute_outside_transaction", wraps=statement_timeout.execute_outside_transaction
    ) as asked:
        for _ in range(5):
            with deadline(5), engine.connect() as connection:
                connection.rollback()  # which would take a timeout back that was set within a transaction
                assert connection.scalar(SHOWN) == "5624ms"
    assert asked.call_count == 2  # the connection's own limit, and the timeout


@pytest.mark.guarantee("a dead connection is not handed out after idleness")
def test_idle_connection_that_broke_is_replaced_under_a_deadline(engine_of: Callable[..., Engine]) -> None:
    engine = engine_of()
    with engine.connect() as connection:
        pid = connection.scalar(text("SELECT pg_backend_pid()"))
    with engine_of().connect() as other:
        other.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})
    eventually(lambda: dead(engine))
    with deadline(5), engine.connect() as connection:
        assert connection.scalar(text("SELECT pg_backend_pid()")) != pid
    assert isinstance(engine.pool, MonitoredPool)
    assert (engine.pool.checkedout(), engine.pool.monitor.holders) == (0, {})


def dead(engine: Engine) -> bool:
    """Return whether the end of the backend has arrived on the one idle connection."""
    (record,) = engine.pool._pool.queue  # type: ignore[attr-defined]
    line = SocketPoll(record.dbapi_connection)
    return line.is_dead()


def test_new_connection_that_breaks_at_once_is_an_error(engine_of: Callable[..., Engine]) -> None:
    engine = engine_of()
    lost = psycopg.OperationalError("server closed the connection unexpectedly")
    engine.connect().close()
    engine.dispose()

    def set_session(_: Any, connection: Any, *__: Any) -> None:
        connection.close()
        raise lost

    with (
        deadline(5),
        mock.patch.object(StatementTimeouts, "_set_session", set_session),
        pytest.raises(OperationalError),
    ):
        engine.connect()
    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]


def test_autocommit_timeout_follows_each_statements_deadline(engine_of: Callable[..., Engine]) -> None:
    engine = engine_of().execution_options(isolation_level="AUTOCOMMIT")
    with deadline(60), engine.connect() as connection:
        assert connection.scalar(SHOWN) == "74990ms"
        with deadline(5):
            assert connection.scalar(SHOWN) == "5624ms"
    with deadline(5):
        connection = engine.connect()
    with connection:
        assert connection.scalar(SHOWN) == "0"


def test_transaction_outside_of_the_deadline_of_its_checkout_has_no_timeout(
    engine_of: Callable[..., Engine],
) -> None:
    engine = engine_of(connect_args={"options": "-c statement_timeout=7000"})
    with deadline(5):
        connection = engine.connect()
    with connection:
        assert connection.scalar(SHOWN) == "7s"
        connection.rollback()
        with deadline(2):  # less than half of what the session carries
            assert 0 < connection.scalar(SETTING) <= 2000
