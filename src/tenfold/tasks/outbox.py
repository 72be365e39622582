"""The outbox: tasks that are enqueued in the caller's transaction, and what is known of them.

    with database.write() as session:
        order = Order(…)
        session.add(order)
        outbox.enqueue(session, process_order, order.id, key=f"order:{order.id}")

The task exists if and only if the transaction is committed.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

from tenfold.commits import sync_session
from tenfold.errors import DependencyError, SettingsError, TaskConflictError, TaskError
from tenfold.tasks.celery import LedgerCelery
from tenfold.tasks.states import State, encode, task_id
from tenfold.tasks.task import LedgerTask

try:
    from sqlalchemy import text
    from sqlalchemy.orm import Session
except ImportError:
    raise DependencyError("SQLAlchemy is not installed: pip install 'tenfold[tasks]'") from None

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession

__all__ = ["Outbox", "TaskStatus"]

_INSERT = text(
    "INSERT INTO tenfold_tasks (id, task, key, queue, arguments, headers, owner, state, run_at) "
    "VALUES (:id, :task, :key, :queue, :arguments, :headers, :owner, 'waiting', "
    "clock_timestamp() + make_interval(secs => :delay_s)) ON CONFLICT (id) DO NOTHING"
)
_ARGUMENTS = text("SELECT arguments FROM tenfold_tasks WHERE id = :id")
_STATUS = text(
    "SELECT id, task, key, owner, state, attempts, progress, result, error, created_at, started_at, "
    "finished_at, run_at, "
    "heartbeat_at < clock_timestamp() - make_interval(secs => :lost_after_s) AS is_lost "
    "FROM tenfold_tasks WHERE id = :id"
)
_CANCEL = text(
    "UPDATE tenfold_tasks SET cancel_requested = true, "
    "state = CASE WHEN state IN ('waiting', 'published') THEN 'cancelled' ELSE state END, "
    "finished_at = CASE WHEN state IN ('waiting', 'published') THEN clock_timestamp() ELSE finished_at END "
    "WHERE id = :id AND state IN ('waiting', 'published', 'started')"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskStatus:
    """What the ledger knows of a task.

    Attributes:
        owner: who may look, as given to :meth:`Outbox.enqueue`.
        attempts: that raised.
        progress: between 0 and 1, as the task reported; None if it did not.
        result: what it returned; None until it has succeeded.
        error: the last line of what it raised last; the traceback is in the table only.
        next_at: when it is started next, while it waits for that.
    """

    id: UUID
    state: State
    task: str = ""
    key: str | None = None
    owner: str | None = None
    attempts: int = 0
    progress: float | None = None
    result: Any = None
    error: str | None = None
    enqueued_at: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    next_at: datetime | None = None


class Outbox:
    """Enqueues the tasks of one app.

    Args:
        celery: made by :func:`tenfold.tasks.create_celery`.

    Raises:
        SettingsError: it is another kind of app.
    """

    def __init__(self, celery: LedgerCelery) -> None:
        if not isinstance(celery, LedgerCelery):
            raise SettingsError(
                "an Outbox needs the app that tenfold.tasks.create_celery made: it has the ledger"
            )
        self.celery = celery

    def enqueue(
        self,
        session: Session,
        task: Callable[..., Any],
        /,
        *args: Any,
        key: str | None = None,
        delay_s: float = 0.0,
        owner: str | None = None,
        **kwargs: Any,
    ) -> UUID:
        """Enqueue a task in the transaction of a session.

        Args:
            session: on the primary that the app's ledger is in; it is not committed here.
            task: of the app.
            key: a second task under the same key is the first one; None is always a new one.
            delay_s: start it not before this many seconds from now.
            owner: the user who may look at it and cancel it through the status routes.

        Returns:
            the task's id.

        Raises:
            TaskError: the task is unknown, or does not take these arguments, or they are not JSON or larger
                than 64 KiB.
            TaskConflictError: the key is known with other arguments.
        """
        row = self._row(task, args, kwargs, key=key, delay_s=delay_s, owner=owner)
        connection = sync_session(session).connection()
        if connection.execute(_INSERT, row).rowcount == 0:
            known = connection.execute(_ARGUMENTS, {"id": row["id"]}).scalar()
            if known not in (None, "", row["arguments"]):
                raise TaskConflictError(
                    f"{row['task']} was enqueued under the key {key!r} with other arguments: use another key"
                )
        id: UUID = row["id"]
        return id

    async def enqueue_async(
        self, session: AsyncSession, task: Callable[..., Any], /, *args: Any, **kwargs: Any
    ) -> UUID:
        """:meth:`enqueue` with an AsyncSession."""
        return await session.run_sync(lambda sync: self.enqueue(sync, task, *args, **kwargs))

    def _row(
        self,
        task: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        key: str | None,
        delay_s: float,
        owner: str | None,
    ) -> dict[str, Any]:
        name = getattr(task, "name", None)
        if not isinstance(name, str) or not isinstance(own := self.celery.tasks.get(name), LedgerTask):
            raise TaskError(
                f"{getattr(task, '__qualname__', task)!s} is no task of this app: "
                "decorate it with @celery.task"
            )
        if not 0 <= delay_s <= 3.2e8:  # ten years; NaN too
            raise TaskError(f"delay_s is {delay_s}: pass the seconds from now, 0 or more")
        if key is not None and (not isinstance(key, str) or not 0 < len(key) <= 512):
            raise TaskError("a key is text of 1 to 512 characters")
        own.check_arguments(args, kwargs)
        return {
            "id": task_id(name, key),
            "task": name,
            "key": key,
            "queue": self.celery.settings.find_queue(name),
            "arguments": encode([list(args), kwargs], f"the arguments of {name}"),
            "headers": json.dumps(self.celery.collect_headers()),
            "owner": owner,
            "delay_s": delay_s,
        }

    # ------------------------------------------------------------------ what is known

    def status(self, session: Session, id: UUID | str) -> TaskStatus:
        """Look at a task; its state is UNKNOWN if there is none."""
        found = _parse_id(id)
        lost_after_s = self.celery.settings.lost_after_s
        row = (
            found
            and sync_session(session)
            .execute(_STATUS, {"id": found, "lost_after_s": lost_after_s})
            .one_or_none()
        )
        if not row:
            return TaskStatus(id=found or UUID(int=0), state=State.UNKNOWN)
        state = _state(row.state, attempts=row.attempts, is_lost=bool(row.is_lost))
        return TaskStatus(
            id=row.id,
            state=state,
            task=row.task,
            key=row.key,
            owner=row.owner,
            attempts=row.attempts,
            progress=1.0 if state is State.SUCCEEDED and row.progress is not None else row.progress,
            result=_load(row.result),
            error=row.error.strip().rpartition("\n")[2] if row.error else None,
            enqueued_at=row.created_at,
            started_at=row.started_at,
            finished_at=row.finished_at,
            next_at=row.run_at if row.state == "waiting" else None,
        )

    async def status_async(self, session: AsyncSession, id: UUID | str) -> TaskStatus:
        """:meth:`status` with an AsyncSession."""
        return await session.run_sync(lambda sync: self.status(sync, id))

    def cancel(self, session: Session, id: UUID | str) -> bool:
        """Cancel a task in the transaction of a session; return whether it had not ended yet.

        One that runs ends at its next ``self.report_progress()``; if it never calls that, it runs to its end.
        """
        found = _parse_id(id)
        return (
            found is not None
            and sync_session(session).connection().execute(_CANCEL, {"id": found}).rowcount == 1
        )

    async def cancel_async(self, session: AsyncSession, id: UUID | str) -> bool:
        """:meth:`cancel` with an AsyncSession."""
        return await session.run_sync(lambda sync: self.cancel(sync, id))


def _parse_id(id: UUID | str) -> UUID | None:
    try:
        return id if isinstance(id, UUID) else UUID(id)
    except (ValueError, AttributeError, TypeError):
        return None


def _load(result: str | None) -> Any:
    from kombu.utils import json as kombu_json

    return None if result is None else kombu_json.loads(result)


def _state(stored: str, *, attempts: int, is_lost: bool) -> State:
    if stored == "waiting":
        return State.RETRYING if attempts else State.ENQUEUED
    if stored == "published":
        return State.ENQUEUED
    if stored == "started":
        return State.LOST if is_lost else State.STARTED
    return State(stored)
