"""PostgreSQL's sessions, on a real one: who waits for a lock, and what the holder does."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import psycopg
import pytest

from tenfold.measure.postgresql.sessions import DatabaseStats, DatabaseView, Session, summarize
from tests.support.waiting import eventually


@pytest.fixture
def table(postgres_url: str) -> Iterator[str]:
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute("DROP TABLE IF EXISTS watched")
        connection.execute("CREATE TABLE watched (id int PRIMARY KEY, visits int)")
        connection.execute("INSERT INTO watched VALUES (1, 0)")
        yield postgres_url
        connection.execute("DROP TABLE watched")


def watch(view: DatabaseView, wanted: str) -> DatabaseStats:
    start = time.monotonic()
    eventually(lambda: view.during([(start, time.monotonic())]).sessions.get(wanted, 0) > 0.3)
    return view.during([(start, time.monotonic())])


UPDATE = "UPDATE watched SET visits = visits + 1 WHERE id = 1"
SHOWN = "UPDATE watched SET visits = visits + ? WHERE id = ?"


@pytest.mark.guarantee("a transaction that blocks others is named with what it does", pattern="measure")
def test_queue_for_a_row_names_the_idle_transaction_at_its_head(table: str) -> None:
    with psycopg.connect(table) as holder, DatabaseView(table) as view:
        holder.execute(UPDATE)
        waiting = [threading.Thread(target=_update, args=(table,)) for _ in range(2)]
        for thread in waiting:
            thread.start()
        seen = watch(view, "lock")
        holder.commit()
        for thread in waiting:
            thread.join()
    assert seen.sessions["open"] > 0.3
    (key, *_) = seen.blockers
    assert key == (SHOWN, SHOWN, "open")
    assert view.failure == ""


@pytest.mark.control("a transaction that blocks others is named with what it does", "no transaction waits")
def test_running_statement_blocks_nobody(table: str) -> None:
    with DatabaseView(table) as view:
        thread = threading.Thread(target=_sleep, args=(table,))
        thread.start()
        seen = watch(view, "other")
        thread.join()
    assert seen.blockers == {} and "lock" not in seen.sessions


def test_database_that_cannot_be_reached_is_told() -> None:
    with DatabaseView("postgresql://127.0.0.1:1/none") as view:
        eventually(lambda: view.failure)
    assert "connection" in view.failure
    assert view.during([(0.0, time.monotonic())]) == DatabaseStats()


def test_means_are_over_all_samples() -> None:
    waits = Session("lock", "UPDATE t", "transactionid", "UPDATE t", "open")
    seen = summarize([(waits, waits), (), (Session("cpu", "SELECT", ""),), ()])
    assert seen.sessions == {"lock": 0.5, "cpu": 0.25}
    assert seen.active == 0.75
    assert seen.blockers == {("UPDATE t", "UPDATE t", "open"): 0.5}


def _update(url: str) -> None:
    with psycopg.connect(url) as connection:
        connection.execute(UPDATE)


def _sleep(url: str) -> None:
    with psycopg.connect(url) as connection:
        connection.execute("SELECT pg_sleep(1.5)")
