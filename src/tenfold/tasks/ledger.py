"""The ledger: how a task's row moves from one state to the next. Every transition is one statement.

A start gets a random ``run``; only the latest run of a task may store an outcome. So a worker that was
paused, and whose task was started elsewhere, changes nothing when it wakes. All times are the database's.
"""

from __future__ import annotations

import os
import threading
from typing import Any, NamedTuple
from uuid import UUID, uuid4

from tenfold.errors import DependencyError, SettingsError, TaskError
from tenfold.tasks.settings import TaskSettings

try:
    from sqlalchemy import Engine, Row, create_engine, text
    from sqlalchemy.exc import ArgumentError, ProgrammingError, SQLAlchemyError
    from sqlalchemy.orm import Session
    from sqlalchemy.pool import QueuePool
except ImportError:
    raise DependencyError("SQLAlchemy is not installed: pip install 'tenfold[tasks]'") from None

__all__ = ["TABLE_MISSING", "Ledger", "Run", "is_table_missing"]

_CONNECT_TIMEOUT_S = 5

_CLAIM = text(
    # A claim that a crash of the database takes back is none: its run may store no outcome.
    "WITH fast AS MATERIALIZED (SELECT set_config('synchronous_commit', 'off', true)) "
    "UPDATE tenfold_tasks t SET starts = t.starts + 1, run = :run, worker = :worker, "
    "state = CASE WHEN t.starts >= :max_crashes THEN 'failed' ELSE 'started' END, "
    "started_at = clock_timestamp(), heartbeat_at = clock_timestamp(), "
    "finished_at = CASE WHEN t.starts >= :max_crashes THEN clock_timestamp() END, "
    "error = CASE WHEN t.starts >= :max_crashes THEN :crashed ELSE t.error END "
    "FROM fast WHERE t.id = :id AND (t.state = 'published' "
    "OR t.state = 'waiting' AND t.run_at <= clock_timestamp() "
    "OR t.state = 'started' AND t.heartbeat_at < clock_timestamp() - make_interval(secs => :lost_after_s)) "
    "RETURNING t.state, t.key, t.attempts, t.checkpoint, t.headers"
)
_LOOK = text("SELECT state, result FROM tenfold_tasks WHERE id = :id")
_ADOPT = text(  # a task that was sent past the outbox
    "INSERT INTO tenfold_tasks (id, task, key, queue, arguments, headers, state, attempts, run_at) "
    "VALUES (:id, :task, :key, :queue, :arguments, '{}', "
    "CASE WHEN CAST(:delay_s AS double precision) IS NULL THEN 'published' ELSE 'waiting' END, :attempts, "
    "clock_timestamp() + make_interval(secs => coalesce(:delay_s, 0))) ON CONFLICT (id) DO NOTHING"
)
_SUCCEED = text(
    "UPDATE tenfold_tasks SET state = 'succeeded', result = :result, finished_at = clock_timestamp(), "
    "starts = 0, error = NULL WHERE id = :id AND run = :run AND state = 'started'"
)
_FAIL = text(
    "UPDATE tenfold_tasks SET attempts = attempts + 1, starts = 0, error = :error, "
    "state = CASE WHEN CAST(:delay_s AS double precision) IS NULL THEN 'failed' ELSE 'waiting' END, "
    "finished_at = CASE WHEN CAST(:delay_s AS double precision) IS NULL THEN clock_timestamp() END, "
    "run_at = clock_timestamp() + make_interval(secs => coalesce(:delay_s, 0)) "
    "WHERE id = :id AND run = :run AND state = 'started'"
)
_CANCEL_RUN = text(
    "UPDATE tenfold_tasks SET state = 'cancelled', finished_at = clock_timestamp() "
    "WHERE id = :id AND run = :run AND state = 'started'"
)
_REVOKE = text(
    "UPDATE tenfold_tasks SET state = 'cancelled', finished_at = clock_timestamp() "
    "WHERE id = :id AND state IN ('published', 'started')"
)
_RELEASE = text(  # an orderly end of the worker is no crash
    "UPDATE tenfold_tasks SET state = 'waiting', run_at = clock_timestamp(), "
    "starts = greatest(starts - 1, 0) "
    "WHERE worker = :worker AND state = 'started' AND (CAST(:id AS uuid) IS NULL OR id = :id AND run = :run)"
)
_BEAT = text(
    "UPDATE tenfold_tasks SET heartbeat_at = clock_timestamp(), progress = coalesce(:progress, progress), "
    "checkpoint = coalesce(:checkpoint, checkpoint) "
    "WHERE id = :id AND run = :run AND state = 'started' RETURNING cancel_requested"
)
_UNKNOWN_TASK = text(  # the next worker may be a newer one
    "UPDATE tenfold_tasks SET starts = starts + 1, error = :error, "
    "state = CASE WHEN starts + 1 >= :max_crashes THEN 'failed' ELSE 'waiting' END, "
    "finished_at = CASE WHEN starts + 1 >= :max_crashes THEN clock_timestamp() END, "
    "run_at = clock_timestamp() + make_interval(secs => :delay_s) WHERE id = :id AND state = 'published'"
)
_REPORT_WORKER = text(
    "INSERT INTO tenfold_task_workers (name, queues, processes) VALUES (:name, :queues, :processes) "
    "ON CONFLICT (name) DO UPDATE SET heartbeat_at = clock_timestamp(), "
    "queues = excluded.queues, processes = excluded.processes"
)
_REMOVE_WORKER = text("DELETE FROM tenfold_task_workers WHERE name = :name")
_CRASHED = (
    "its process was killed or ended {} times while it ran it; look for memory, time limits and native code"
)


TABLE_MISSING = (
    "the tables of tasks are missing: create them with tenfold.tasks.table.create_table(engine), "
    "or add tasks_table(metadata) to your models"
)


def is_table_missing(error: Exception) -> bool:
    """Return whether an error of the database says that there is no table for tasks, schedules or workers."""
    return isinstance(error, ProgrammingError) and all(
        part in str(error) for part in ("tenfold_task", "does not exist")
    )


class Run(NamedTuple):
    """A start of a task."""

    id: UUID
    run: UUID
    key: str | None
    attempts: int
    checkpoint: str | None
    headers: str


class Ledger:
    """The rows of one database.

    Args:
        url: of the PostgreSQL primary, with a driver that is not asyncio's.

    Raises:
        SettingsError: it is none.
    """

    def __init__(self, url: str, settings: TaskSettings) -> None:
        from sqlalchemy import make_url

        try:
            parsed = make_url(url)
        except ArgumentError:
            raise SettingsError(
                "the URL of the database cannot be read: write postgresql+psycopg://user:password@host/name"
            ) from None
        if parsed.get_backend_name() not in ("postgresql", "postgres"):
            raise SettingsError(f"tasks need PostgreSQL for their outbox, not {parsed.get_backend_name()}")
        driver = "psycopg2" if parsed.drivername.endswith("+psycopg2") else "psycopg"
        self._url = parsed.set(drivername=f"postgresql+{driver}")
        self.settings = settings
        self._engines: tuple[Engine, Engine] | None = None
        self._pid = 0
        self._lock = threading.Lock()

    @property
    def engine(self) -> Engine:
        """In AUTOCOMMIT, for statements that are transactions of their own; a forked process has its own."""
        return self._own_engines()[0]

    @property
    def session_engine(self) -> Engine:
        """For the sessions of tasks whose app was given none."""
        return self._own_engines()[1]

    def _own_engines(self) -> tuple[Engine, Engine]:
        if self._pid != os.getpid():
            with self._lock:
                if self._pid != os.getpid():
                    pool: dict[str, Any] = {"poolclass": QueuePool, "pool_size": 1, "max_overflow": 4}
                    if "connect_timeout" not in self._url.query:
                        pool["connect_args"] = {"connect_timeout": _CONNECT_TIMEOUT_S}
                    self._engines = (
                        create_engine(
                            self._url, isolation_level="AUTOCOMMIT", pool_reset_on_return=None, **pool
                        ),
                        create_engine(self._url, **pool),
                    )
                    self._pid = os.getpid()
        assert self._engines is not None
        return self._engines

    def close(self) -> None:
        """Close the connections of this process."""
        with self._lock:
            if self._engines is not None and self._pid == os.getpid():
                for engine in self._engines:
                    engine.dispose()
            self._engines, self._pid = None, 0

    def _execute(self, statement: Any, **values: Any) -> list[Row[Any]] | int:
        """Run one statement as a transaction of its own; rows if it returns some, else their number."""
        try:
            with self.engine.connect() as connection:
                try:
                    result = connection.execute(statement, values)
                    return list(result.all()) if result.returns_rows else result.rowcount
                except SQLAlchemyError:
                    raise
                except BaseException:  # a time limit, in the middle of a reply
                    connection.invalidate()
                    raise
        except ProgrammingError as error:
            if is_table_missing(error):
                raise TaskError(TABLE_MISSING) from None
            raise

    # ------------------------------------------------------------------ a run

    def claim(self, id: UUID, *, worker: str) -> Run | str | None:
        """Start a task.

        Returns:
            its run; the state that keeps it from being started; None if it is not in the ledger.
        """
        run = uuid4()
        crashes = self.settings.max_crashes
        rows = self._execute(
            _CLAIM,
            id=id,
            run=run,
            worker=worker,
            max_crashes=crashes,
            crashed=_CRASHED.format(crashes),
            lost_after_s=self.settings.lost_after_s,
        )
        assert isinstance(rows, list)
        if rows:
            row = rows[0]
            if row.state != "started":
                return str(row.state)
            return Run(id, run, row.key, row.attempts, row.checkpoint, row.headers)
        found = self.look(id)
        return found[0] if found else None

    def look(self, id: UUID) -> tuple[str, str | None] | None:
        """The state of a task as it is stored, and its result."""
        rows = self._execute(_LOOK, id=id)
        assert isinstance(rows, list)
        return (rows[0].state, rows[0].result) if rows else None

    def adopt(
        self,
        id: UUID,
        *,
        task: str,
        key: str | None,
        queue: str,
        arguments: str,
        attempts: int = 0,
        delay_s: float | None = None,
    ) -> None:
        """Take a task into the ledger that was sent past the outbox.

        Args:
            delay_s: until it is published; None if its message is here.
        """
        self._execute(
            _ADOPT,
            id=id,
            task=task,
            key=key,
            queue=queue,
            arguments=arguments,
            attempts=attempts,
            delay_s=delay_s,
        )

    def succeed(self, run: Run, result: str, *, session: Session | None = None) -> bool:
        """Store a result, in the transaction of a session if there is one; False if the run is not valid."""
        values = {"id": run.id, "run": run.run, "result": result}
        if session is None:
            return self._execute(_SUCCEED, **values) == 1
        return bool(session.connection().execute(_SUCCEED, values).rowcount == 1)

    def fail(self, run: Run, error: str, *, delay_s: float | None) -> bool:
        """Store a failure; False if the run is not valid any more.

        Args:
            delay_s: until the next attempt; None if there is none.
        """
        return self._execute(_FAIL, id=run.id, run=run.run, error=error, delay_s=delay_s) == 1

    def cancel(self, run: Run) -> None:
        """Store that a run has ended because it was asked to."""
        self._execute(_CANCEL_RUN, id=run.id, run=run.run)

    def revoke(self, id: UUID) -> None:
        """Store that a task was revoked by Celery's own control."""
        self._execute(_REVOKE, id=id)

    def release(self, worker: str, run: Run | None = None) -> int:
        """Give back one run of a worker that ends, or all; return their number."""
        found = self._execute(
            _RELEASE, worker=worker, id=run.id if run else None, run=run.run if run else None
        )
        assert isinstance(found, int)
        return found

    def beat(self, run: Run, *, progress: float | None = None, checkpoint: str | None = None) -> bool | None:
        """Store a sign of life; return whether the task is to be cancelled, None if the run is not valid."""
        rows = self._execute(_BEAT, id=run.id, run=run.run, progress=progress, checkpoint=checkpoint)
        assert isinstance(rows, list)
        return bool(rows[0][0]) if rows else None

    def report_worker(self, name: str, queues: str, processes: int) -> None:
        """Store a worker's sign of life."""
        self._execute(_REPORT_WORKER, name=name, queues=queues, processes=processes)

    def remove_worker(self, name: str) -> None:
        """Forget a worker that ends."""
        self._execute(_REMOVE_WORKER, name=name)

    def refuse_unknown(self, id: UUID, error: str) -> None:
        """Put a task back that a worker does not know; give it up when several do not."""
        self._execute(
            _UNKNOWN_TASK,
            id=id,
            error=error,
            max_crashes=self.settings.max_crashes,
            delay_s=self.settings.retry_base_s,
        )
