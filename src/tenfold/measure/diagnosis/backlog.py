"""Queues of background tasks that grow under load: the service answers, and its workers fall behind."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from tenfold.errors import DependencyError, MeasurementError
from tenfold.measure.diagnosis.bottleneck import Bottleneck

__all__ = ["Backlog", "QueueCounts", "find_growing_queues", "read_queues"]

_QUEUES = (
    "SELECT queue, "
    "count(*) FILTER (WHERE state IN ('waiting', 'published') AND run_at <= clock_timestamp()), "
    "count(*) FILTER (WHERE finished_at IS NOT NULL) FROM tenfold_tasks "
    "WHERE state IN ('waiting', 'published') OR finished_at >= clock_timestamp() - make_interval(secs => %s) "
    "GROUP BY queue"
)
_TIMEOUT_S = 2
FEW_TASKS = 20
GROWS = 0.1  # of the tasks of a trial; fewer are those that are just about to run


class QueueCounts(NamedTuple):
    """One queue: tasks that could run and wait, and those that have ended lately."""

    waiting: int
    done: int


@dataclass(frozen=True, slots=True)
class Backlog:
    """The queues before and after a trial of ``rate`` arrivals per second."""

    rate: float
    seconds: float
    before: Mapping[str, QueueCounts]
    after: Mapping[str, QueueCounts]


def read_queues(url: str, *, done_within_s: float = 0.0) -> dict[str, QueueCounts]:
    """The queues of the ledger of ``tenfold.tasks`` in a database; none where there is no ledger.

    Raises:
        DependencyError: psycopg is not installed.
        MeasurementError: the database does not answer.
    """
    try:
        import psycopg
    except ImportError as error:
        raise DependencyError("psycopg is not installed; install tenfold[database]") from error
    try:
        with psycopg.connect(url, autocommit=True, connect_timeout=_TIMEOUT_S) as connection:
            connection.execute("SELECT set_config('statement_timeout', %s, false)", [str(_TIMEOUT_S * 1000)])
            if connection.execute("SELECT to_regclass('tenfold_tasks')").fetchone() == (None,):
                return {}
            rows = connection.execute(_QUEUES, [done_within_s]).fetchall()
    except psycopg.Error as error:
        raise MeasurementError(f"the queues cannot be counted ({type(error).__name__})") from error
    return {queue: QueueCounts(waiting, done) for queue, waiting, done in rows}


def find_growing_queues(trials: Sequence[Backlog], sustained: float | None) -> Iterator[Bottleneck]:
    """A bottleneck for each queue that grew in the fastest trial which the service sustained; pure.

    Args:
        sustained: the highest rate that held, arrivals per second; None takes all trials.
    """
    held = [trial for trial in trials if sustained is None or trial.rate <= sustained * 1.001]
    if not held:
        return
    trial = max(held, key=lambda one: (one.rate, one.seconds))
    for queue, (waiting, done) in sorted(trial.after.items()):
        had = trial.before[queue].waiting if queue in trial.before else 0
        grown = waiting - had
        if grown < max(FEW_TASKS, GROWS * (grown + done)):
            continue
        yield Bottleneck(
            kind="Tasks",
            title=f"the queue {queue} grows by {grown / trial.seconds:.3g}/s at {trial.rate:.3g}/s: "
            "its workers are the limit",
            severity="high",
            evidence=(f"{had:,} tasks waited before the trial, {waiting:,} after it; {done:,} were done",),
            remedy=f"more processes for {queue} (QueueSettings.concurrency, more workers), or quicker tasks",
        )
