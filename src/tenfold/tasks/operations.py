"""What operators ask: what waits, and for how long? Who works? What has failed for good? Run that again."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from tenfold.errors import DependencyError, TargetError, TaskError
from tenfold.redaction import redact
from tenfold.tasks.brokers import read_depth
from tenfold.tasks.ledger import TABLE_MISSING, is_table_missing

try:
    from sqlalchemy import Connection, text
    from sqlalchemy.exc import DBAPIError
except ImportError:
    raise DependencyError("Celery is not installed: pip install 'tenfold[tasks]'") from None

__all__ = [
    "DeadTask",
    "QueueStatus",
    "WorkerStatus",
    "discard",
    "find_problems",
    "list_dead",
    "read_status",
    "replay",
]

_FEW = 10  # tasks; a backlog that grows by fewer grows by chance
_QUEUES = text(
    "SELECT queue, "
    "count(*) FILTER (WHERE state = 'waiting' AND run_at <= clock_timestamp()) AS due, "
    "count(*) FILTER (WHERE state = 'published') AS published, "
    "count(*) FILTER (WHERE state = 'started') AS running, "
    "count(*) FILTER (WHERE state = 'waiting' AND run_at > clock_timestamp() AND attempts = 0) AS delayed, "
    "count(*) FILTER (WHERE state = 'waiting' AND attempts > 0) AS retrying, "
    "count(*) FILTER (WHERE state = 'failed') AS dead, "
    "extract(epoch FROM clock_timestamp() - min(run_at) FILTER (WHERE state IN ('waiting', 'published') "
    "AND run_at <= clock_timestamp()))::double precision AS oldest_s "
    "FROM tenfold_tasks WHERE state NOT IN ('succeeded', 'cancelled') GROUP BY queue"
)
_TIMES = text(
    "SELECT queue, count(*) AS done, "
    "percentile_cont(0.95) WITHIN GROUP (ORDER BY extract(epoch FROM started_at - run_at)) AS wait_p95_s, "
    "percentile_cont(0.95) WITHIN GROUP (ORDER BY extract(epoch FROM finished_at - started_at)) AS run_p95_s "
    "FROM tenfold_tasks WHERE finished_at > clock_timestamp() - interval '5 minutes' "
    "AND state IN ('succeeded', 'failed') AND started_at IS NOT NULL GROUP BY queue"
)
_WORKERS = text(
    "SELECT name, queues, processes, "
    "extract(epoch FROM clock_timestamp() - heartbeat_at)::double precision AS silent_s "
    "FROM tenfold_task_workers ORDER BY name"
)
_DEAD = text(
    "SELECT id, task, key, queue, arguments, attempts, finished_at, error, owner FROM tenfold_tasks "
    "WHERE state = 'failed' AND (CAST(:ids AS uuid[]) IS NULL OR id = ANY(:ids)) "
    "AND (CAST(:task AS text) IS NULL OR task = :task) ORDER BY finished_at DESC LIMIT :limit"
)
_REPLAY = text(  # under its old id, so that its effects still happen once
    "UPDATE tenfold_tasks SET state = 'waiting', attempts = 0, starts = 0, run_at = clock_timestamp(), "
    "finished_at = NULL, cancel_requested = false "
    "WHERE state = 'failed' AND (CAST(:ids AS uuid[]) IS NULL OR id = ANY(:ids)) "
    "AND (CAST(:task AS text) IS NULL OR task = :task)"
)
_DISCARD = text(
    "UPDATE tenfold_tasks SET state = 'cancelled', finished_at = clock_timestamp() "
    "WHERE state = 'failed' AND (CAST(:ids AS uuid[]) IS NULL OR id = ANY(:ids)) "
    "AND (CAST(:task AS text) IS NULL OR task = :task)"
)
_STATES = text("SELECT id, state FROM tenfold_tasks WHERE id = ANY(:ids)")
_SECRET_NAME = re.compile(
    r"passw|secret|token|api_?key|authorization|credential|card|cvv|iban", re.IGNORECASE
)


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueStatus:
    """One queue now; times in seconds.

    Attributes:
        depth: messages in the broker; None if it does not answer.
        due: enqueued, and not in the broker yet.
        published: in the broker, as the ledger knows it.
        delayed: to be started later.
        retrying: waiting for another attempt.
        dead: failed for good.
        oldest_s: how long the oldest has waited that could run; 0 if none waits.
        processes: of workers that are alive.
        done: in the last five minutes, over which the two percentiles are, too.
        wait_p95_s: from when a task could run to its start.
        run_p95_s: from its start to its end.
    """

    name: str
    depth: int | None
    due: int = 0
    published: int = 0
    running: int = 0
    delayed: int = 0
    retrying: int = 0
    dead: int = 0
    oldest_s: float = 0.0
    workers: int = 0
    processes: int = 0
    done: int = 0
    wait_p95_s: float | None = None
    run_p95_s: float | None = None

    @property
    def backlog(self) -> int:
        """What could run, and waits: of the ledger and of tasks that were sent past it, whichever is more."""
        return self.due + max(self.published, self.depth or 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerStatus:
    """One worker, as it said last; ``silent_s`` is how long ago that was."""

    name: str
    queues: tuple[str, ...]
    processes: int
    silent_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadTask:
    """A task that failed for good. ``arguments`` have ``***`` for what looks like a secret."""

    id: UUID
    task: str
    key: str | None
    queue: str
    arguments: str
    attempts: int
    failed_at: datetime
    error: str
    owner: str | None


# ------------------------------------------------------------------ now


def read_status(app: Any) -> tuple[list[QueueStatus], list[WorkerStatus]]:
    """Read the state of all queues of a :class:`~tenfold.tasks.celery.LedgerCelery`, and of its workers.

    Raises:
        TaskError: the tables are missing.
        TargetError: the database does not answer.
    """
    with _connect(app) as connection:
        counts = {row.queue: row._asdict() for row in connection.execute(_QUEUES)}
        times = {row.queue: row._asdict() for row in connection.execute(_TIMES)}
        workers = [
            WorkerStatus(
                name=row.name,
                queues=tuple(row.queues.split(",")),
                processes=row.processes,
                silent_s=row.silent_s,
            )
            for row in connection.execute(_WORKERS)
        ]
    names = dict.fromkeys((*app.settings.queue_names(), *counts))
    depths = _read_depths(app, list(names))
    lost_after_s = app.settings.lost_after_s
    queues = []
    for name in names:
        mine = [one for one in workers if name in one.queues and one.silent_s < lost_after_s]
        found = {**counts.get(name, {}), **times.get(name, {}), "queue": None}
        found = {key: value for key, value in found.items() if value is not None}
        queues.append(
            QueueStatus(
                name=name,
                depth=depths.get(name),
                workers=len(mine),
                processes=sum(one.processes for one in mine),
                **found,
            )
        )
    return queues, workers


def _read_depths(app: Any, names: list[str]) -> dict[str, int]:
    try:
        with app.connection_for_read(heartbeat=0) as broker:
            broker.ensure_connection(max_retries=1, interval_start=0, timeout=3)
            return {name: read_depth(broker, name) for name in names}
    except Exception:  # the driver's own: redis-py's, amqp's, botocore's
        return {}


@contextmanager
def _connect(app: Any) -> Iterator[Connection]:
    """Connect to the ledger; errors of the database are one sentence."""
    try:
        with app.ledger.engine.connect() as connection:
            yield connection
    except DBAPIError as error:
        raise (TaskError(TABLE_MISSING) if is_table_missing(error) else _unreachable(error)) from None


def _unreachable(error: DBAPIError) -> TargetError:
    first = str(error.orig).strip().partition("\n")[0]
    return TargetError(redact(f"the database of the tasks does not answer ({first}): is it running?"))


def find_problems(
    samples: Sequence[Sequence[QueueStatus]], workers: Iterable[WorkerStatus], *, lost_after_s: float
) -> list[str]:
    """What is wrong, a sentence each; pure.

    Args:
        samples: the queues at several moments in order, so that growth shows; at least one.
        workers: at the last of them.
        lost_after_s: of the app's settings.
    """
    found: list[str] = []
    for queue in samples[-1]:
        if queue.depth is None and not any("broker" in one for one in found):
            found.append("the broker does not answer: what is enqueued waits in the database")
        if queue.workers == 0 and queue.backlog:
            found.append(
                f"queue {queue.name} has no worker and {_tasks(queue.backlog)} waiting: "
                f"tenfold tasks worker {queue.name}"
            )
        elif queue.backlog and not queue.running and queue.oldest_s > lost_after_s:
            found.append(
                f"the workers of {queue.name} start nothing, and the oldest task has waited for "
                f"{queue.oldest_s:.0f} s: look at their log, and restart them"
            )
        elif growth := _growth([next(q for q in sample if q.name == queue.name) for sample in samples]):
            found.append(
                f"the backlog of {queue.name} grows by {growth:,} in this time: its {queue.processes} "
                "processes are too few, or its tasks too slow"
            )
        if queue.dead:
            found.append(
                f"queue {queue.name} has {_tasks(queue.dead)} that failed for good: tenfold tasks dead list"
            )
    found += [
        f"worker {worker.name} gives no sign of life for {worker.silent_s:.0f} s: its tasks start elsewhere"
        for worker in workers
        if worker.silent_s > lost_after_s
    ]
    return found


def _tasks(count: int) -> str:
    return f"{count:,} task{'' if count == 1 else 's'}"


def _growth(samples: Sequence[QueueStatus]) -> int:
    """By how much a backlog has grown, if it never shrank much on the way; else 0."""
    backlogs = [sample.backlog for sample in samples]
    grown = backlogs[-1] - backlogs[0]
    half = backlogs[len(backlogs) // 2]
    steady = len(backlogs) > 2 and backlogs[0] <= half <= backlogs[-1]
    return grown if steady and grown > max(_FEW, samples[-1].processes) else 0


# ------------------------------------------------------------------ what has failed for good


def list_dead(
    app: Any, *, ids: Sequence[UUID] | None = None, task: str | None = None, limit: int = 50
) -> list[DeadTask]:
    """The tasks that failed for good, the latest first.

    Raises:
        TaskError: one of ``ids`` has not failed, or is not known.
        TargetError: the database does not answer.
    """
    with _connect(app) as connection:
        _check_ids(connection, ids)
        rows = connection.execute(_DEAD, {"ids": ids and list(ids), "task": task, "limit": limit}).all()
    return [
        DeadTask(
            id=row.id,
            task=row.task,
            key=row.key,
            queue=row.queue,
            arguments=mask_arguments(row.arguments),
            attempts=row.attempts,
            failed_at=row.finished_at,
            error=redact(row.error or ""),
            owner=row.owner,
        )
        for row in rows
    ]


def replay(app: Any, *, ids: Sequence[UUID] | None = None, task: str | None = None) -> int:
    """Enqueue failed tasks again under their ids and keys, with all attempts; return their number.

    Raises:
        TaskError: one of ``ids`` has not failed, or is not known.
        TargetError: the database does not answer.
    """
    return _change(app, _REPLAY, ids, task)


def discard(app: Any, *, ids: Sequence[UUID] | None = None, task: str | None = None) -> int:
    """Take failed tasks off the list; they are "cancelled" from now on. Return their number.

    Raises:
        TaskError: one of ``ids`` has not failed, or is not known.
        TargetError: the database does not answer.
    """
    return _change(app, _DISCARD, ids, task)


def _change(app: Any, statement: Any, ids: Sequence[UUID] | None, task: str | None) -> int:
    with _connect(app) as connection:
        _check_ids(connection, ids)
        return connection.execute(statement, {"ids": ids and list(ids), "task": task}).rowcount


def _check_ids(connection: Connection, ids: Sequence[UUID] | None) -> None:
    if ids is None:
        return
    states = {row.id: row.state for row in connection.execute(_STATES, {"ids": list(ids)})}
    for id in ids:
        if (state := states.get(id)) != "failed":
            raise TaskError(
                f"no task {id} is known: see tenfold tasks dead list"
                if state is None
                else f"task {id} is {state}, not failed: it cannot be replayed or discarded"
            )


def mask_arguments(arguments: str) -> str:
    """JSON with ``***`` for the values under names that sound secret, and for passwords in URLs."""
    return redact(json.dumps(_mask(json.loads(arguments)), ensure_ascii=False))


def _mask(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            name: "***" if _SECRET_NAME.search(name) and not isinstance(one, dict | list) else _mask(one)
            for name, one in value.items()
        }
    return [_mask(one) for one in value] if isinstance(value, list) else value
