"""An exhausted pool: waiting, refusals, and the message that names the holders."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import psycopg
import pytest
import sqlalchemy
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from tenfold.database.pools import holders
from tenfold.database.pools.pool import PoolTimeoutError
from tenfold.database.pools.request_context import job_context
from tenfold.errors import PoolExhaustedError
from tests.database.support import pools
from tests.database.support.pools import line, options, pool
from tests.support.waiting import eventually

postgres_url, url, engine_of = pools.postgres_url, pools.url, pools.engine_of

# ------------------------------------------------------------------ who has them


NAME, NUMBER = "hunter2", 471_147_114_711  # values: one written into a statement, one sent beside it


def said_of_a_thread(engine: Engine) -> str:
    """The message of a timeout while a job has both connections."""
    with job_context("nightly report"), engine.connect() as first, engine.connect():
        first.execute(text(f"SELECT '{NAME}', :value"), {"value": NUMBER})
        with pytest.raises(sqlalchemy.exc.TimeoutError) as caught:
            engine.connect()  # mark: third
    return str(caught.value)


def said_of_a_task(engine: AsyncEngine) -> str:
    """The message of a timeout while another task has the only connection."""

    async def inner(taken: asyncio.Event) -> None:
        taken.set()
        await asyncio.sleep(60)  # mark: awaiting

    async def hold(taken: asyncio.Event) -> None:
        async with engine.connect():  # mark: taking
            await inner(taken)

    async def run() -> str:
        taken = asyncio.Event()
        task = asyncio.create_task(hold(taken))
        await taken.wait()
        with pytest.raises(sqlalchemy.exc.TimeoutError) as caught:
            await engine.connect()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
        await engine.dispose()
        return str(caught.value)

    return asyncio.run(run())


def told(said: str, *facts: str) -> list[str]:
    """The facts about the holders in a message."""
    return [fact for fact in facts if fact in said]


def shown(said: str) -> list[str]:
    """The values of the statement in a message."""
    return [value for value in (NAME, str(NUMBER)) if value in said]


OF_THE_THREAD = (
    "held by 2 × nightly report (longest 0.",
    "idle in a transaction",
    f"now at {line(__file__, 'third')}",
    "last SQL SELECT ",
)
OF_THE_TASK = (f"now at {line(__file__, 'awaiting')}", f"taken at {line(__file__, 'taking')}")


@pytest.mark.guarantee(
    "a timeout names the holders of the connections, and shows no value",
    pattern="pools",
    under="an exhausted pool, threads and tasks",
)
def test_timeout_names_the_holders(engine_of: Callable[..., Engine]) -> None:
    engine = engine_of()
    said = said_of_a_thread(engine)
    assert "none of the 2 of pool 127.0.0.1:" in said
    assert told(said, *OF_THE_THREAD) == list(OF_THE_THREAD)
    assert "last SQL SELECT ?, ?" in said
    assert shown(said) == []
    assert pool(engine).checkedout() == 0


@pytest.mark.guarantee("a timeout names the holders of the connections, and shows no value")
def test_holding_task_is_located_at_its_await(url: str) -> None:
    said = said_of_a_task(create_async_engine(url, **options(url, max_overflow=0)))
    assert told(said, *OF_THE_TASK) == list(OF_THE_TASK)


@pytest.mark.control("a timeout names the holders of the connections, and shows no value")
def test_the_control_sqlalchemys_own_pool_names_no_holder(url: str) -> None:
    engine = create_engine(url, pool_size=1, max_overflow=1, pool_timeout=0.2)
    said = said_of_a_thread(engine)
    engine.dispose()
    assert "limit of size 1 overflow 1 reached" in said
    assert told(said, *OF_THE_THREAD) == []
    said = said_of_a_task(create_async_engine(url, pool_size=1, max_overflow=0, pool_timeout=0.2))
    assert told(said, *OF_THE_TASK) == []


@pytest.mark.control("a timeout names the holders of the connections, and shows no value")
def test_the_control_without_fingerprints_values_in_statements_are_shown(
    engine_of: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holders, "fingerprint", lambda sql, limit: sql[:limit])
    assert shown(said_of_a_thread(engine_of())) == [NAME]


@pytest.mark.control("a timeout names the holders of the connections, and shows no value")
def test_the_control_sqlalchemys_own_errors_show_parameters(
    engine_of: Callable[..., Engine],
) -> None:
    with engine_of().connect() as connection, pytest.raises(sqlalchemy.exc.DBAPIError) as caught:
        connection.execute(text(f"SELECT '{NAME}', :value / 0"), {"value": NUMBER})
    assert shown(str(caught.value)) == [NAME, str(NUMBER)]


def test_pool_timeout_is_an_sqlalchemy_timeout_error(engine_of: Callable[..., Engine]) -> None:
    engine = engine_of(max_overflow=0, timeout_s=0.01)
    with engine.connect(), pytest.raises(sqlalchemy.exc.TimeoutError):
        engine.connect()


def test_holding_thread_is_located(engine_of: Callable[..., Engine]) -> None:
    engine, taken, done = engine_of(max_overflow=0), threading.Event(), threading.Event()

    def hold() -> None:
        with engine.connect():
            taken.set()
            done.wait()  # mark: holding

    thread = threading.Thread(target=hold, daemon=True)
    thread.start()
    taken.wait()
    with pytest.raises(PoolTimeoutError, match=f"now at {line(__file__, 'holding')}"):
        engine.connect()
    done.set()
    thread.join()


@pytest.mark.guarantee("waiters beyond the limit are refused at once", pattern="pools", under="a full queue")
@pytest.mark.parametrize("max_waiting", [0, 2])
def test_waiters_beyond_the_limit_are_refused_at_once(
    engine_of: Callable[..., Engine], max_waiting: int
) -> None:
    engine = engine_of(max_overflow=0, timeout_s=30, max_waiting=max_waiting)
    with engine.connect():
        threads = [threading.Thread(target=lambda: engine.connect().close()) for _ in range(max_waiting)]
        for thread in threads:
            thread.start()
        eventually(lambda: pool(engine).waiting == max_waiting)
        started = time.monotonic()
        with pytest.raises(PoolTimeoutError, match=f"{max_waiting} already wait for the 1 of pool"):
            engine.connect()
        assert time.monotonic() - started < 20  # and not the 30 of the queue
    for thread in threads:
        thread.join()
    assert pool(engine).waiting == 0
    engine.connect().close()  # and there is one again


@pytest.mark.control("waiters beyond the limit are refused at once")
def test_the_control_without_a_limit_all_wait(engine_of: Callable[..., Engine]) -> None:
    engine = engine_of(max_overflow=0, timeout_s=0.2, max_waiting=10)
    with engine.connect(), pytest.raises(PoolTimeoutError, match="came back in"):
        engine.connect()


class Failing:
    """Opens connections; the first attempt fails, but not before it is told to."""

    def __init__(self, url: str) -> None:
        self.url, self.attempts, self.fail = url, 0, threading.Event()

    def __call__(self) -> Any:
        self.attempts += 1
        if self.attempts == 1:
            self.fail.wait()
            raise psycopg.OperationalError("too many connections")
        return psycopg.connect(self.url)


def waited_s(engine: Engine, failing: Failing) -> float:
    """The seconds that a waiter waits after another connection could not be opened."""

    def first() -> None:
        with suppress(sqlalchemy.exc.OperationalError):
            engine.connect()

    got: list[float] = []

    def second() -> None:
        with engine.connect():
            got.append(time.monotonic())

    threads = [threading.Thread(target=first), threading.Thread(target=second)]
    threads[0].start()
    eventually(lambda: failing.attempts == 1)
    threads[1].start()
    waits: Any = engine.pool
    eventually(lambda: waits._pool.not_empty._waiters)
    failed = time.monotonic()
    failing.fail.set()
    for thread in threads:
        thread.join()
    engine.dispose()
    return got[0] - failed


@pytest.mark.guarantee(
    "a waiter is woken when a connection could not be opened", pattern="pools", under="a server that refuses"
)
def test_waiter_is_woken_when_a_connection_could_not_be_opened(url: str, postgres_url: str) -> None:
    failing = Failing(postgres_url)
    engine = create_engine(url, **options(url, max_overflow=0, timeout_s=60), creator=failing)
    assert waited_s(engine, failing) < 40


@pytest.mark.control("a waiter is woken when a connection could not be opened")
def test_the_control_sqlalchemys_own_pool_lets_waiters_sleep(url: str, postgres_url: str) -> None:
    failing = Failing(postgres_url)
    engine = create_engine(url, pool_size=1, max_overflow=0, pool_timeout=0.5, creator=failing)
    assert waited_s(engine, failing) > 0.3  # all of its time, less what had passed before


def crowd(url: str, *, held_s: float, **changed: Any) -> int:
    """The number of 10 × pool size clients at once, twice each, that got no connection."""

    async def run() -> int:
        size = 4
        engine = create_async_engine(url, **options(url, pool_size=size, max_overflow=2, **changed))
        refused = 0

        async def client() -> None:
            nonlocal refused
            for _ in range(2):
                try:
                    async with engine.connect() as connection:
                        await connection.execute(text("SELECT 1"))
                        await asyncio.sleep(held_s)
                except PoolExhaustedError:
                    refused += 1

        await asyncio.gather(*(client() for _ in range(10 * size)))
        await engine.dispose()
        return refused

    return asyncio.run(run())


@pytest.mark.guarantee(
    "ten times as many clients as the pool keeps connections all get one",
    pattern="pools",
    under="40 at once over a pool of 4 + 2",
)
def test_ten_times_as_many_clients_as_connections_all_get_one(url: str) -> None:
    assert crowd(url, held_s=0, timeout_s=30.0) == 0


@pytest.mark.control("ten times as many clients as the pool keeps connections all get one")
def test_the_control_clients_that_hold_on_exhaust_it(url: str) -> None:
    assert crowd(url, held_s=0.2, timeout_s=0.1) > 0
