"""The monitored pool over a real PostgreSQL: options, metrics, lifetimes of connections."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import sqlalchemy
from prometheus_client import CollectorRegistry
from sqlalchemy import Engine, create_engine, text

from tenfold.database import pool_options
from tenfold.database.pools.pool import MonitoredPool, PoolTimeoutError
from tenfold.database.pools.request_context import job_context
from tests.database.support import pools
from tests.database.support.pools import kinds, pool
from tests.support.waiting import eventually

postgres_url, url, engine_of = pools.postgres_url, pools.url, pools.engine_of


# ------------------------------------------------------------------ the defaults


def test_the_options_of_a_pool(url: str) -> None:
    made = create_engine(url, **pool_options(url, metrics=False))
    assert isinstance(made.pool, MonitoredPool)
    assert (made.pool.size(), made.pool._max_overflow, made.pool.timeout()) == (20, 10, 5.0)
    assert (made.pool._recycle, made.pool._pool.use_lifo) == (3600, True)
    assert made.pool.monitor.options.max_waiting == 300
    assert made.pool.monitor.options.name == url.rpartition("@")[2]


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgresql+psycopg://h/d", {"connect_timeout": 10, "fallback_application_name": "tenfold"}),
        ("postgresql+psycopg2://h/d", {"connect_timeout": 10, "fallback_application_name": "tenfold"}),
        ("postgresql+psycopg://h/d?connect_timeout=2", {"fallback_application_name": "tenfold"}),
        ("postgresql+asyncpg://h/d?timeout=2", {"fallback_application_name": "tenfold"}),
        ("sqlite:///x.db", {}),
    ],
)
def test_options_of_each_driver(url: str, expected: dict[str, Any]) -> None:
    arguments = pool_options(url, metrics=False)["connect_args"]
    assert callable(arguments.pop("async_creator_fn", None)) is ("asyncpg" in url)
    assert arguments == expected


def test_server_sees_the_application_name(engine_of: Callable[..., Engine]) -> None:
    engine = engine_of(application_name="shop " + "é" * 40, connect_args={"options": "-c search_path=x"})
    with engine.connect() as connection:
        assert connection.scalar(text("SHOW application_name")).startswith("shop ")
        assert connection.scalar(text("SHOW search_path")) == "x"


# ------------------------------------------------------------------ figures


def test_pool_metrics(engine_of: Callable[..., Engine]) -> None:
    registry = CollectorRegistry()
    engine = engine_of(name="shop", metrics=True, registry=registry, max_waiting=0)
    with job_context("orders"), engine.connect():
        pass

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(name, {"db_client_connection_pool_name": "shop", **labels})

    with engine.connect(), engine.connect():
        with pytest.raises(PoolTimeoutError):
            engine.connect()
        pool(engine).update()
        assert value("db_client_connection_count", db_client_connection_state="used") == 2
        assert value("tenfold_pool_overflow") == 1
    pool(engine).update()
    assert value("db_client_connection_count", db_client_connection_state="used") == 0
    assert value("db_client_connection_count", db_client_connection_state="idle") == 1
    assert (value("db_client_connection_idle_max"), value("db_client_connection_max")) == (1, 2)
    assert value("db_client_connection_pending_requests") == 0
    assert (value("tenfold_pool_refused_total"), value("db_client_connection_timeouts_total")) == (1, 0)
    assert value("db_client_connection_use_time_seconds_count") == 3
    assert value("db_client_connection_wait_time_seconds_count") == 3


def test_monitor_thread_updates_pools(
    engine_of: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of(leak_after_s=0.0)
    with engine.connect():
        eventually(lambda: "held too long" in kinds(engine))


# ------------------------------------------------------------------ a pool's life


def test_connection_is_pinged_only_after_idleness(engine_of: Callable[..., Engine]) -> None:
    def pings(ping_after_s: float) -> int:
        engine = engine_of(ping_after_s=ping_after_s)
        with mock.patch.object(engine.dialect, "do_ping", wraps=engine.dialect.do_ping) as ping:
            for _ in range(3):
                engine.connect().close()
        return ping.call_count

    assert (pings(30.0), pings(0.0)) == (0, 2)


def pids_around_an_end(engine: Engine, other: Engine) -> tuple[int, int]:
    """The pid of an idle connection that the server then ends, and that of the next checkout."""
    pid = text("SELECT pg_backend_pid()")
    with engine.connect() as connection:
        before = connection.scalar(pid)
    with other.connect() as connection:
        end = text("SELECT pg_terminate_backend(:pid, 10000)")  # awaits it
        assert connection.scalar(end, {"pid": before})
    with engine.connect() as connection:
        return before, connection.scalar(pid)


@pytest.mark.guarantee(
    "a dead connection is not handed out after idleness", pattern="pools", under="a backend that was ended"
)
def test_a_connection_that_the_server_ended_is_replaced(engine_of: Callable[..., Engine]) -> None:
    before, after = pids_around_an_end(engine_of(ping_after_s=0.0), engine_of())
    assert before != after


@pytest.mark.control("a dead connection is not handed out after idleness")
def test_the_control_without_the_ping_a_dead_connection_is_handed_out(
    engine_of: Callable[..., Engine],
) -> None:
    with pytest.raises(sqlalchemy.exc.OperationalError, match="terminating connection"):
        pids_around_an_end(engine_of(ping_after_s=3600.0), engine_of())


def test_connection_beyond_its_lifetime_is_replaced(engine_of: Callable[..., Engine]) -> None:
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


def test_dispose_keeps_track_of_connections_that_are_out(engine_of: Callable[..., Engine]) -> None:
    engine = engine_of()
    connection = engine.connect()
    engine.dispose()
    connection.execute(text("SELECT 1"))
    assert [holder.sql for holder in pool(engine).monitor.holders.values()] == ["SELECT 1"]
    connection.close()
    assert pool(engine).monitor.holders == {}
    engine.connect().close()


PROBED_LATER = """
from pathlib import Path
from sqlalchemy import create_engine, text
from tenfold.database import pool_options
from tenfold.measure.probe import sqlalchemy
from tenfold.measure.probe.recorder import Recorder
engine = create_engine("sqlite://", **pool_options("sqlite://", metrics=False))
engine.connect().close()
recorder = Recorder(Path.cwd())
sqlalchemy.install(recorder)
recorder.start()
with engine.connect() as connection:
    connection.execute(text("SELECT 1"))
print(sorted(text.fingerprint for text in recorder.drain(1.0).statements), len(sqlalchemy.drain_pools()))
"""


def test_a_probe_that_comes_later_sees_its_statements() -> None:
    done = subprocess.run([sys.executable, "-c", PROBED_LATER], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "['ROLLBACK', 'SELECT ?'] 1", done.stderr


def test_two_connections_in_a_worker_thread_are_no_finding(engine_of: Callable[..., Engine]) -> None:
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
