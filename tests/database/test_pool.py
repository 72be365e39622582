"""The watched pool over a real PostgreSQL, sync and async: who holds, who waits, what is found."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from unittest import mock

import psycopg
import pytest
import sqlalchemy
from prometheus_client import CollectorRegistry
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from tenfold.database import pool_options
from tenfold.database.pool import PoolTimeoutError, WatchedPool
from tenfold.database.visits import visiting
from tenfold.errors import PoolExhaustedError
from tests.database import pools
from tests.database.pools import kinds, line, options, pool
from tests.measure import conftest

postgres_url, url, engine_of = pools.postgres_url, pools.url, pools.engine_of


# ------------------------------------------------------------------ the defaults


def test_the_options_of_a_pool(url: str) -> None:
    made = create_engine(url, **pool_options(url, metrics=False))
    assert isinstance(made.pool, WatchedPool)
    assert (made.pool.size(), made.pool._max_overflow, made.pool.timeout()) == (20, 10, 5.0)
    assert (made.pool._recycle, made.pool._pool.use_lifo) == (3600, True)
    assert made.pool.watch.watching.max_waiting == 300
    assert made.pool.watch.watching.name == url.rpartition("@")[2]


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgresql+psycopg://h/d", {"connect_timeout": 10, "application_name": "tenfold"}),
        ("postgresql+asyncpg://h/d", {"timeout": 10, "server_settings": {"application_name": "tenfold"}}),
        ("sqlite:///x.db", {}),
    ],
)
def test_how_a_driver_is_told(url: str, expected: dict[str, Any]) -> None:
    assert pool_options(url, metrics=False)["connect_args"] == expected


def test_the_server_sees_who_connects(engine_of: Callable[..., Engine]) -> None:
    engine = engine_of(application_name="shop " + "é" * 40, connect_args={"options": "-c search_path=x"})
    with engine.connect() as connection:
        assert connection.scalar(text("SHOW application_name")).startswith("shop ")
        assert connection.scalar(text("SHOW search_path")) == "x"


# ------------------------------------------------------------------ exhaustion


def test_a_timeout_says_who_holds_the_connections(engine_of: Callable[..., Engine]) -> None:
    engine = engine_of()
    with visiting("nightly report"), engine.connect() as first, engine.connect():
        first.execute(text("SELECT 'hunter2', :value"), {"value": 4711})
        with pytest.raises(PoolExhaustedError) as caught:
            engine.connect()  # mark: third
    said = str(caught.value)
    assert "none of the 2 of pool 127.0.0.1:" in said
    assert "held by 2 × nightly report (longest 0." in said
    assert "idle in a transaction" in said
    assert f"now at {line(__file__, 'third')}" in said
    assert "last SQL SELECT ?, ?" in said
    assert "hunter2" not in said
    assert "4711" not in said
    assert pool(engine).checkedout() == 0


def test_what_catches_sqlalchemys_timeout_goes_on_catching_it(engine_of: Callable[..., Engine]) -> None:
    engine = engine_of(max_overflow=0, timeout_s=0.01)
    with engine.connect(), pytest.raises(sqlalchemy.exc.TimeoutError):
        engine.connect()


def test_the_holder_of_another_thread_is_found_where_it_is_now(engine_of: Callable[..., Engine]) -> None:
    engine, taken, done = engine_of(max_overflow=0), threading.Event(), threading.Event()

    def hold() -> None:
        with engine.connect():
            taken.set()
            done.wait()  # mark: holding

    thread = threading.Thread(target=hold)
    thread.start()
    taken.wait()
    with pytest.raises(PoolTimeoutError, match=f"now at {line(__file__, 'holding')}"):
        engine.connect()
    done.set()
    thread.join()


def test_the_holding_task_is_found_where_it_awaits(url: str) -> None:
    async def inner(taken: asyncio.Event) -> None:
        taken.set()
        await asyncio.sleep(60)  # mark: awaiting

    async def hold(engine: AsyncEngine, taken: asyncio.Event) -> None:
        async with engine.connect():  # mark: taking
            await inner(taken)

    async def run() -> str:
        engine = create_async_engine(url, **options(url, max_overflow=0))
        taken = asyncio.Event()
        task = asyncio.create_task(hold(engine, taken))
        await taken.wait()
        with pytest.raises(PoolTimeoutError) as caught:
            await engine.connect()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert pool(engine).checkedout() == 0
        await engine.dispose()
        return str(caught.value)

    said = asyncio.run(run())
    assert f"now at {line(__file__, 'awaiting')}" in said
    assert f"taken at {line(__file__, 'taking')}" in said


@pytest.mark.parametrize("max_waiting", [0, 2])
def test_too_many_who_wait_are_refused_at_once(engine_of: Callable[..., Engine], max_waiting: int) -> None:
    engine = engine_of(max_overflow=0, timeout_s=30, max_waiting=max_waiting)
    with engine.connect():
        threads = [threading.Thread(target=lambda: engine.connect().close()) for _ in range(max_waiting)]
        for thread in threads:
            thread.start()
        conftest.until(lambda: pool(engine).waiting == max_waiting)
        started = time.monotonic()
        with pytest.raises(PoolTimeoutError, match=f"{max_waiting} already wait for the 1 of pool"):
            engine.connect()
        assert time.monotonic() - started < 20  # and not the 30 of the queue
    for thread in threads:
        thread.join()
    assert pool(engine).waiting == 0
    engine.connect().close()  # and there is one again


def test_the_control_without_a_limit_everyone_waits(engine_of: Callable[..., Engine]) -> None:
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
    """How long somebody waits on after the connection before could not be opened."""

    def first() -> None:
        with suppress(sqlalchemy.exc.OperationalError):
            engine.connect()

    got: list[float] = []

    def second() -> None:
        with engine.connect():
            got.append(time.monotonic())

    threads = [threading.Thread(target=first), threading.Thread(target=second)]
    threads[0].start()
    conftest.until(lambda: failing.attempts == 1)
    threads[1].start()
    waits: Any = engine.pool
    conftest.until(lambda: waits._pool.not_empty._waiters)
    failed = time.monotonic()
    failing.fail.set()
    for thread in threads:
        thread.join()
    engine.dispose()
    return got[0] - failed


def test_whoever_waits_is_woken_when_a_connection_could_not_be_opened(url: str, postgres_url: str) -> None:
    failing = Failing(postgres_url)
    engine = create_engine(url, **options(url, max_overflow=0, timeout_s=60), creator=failing)
    assert waited_s(engine, failing) < 40


def test_the_control_sqlalchemys_own_pool_lets_them_wait(url: str, postgres_url: str) -> None:
    failing = Failing(postgres_url)
    engine = create_engine(url, pool_size=1, max_overflow=0, pool_timeout=0.5, creator=failing)
    assert waited_s(engine, failing) > 0.3  # all of its time, less what had passed before


def crowd(url: str, *, held_s: float, **changed: Any) -> int:
    """How many of 10 × pool size clients, all at once, twice each, are left without a connection."""

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


def test_ten_times_as_many_clients_as_connections_all_get_one(url: str) -> None:
    assert crowd(url, held_s=0, timeout_s=30.0) == 0


def test_the_control_clients_that_hold_on_exhaust_it(url: str) -> None:
    assert crowd(url, held_s=0.2, timeout_s=0.1) > 0


# ------------------------------------------------------------------ figures


def test_what_prometheus_reads(engine_of: Callable[..., Engine]) -> None:
    registry = CollectorRegistry()
    engine = engine_of(name="shop", metrics=True, registry=registry, max_waiting=0)
    with visiting("orders"), engine.connect():
        pass

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(name, {"db_client_connection_pool_name": "shop", **labels})

    with engine.connect(), engine.connect():
        with pytest.raises(PoolTimeoutError):
            engine.connect()
        pool(engine).look()
        assert value("db_client_connection_count", db_client_connection_state="used") == 2
        assert value("tenfold_pool_overflow") == 1
    pool(engine).look()
    assert value("db_client_connection_count", db_client_connection_state="used") == 0
    assert value("db_client_connection_count", db_client_connection_state="idle") == 1
    assert (value("db_client_connection_idle_max"), value("db_client_connection_max")) == (1, 2)
    assert value("db_client_connection_pending_requests") == 0
    assert (value("tenfold_pool_refused_total"), value("db_client_connection_timeouts_total")) == (1, 0)
    assert value("db_client_connection_use_time_seconds_count", route="orders") == 1
    assert value("db_client_connection_wait_time_seconds_count", route="other") == 2


def test_the_watcher_looks_by_itself(
    engine_of: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of(leak_after_s=0.0)
    with engine.connect():
        conftest.until(lambda: "held too long" in kinds(engine))


# ------------------------------------------------------------------ a pool's life


def test_a_connection_is_tried_only_after_idleness(engine_of: Callable[..., Engine]) -> None:
    def pings(ping_after_s: float) -> int:
        engine = engine_of(ping_after_s=ping_after_s)
        with mock.patch.object(engine.dialect, "do_ping", wraps=engine.dialect.do_ping) as ping:
            for _ in range(3):
                engine.connect().close()
        return ping.call_count

    assert (pings(30.0), pings(0.0)) == (0, 2)


def test_a_connection_that_the_server_ended_is_replaced(engine_of: Callable[..., Engine]) -> None:
    engine = engine_of(ping_after_s=0.0)
    with engine.connect() as connection:
        pid = connection.scalar(text("SELECT pg_backend_pid()"))
    with engine_of().connect() as other:
        other.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT pg_backend_pid()")) != pid


def test_a_connection_beyond_its_life_is_replaced(engine_of: Callable[..., Engine]) -> None:
    engine = engine_of(recycle_s=1000.0)

    def pid(age_s: float) -> int:
        with engine.connect() as connection:
            record: Any = connection.connection._connection_record  # type: ignore[attr-defined]
            record.starttime = time.time() - age_s
            return int(connection.scalar(text("SELECT pg_backend_pid()")))

    first = pid(790)  # how old it is when it comes back
    second = pid(1001)
    assert second == first
    assert pid(0) != second


def test_disposing_leaves_connections_known_that_are_out(engine_of: Callable[..., Engine]) -> None:
    engine = engine_of()
    connection = engine.connect()
    engine.dispose()
    connection.execute(text("SELECT 1"))
    assert [holder.sql for holder in pool(engine).watch.held.values()] == ["SELECT 1"]
    connection.close()
    assert pool(engine).watch.held == {}
    engine.connect().close()


PROBED_LATER = """
from pathlib import Path
from sqlalchemy import create_engine, text
from tenfold.database import pool_options
from tenfold.measure import sqlalchemy
from tenfold.measure.recorder import Recorder
engine = create_engine("sqlite://", **pool_options("sqlite://", metrics=False))
engine.connect().close()
recorder = Recorder(Path.cwd())
sqlalchemy.install(recorder)
recorder.start()
with engine.connect() as connection:
    connection.execute(text("SELECT 1"))
print(sorted(text.fingerprint for text in recorder.drain(1.0).statements), len(sqlalchemy.pools()))
"""


def test_a_probe_that_comes_later_sees_its_statements() -> None:
    done = subprocess.run([sys.executable, "-c", PROBED_LATER], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "['ROLLBACK', 'SELECT ?'] 1", done.stderr


def test_threads_of_sync_endpoints_are_not_taken_for_requests(engine_of: Callable[..., Engine]) -> None:
    engine = engine_of(max_overflow=9)

    def in_thread(name: str) -> None:
        def both() -> None:
            with engine.connect(), engine.connect():
                pass

        thread = threading.Thread(target=both, name=name)
        thread.start()
        thread.join()

    in_thread("AnyIO worker thread")
    assert kinds(engine) == set()
    in_thread("a worker of ours")
    assert kinds(engine) == {"two connections at once"}
