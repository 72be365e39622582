"""The relay: publishes what was enqueued, and finds what was lost.

Each worker runs one, as a thread of its main process; any number may run. A row that one has locked is
skipped by the others.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from typing import Any

from sqlalchemy import Connection, Row, text
from sqlalchemy.exc import SQLAlchemyError

from tenfold.process_thread import ProcessThread
from tenfold.redaction import redact
from tenfold.tasks.brokers import HEADER, read_epoch, read_head, send_together
from tenfold.tasks.ledger import TABLE_MISSING, is_table_missing
from tenfold.tasks.schedules import start_due
from tenfold.tasks.states import decode

__all__ = ["Relay"]

_EPOCH_S, _FORGET_S = 10.0, 60.0  # after a change of epoch; between deletions
_POLL_S, _BUSY_POLL_S, _BATCH, _SWEEP_S, _PAUSE_S = 0.2, 0.02, 50, 2.0, 1.0
_SCHEDULES_S = 1.0
_MISSING_S = 5.0  # a message this much older than the head of its queue, and not started, is lost

_DUE = text(
    "SELECT id, task, queue, arguments, headers, attempts FROM tenfold_tasks "
    "WHERE state = 'waiting' AND run_at <= clock_timestamp() AND NOT cancel_requested "
    "ORDER BY run_at LIMIT :limit FOR UPDATE SKIP LOCKED"
)
_NOW = text(  # a batch that a crash of the database takes back is published once more
    "SELECT extract(epoch FROM clock_timestamp())::double precision, "
    "set_config('synchronous_commit', 'off', true)"
)
_PUBLISHED = text(
    "UPDATE tenfold_tasks SET state = 'published', published_at = to_timestamp(:now), epoch = :epoch "
    "WHERE id = ANY(:ids) AND state = 'waiting'"
)
_MOVED = text("UPDATE tenfold_tasks SET queue = :queue WHERE id = :id")
_UNPUBLISHED = text(
    "UPDATE tenfold_tasks SET state = 'failed', error = :error, finished_at = clock_timestamp() "
    "WHERE id = :id"
)
_CANCELLED = text(
    "UPDATE tenfold_tasks SET state = 'cancelled', finished_at = clock_timestamp() "
    "WHERE state = 'waiting' AND cancel_requested"
)
_DEAD_RUNS = text(
    "UPDATE tenfold_tasks SET state = 'waiting', run_at = clock_timestamp() "
    "WHERE state = 'started' AND heartbeat_at < clock_timestamp() - make_interval(secs => :lost_after_s)"
)
_OTHER_EPOCH = text(
    "UPDATE tenfold_tasks SET state = 'waiting', run_at = clock_timestamp() "
    "WHERE state = 'published' AND epoch <> :epoch"
)
_BEFORE_HEAD = text(
    "UPDATE tenfold_tasks SET state = 'waiting', run_at = clock_timestamp() "
    "WHERE state = 'published' AND queue = :queue AND published_at < coalesce(to_timestamp(:head), "
    "clock_timestamp()) - make_interval(secs => :missing_s)"
)
_FORGET = text(
    "DELETE FROM tenfold_tasks WHERE id IN (SELECT id FROM tenfold_tasks WHERE "
    "finished_at < clock_timestamp() "
    "- make_interval(secs => CASE WHEN state = 'failed' THEN 4 * :retention_s ELSE :retention_s END) "
    "LIMIT 1000 FOR UPDATE SKIP LOCKED)"
)
_FORGET_WORKERS = text(
    "DELETE FROM tenfold_task_workers WHERE heartbeat_at < clock_timestamp() - make_interval(mins => 10)"
)
_log = logging.getLogger("tenfold.tasks")


class Relay(ProcessThread):
    """Publishes every 200 ms, or 20 ms after the last.

    Looks for schedules every second, and for lost tasks every two seconds or less.

    Args:
        app: the :class:`~tenfold.tasks.celery.LedgerCelery` whose tasks these are.
    """

    def __init__(self, app: Any) -> None:
        super().__init__(name="tenfold-task-relay")
        self._app, self._settings = app, app.settings
        self._is_failing = False
        self._epoch: str | None = None
        self._epoch_changed_at = self._forgot_at = self._read_heads_at = float("-inf")

    def _run(self, stopping: threading.Event) -> None:
        swept_at = scheduled_at = 0.0
        while not stopping.is_set():
            try:
                with (
                    self._app.ledger.session_engine.connect() as connection,
                    self._app.connection_for_write(heartbeat=0) as broker,
                ):
                    while not stopping.is_set():
                        if time.monotonic() - scheduled_at >= _SCHEDULES_S:
                            scheduled_at = time.monotonic()
                            start_due(self._app, self._app.schedules)
                            self._app.report_worker()
                        count = self.publish(connection, broker)
                        if time.monotonic() - swept_at >= min(_SWEEP_S, self._settings.lost_after_s / 2):
                            swept_at = time.monotonic()
                            self.find_lost(connection, broker)
                        self._is_failing = False
                        if count < _BATCH:
                            stopping.wait(_BUSY_POLL_S if count else _POLL_S)
            except Exception as error:  # the database's, the driver's and the broker's: nothing is lost
                if not self._is_failing:
                    _log.warning("the task relay pauses: %s", _describe(error))
                self._is_failing = True
                stopping.wait(_PAUSE_S)

    def publish(self, connection: Connection, broker: Any) -> int:
        """Publish one batch of what is due; return its size. If the broker fails, it stays due.

        Raises:
            Exception: the database's and the broker's.
        """
        with connection.begin():
            rows = connection.execute(_DUE, {"limit": _BATCH}).all()
            if not rows:
                return 0
            epoch, now = read_epoch(broker), connection.execute(_NOW).one()[0]
            with self._app.amqp.Producer(broker.default_channel) as producer, send_together(broker):
                for row in rows:
                    queue = row.queue
                    if queue not in self._settings.queue_names():  # of an earlier release
                        queue = self._settings.find_queue(row.task)
                        connection.execute(_MOVED, {"id": row.id, "queue": queue})
                    try:
                        self._send(row, producer, queue, now)
                    except (ValueError, TypeError, LookupError) as error:  # of this row alone
                        reason = f"it cannot be published: {type(error).__name__}: {error}"
                        connection.execute(_UNPUBLISHED, {"id": row.id, "error": reason})
            connection.execute(_PUBLISHED, {"ids": [row.id for row in rows], "epoch": epoch, "now": now})
            return len(rows)

    def _send(self, row: Row[Any], producer: Any, queue: str, now: float) -> None:
        args, kwargs = decode(row.arguments)
        self._app.send_task(
            row.task,
            args,
            kwargs,
            task_id=str(row.id),
            producer=producer,
            queue=queue,
            headers={**json.loads(row.headers), HEADER: now},
            retries=row.attempts,
            retry=False,
        )

    def find_lost(self, connection: Connection, broker: Any) -> int:
        """Put lost tasks back; return their number.

        Lost is what was started and gives no sign of life, what was published to a Redis that has been
        emptied since, and what is older than the head of its queue, but was not started.

        Raises:
            Exception: the database's and the broker's.
        """
        settings, found = self._settings, 0
        with connection.begin():
            connection.execute(_CANCELLED)
            found += connection.execute(_DEAD_RUNS, {"lost_after_s": settings.lost_after_s}).rowcount
            epoch, now = read_epoch(broker), time.monotonic()
            if epoch != self._epoch:
                self._epoch, self._epoch_changed_at = epoch, now
            if epoch is not None and now - self._epoch_changed_at < _EPOCH_S:
                found += connection.execute(_OTHER_EPOCH, {"epoch": epoch}).rowcount
            found += self._put_back_missing(connection, broker, now)
            if now - self._forgot_at > _FORGET_S:
                self._forgot_at = now
                connection.execute(_FORGET, {"retention_s": settings.retention_s})
                connection.execute(_FORGET_WORKERS)
        if found:
            _log.warning("%s lost tasks are enqueued again", found)
        return found

    def _put_back_missing(self, connection: Connection, broker: Any, now: float) -> int:
        """Put back what is not in the broker any more, but was not started; return the number."""
        missing_s = _MISSING_S
        if broker.transport.driver_type == "sqs":
            # Its counts are rough and each costs a request; a worker that is dead may have got messages.
            missing_s = max(_MISSING_S, self._settings.lost_after_s)
            if now - self._read_heads_at < missing_s:
                return 0
        self._read_heads_at, found = now, 0
        for queue in self._settings.queue_names():
            is_known, head = read_head(broker, queue)
            if is_known:
                values = {"queue": queue, "head": head, "missing_s": missing_s}
                found += connection.execute(_BEFORE_HEAD, values).rowcount
        return found


def _describe(error: Exception) -> str:
    if is_table_missing(error):
        return TABLE_MISSING
    text = str(error.orig if isinstance(error, SQLAlchemyError) and hasattr(error, "orig") else error)
    return redact(f"{type(error).__name__}: {text.partition(chr(10))[0]}")
