"""Timeouts that a session carries in AUTOCOMMIT: when they are set, changed and put back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import psycopg
import pytest
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import create_async_engine

from tenfold.database.pools import statement_timeout
from tenfold.database.pools.statement_timeout import enforce_deadlines
from tenfold.deadlines import deadline
from tenfold.errors import DeadlineExceededError
from tests.measure.conftest import postgres_url
from tests.support.waiting import eventually

__all__ = ["postgres_url"]  # the fixture
SHOWN = text("show statement_timeout")
SLEEP = text("select pg_sleep(5)")
PID = text("select pg_backend_pid()")


@pytest.fixture
def url(postgres_url: str) -> str:
    return postgres_url.replace("postgresql:", "postgresql+psycopg:")


@pytest.fixture
def engine_of(url: str) -> Iterator[Callable[..., Engine]]:
    engines: list[Engine] = []

    def make(*, level: str | None = "AUTOCOMMIT", options: str = "", **enforced: Any) -> Engine:
        one = {"pool_size": 1, "max_overflow": 0, "connect_args": {"options": options}}
        engines.append(create_engine(url, **one, **({"isolation_level": level} if level else {})))
        enforce_deadlines(engines[-1], **enforced)
        return engines[-1]

    yield make
    for engine in engines:
        engine.dispose()


def shown(engine: Engine, within_s: float | None = None, **options: Any) -> str:
    def show() -> str:
        with engine.connect() as connection:
            return str(connection.execution_options(**options).scalar(SHOWN))

    if within_s is None:
        return show()
    with deadline(within_s):
        return show()


def test_connection_serves_on_after_a_deadline_ended_its_statement(engine_of: Callable[..., Engine]) -> None:
    engine = engine_of()
    with engine.connect() as connection:
        pid = connection.scalar(PID)
    with deadline(0.1), pytest.raises(DeadlineExceededError), engine.connect() as connection:
        connection.execute(SLEEP)
    with engine.connect() as connection:
        assert connection.scalar(PID) == pid
        assert connection.scalar(SHOWN) == "0"


@pytest.mark.guarantee("so in AUTOCOMMIT, where a router reads; the next reader has all the time again")
def test_each_checkout_gets_the_step_of_its_deadline(engine_of: Callable[..., Engine]) -> None:
    engine = engine_of()
    found = [shown(engine, within_s) for within_s in (None, 5, 0.5, None, 60, 5)]
    assert found == ["0", "5624ms", "563ms", "0", "74990ms", "5624ms"]


def test_matching_step_costs_no_round_trip(engine_of: Callable[..., Engine]) -> None:
    engine = engine_of()
    with mock.patch.object(
        statement_timeout, "execute_outside_transaction", wraps=statement_timeout.execute_outside_transaction
    ) as asked:
        assert shown(engine) == "0"
        assert asked.call_count == 0  # without a deadline
        for _ in range(5):
            assert shown(engine, 5) == "5624ms"
        assert asked.call_count == 2  # the connection's own limit, and the timeout
        for _ in range(5):
            assert shown(engine) == "0"
        assert asked.call_count == 3


@pytest.mark.parametrize(
    ("own", "most_s", "within_s", "expected"),
    [("700ms", None, 60, "700ms"), ("700ms", None, 0.5, "563ms"), ("0", 1.5, 60, "1500ms"),
     ("0", 1.5, 0.5, "563ms"), ("700ms", 1.5, 60, "700ms"), ("2s", 1.5, 60, "1500ms")],
)  # fmt: skip
def test_own_and_engine_limits_are_never_raised(
    engine_of: Callable[..., Engine], own: str, most_s: float | None, within_s: float, expected: str
) -> None:
    engine = engine_of(options=f"-c statement_timeout={own}", **({"most_s": most_s} if most_s else {}))
    assert shown(engine, within_s) == expected
    assert shown(engine) == own


def test_statement_ended_by_most_s_is_no_deadline_error(engine_of: Callable[..., Engine]) -> None:
    engine = engine_of(most_s=0.1)
    with (
        deadline(60),
        pytest.raises(OperationalError, match="statement timeout"),
        engine.connect() as connection,
    ):
        connection.execute(SLEEP)


def test_statements_of_one_connection_have_their_own_deadlines(
    engine_of: Callable[..., Engine],
) -> None:
    with engine_of().connect() as connection:
        assert connection.scalar(SHOWN) == "0"
        with deadline(60):
            assert connection.scalar(SHOWN) == "74990ms"
            with deadline(0.5):
                assert connection.scalar(SHOWN) == "563ms"
            assert connection.scalar(SHOWN) == "74990ms"
        assert connection.scalar(SHOWN) == "0"
        with deadline(0), pytest.raises(DeadlineExceededError):
            connection.scalar(SHOWN)


@pytest.mark.guarantee("so in AUTOCOMMIT, where a router reads; the next reader has all the time again")
def test_timeouts_do_not_leak_between_autocommit_and_transactions(engine_of: Callable[..., Engine]) -> None:
    engine = engine_of(level=None)
    autocommit = {"isolation_level": "AUTOCOMMIT"}
    assert shown(engine, 5, **autocommit) == "5624ms"
    assert shown(engine) == "0"
    assert shown(engine, 5, **autocommit) == "5624ms"
    assert 0 < int(shown(engine, 0.9).removesuffix("ms")) <= 900  # exact: of its transaction
    assert shown(engine, **autocommit) == "0"
    with engine.connect() as connection:
        with deadline(5):
            assert connection.execution_options(**autocommit).scalar(SHOWN) == "5624ms"
        connection.rollback()
        connection.execution_options(isolation_level="READ COMMITTED")
        assert connection.scalar(SHOWN) == "0"
    transactions = {"isolation_level": "REPEATABLE READ"}
    of_autocommit = engine_of()
    assert shown(of_autocommit, 5) == "5624ms"
    assert shown(of_autocommit, **transactions) == "0"
    assert 0 < int(shown(of_autocommit, 0.9, **transactions).removesuffix("ms")) <= 900
    assert shown(of_autocommit) == "0"


def test_autocommit_false_leaves_the_session_alone(engine_of: Callable[..., Engine]) -> None:
    engine = engine_of(autocommit=False)
    assert shown(engine, 5) == "0"
    with deadline(0), pytest.raises(DeadlineExceededError):
        shown(engine)


def test_a_connection_that_the_server_closed_is_replaced(
    engine_of: Callable[..., Engine], postgres_url: str
) -> None:
    engine = engine_of()
    with engine.connect() as connection:
        pid = connection.scalar(PID)
    with psycopg.connect(postgres_url) as other:
        other.execute("select pg_terminate_backend(%s, 5000)", [pid])
    with deadline(5), engine.connect() as connection:  # found out by the SET, before any statement
        assert connection.scalar(SHOWN) == "5624ms"
        pid = connection.scalar(PID)
        with psycopg.connect(postgres_url) as other:
            other.execute("select pg_terminate_backend(%s, 5000)", [pid])
        with deadline(1), pytest.raises(OperationalError) as caught:  # in the middle: as without deadlines
            connection.scalar(SHOWN)
        assert caught.value.connection_invalidated


def hangs(url: str) -> bool:
    with psycopg.connect(url.replace("+psycopg", "")) as connection:
        query = "select 1 from pg_stat_activity where state = 'active' and query = 'select pg_sleep(20)'"
        return connection.execute(query).fetchone() is not None


@pytest.mark.guarantee("so in AUTOCOMMIT, where a router reads; the next reader has all the time again")
@pytest.mark.parametrize("taken", [True, False])
def test_connection_cancelled_during_set_is_discarded(url: str, taken: bool) -> None:
    async def run() -> None:
        engine = create_async_engine(url, isolation_level="AUTOCOMMIT", pool_size=1, max_overflow=0)
        enforce_deadlines(engine)
        async with engine.connect() as connection:
            pid = await connection.scalar(PID)

        async def use() -> None:
            async with engine.connect() as connection:
                if not taken:
                    await connection.scalar(PID)
                with deadline(5):
                    await connection.scalar(SHOWN)

        async def use_at_once() -> None:
            with deadline(5):
                await use()

        def hanging(connection: Any, statement: str) -> Any:
            return real(connection, "select pg_sleep(20)" if statement.startswith("SET") else statement)

        real = statement_timeout.execute_outside_transaction
        with mock.patch.object(statement_timeout, "execute_outside_transaction", hanging):
            task = asyncio.create_task(use_at_once() if taken else use())
            await asyncio.to_thread(eventually, lambda: hangs(url))
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        async with engine.connect() as connection:
            assert await connection.scalar(SHOWN) == "0"
            assert await connection.scalar(PID) != pid
        assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
        await engine.dispose()

    asyncio.run(run())


@pytest.mark.parametrize(
    ("carried_ms", "left_s", "fits"),
    [
        (None, None, True),
        (5624, None, False),  # an earlier deadline's
        (None, 5.0, False),
        (5624, 5.0, True),
        (5624, 2.9, True),
        (5624, 2.8, False),  # more than twice what is left
        (563, 5.0, False),  # too short
        (1, 0.0, True),
    ],
)
def test_session_step_that_fits_a_deadline(carried_ms: int | None, left_s: float | None, fits: bool) -> None:
    assert statement_timeout.fits(carried_ms, left_s) is fits
