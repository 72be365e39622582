"""Queues that grow under load are named; those that keep up are not."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import create_engine, text

from tenfold.errors import MeasurementError
from tenfold.measure.diagnosis.backlog import Backlog, QueueCounts, find_growing_queues, read_queues
from tenfold.tasks.table import create_table
from tests.sessions.conftest import postgresql_server
from tests.support.servers import PostgreSQLServer

__all__ = ["postgresql_server"]


def trial(rate: float, *, had: int = 0, waiting: int = 0, done: int = 0) -> Backlog:
    return Backlog(rate, 10.0, {"mail": QueueCounts(had, 0)}, {"mail": QueueCounts(waiting, done)})


@pytest.mark.parametrize(
    ("trials", "sustained", "title"),
    [
        (
            [trial(50, waiting=140, done=360)],
            50,
            "the queue mail grows by 14/s at 50/s: its workers are the limit",
        ),
        ([trial(50, waiting=15, done=0)], 50, None),  # few
        ([trial(50, waiting=30, done=470)], 50, None),  # about to run
        ([trial(50, had=500, waiting=400, done=600)], 50, None),  # worked off
        ([trial(40, waiting=3, done=400), trial(80, waiting=300, done=500)], 41, None),  # not sustained
        ([trial(40, waiting=3, done=400), trial(80, waiting=300, done=500)], None, "grows by 30/s at 80/s"),
        ([], 50, None),
    ],
)
def test_growing_queue_is_named(trials: list[Backlog], sustained: float | None, title: str | None) -> None:
    found = [one.title for one in find_growing_queues(trials, sustained)]
    assert (found == []) if title is None else (title in found[0])


def test_new_queue_has_grown_from_nothing() -> None:
    (found,) = find_growing_queues([Backlog(9, 10.0, {}, {"x": QueueCounts(50, 0)})], None)
    assert found.evidence == ("0 tasks waited before the trial, 50 after it; 0 were done",)


@pytest.fixture
def ledger(postgresql_server: PostgreSQLServer) -> Iterator[str]:
    engine = create_engine(postgresql_server.url)
    create_table(engine)
    yield postgresql_server.url.replace("+psycopg", "")
    with engine.begin() as connection:
        connection.execute(text("DROP TABLE tenfold_tasks, tenfold_task_schedules, tenfold_task_workers"))
    engine.dispose()


def test_queues_are_counted_in_the_ledger(ledger: str) -> None:
    engine = create_engine(ledger.replace("postgresql:", "postgresql+psycopg:"))
    rows = [
        ("waiting", 0, None),
        ("published", 0, None),
        ("waiting", 60, None),
        ("succeeded", 0, 1),
        ("failed", 0, 99),
    ]
    with engine.begin() as connection:
        for state, delay_s, ago_s in rows:
            connection.execute(
                text(
                    "INSERT INTO tenfold_tasks "
                    "(id, task, queue, arguments, headers, state, run_at, finished_at) "
                    "VALUES (gen_random_uuid(), 't', 'mail', '[]', '{}', :state, "
                    "now() + make_interval(secs => :delay_s), now() - make_interval(secs => :ago_s))"
                ),
                {"state": state, "delay_s": delay_s, "ago_s": ago_s},
            )
    assert read_queues(ledger, done_within_s=10) == {"mail": QueueCounts(2, 1)}
    engine.dispose()


def test_database_without_a_ledger_has_no_queues(postgresql_server: PostgreSQLServer) -> None:
    assert read_queues(postgresql_server.url.replace("+psycopg", "")) == {}


def test_database_that_is_away_is_a_measurement_error() -> None:
    with pytest.raises(MeasurementError, match="the queues cannot be counted"):
        read_queues("postgresql://nobody@127.0.0.1:1/x")
