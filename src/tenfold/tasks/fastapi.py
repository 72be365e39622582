"""Routes that tell a task's owner what became of it.

app.include_router(create_task_router(outbox, sessions=database.read, owner=current_user_id))

@app.post("/api/reports")
def order_report(request: Request, user_id: CurrentUserId) -> Response:
    with database.write() as session:
        id = outbox.enqueue(session, make_report, user_id, owner=str(user_id))
    return accepted(request, id)
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from datetime import datetime
from typing import Any
from uuid import UUID

from tenfold.errors import DependencyError
from tenfold.tasks.outbox import Outbox, TaskStatus
from tenfold.tasks.states import State

try:
    from fastapi import APIRouter, Depends, HTTPException, Request, Response
    from fastapi.concurrency import run_in_threadpool
    from fastapi.responses import JSONResponse
    from pydantic import BaseModel, ConfigDict
    from sqlalchemy.ext.asyncio import AsyncSession
    from sqlalchemy.orm import Session
except ImportError:
    raise DependencyError("FastAPI is not installed: pip install fastapi 'tenfold[tasks]'") from None

__all__ = ["TaskAnswer", "accepted", "create_task_router"]

Sessions = (
    Callable[[], AbstractContextManager[Session]] | Callable[[], AbstractAsyncContextManager[AsyncSession]]
)


class TaskAnswer(BaseModel):
    """What the owner of a task is told; not why it failed, which may hold what is not for users."""

    model_config = ConfigDict(from_attributes=True)

    id: UUID
    state: State
    progress: float | None = None
    result: Any = None
    enqueued_at: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None


def create_task_router(
    outbox: Outbox, *, sessions: Sessions, owner: Callable[..., Any], prefix: str = "/tasks"
) -> APIRouter:
    """Make ``GET /tasks/{id}`` and ``DELETE /tasks/{id}``: look at a task, and cancel it.

    A task that does not exist, has no owner or belongs to another one answers 404.

    Args:
        sessions: makes Sessions, or AsyncSessions, on the database of the outbox.
        owner: a dependency that returns the current user, or raises; compared as text with ``owner=`` of
            :meth:`~tenfold.tasks.Outbox.enqueue`.
    """
    router = APIRouter(prefix=prefix, tags=["tasks"])
    current_user = Depends(owner)

    async def run(call: Callable[[Session], TaskStatus]) -> TaskStatus:
        opened = sessions()
        if isinstance(opened, AbstractAsyncContextManager):
            async with opened as session:
                found: TaskStatus = await session.run_sync(call)
                await session.commit()
                return found

        def run_in_thread() -> TaskStatus:
            with opened as session:
                found = call(session)
                session.commit()
                return found

        return await run_in_threadpool(run_in_thread)

    def look(session: Session, id: UUID, user: Any) -> TaskStatus:
        status = outbox.status(session, id)
        if status.owner is None or user is None or status.owner != str(user):
            return TaskStatus(id=id, state=State.UNKNOWN)
        return status

    @router.get("/{task_id}", name="get_task")
    async def get_task(task_id: UUID, user: Any = current_user) -> TaskAnswer:
        """What is known of one of the caller's tasks."""
        status = await run(lambda session: look(session, task_id, user))
        return _answer(status)

    @router.delete("/{task_id}", name="cancel_task", status_code=202)
    async def cancel_task(task_id: UUID, user: Any = current_user) -> TaskAnswer:
        """Cancel one of the caller's tasks; 409 if it has ended."""

        def cancel(session: Session) -> TaskStatus:
            status = look(session, task_id, user)
            if status.state is State.UNKNOWN or outbox.cancel(session, task_id):
                return outbox.status(session, task_id) if status.state is not State.UNKNOWN else status
            raise HTTPException(409, "This task has ended")

        return _answer(await run(cancel))

    return router


def _answer(status: TaskStatus) -> TaskAnswer:
    if status.state is State.UNKNOWN:
        raise HTTPException(404, "No such task")
    return TaskAnswer.model_validate(status)


def accepted(request: Request, id: UUID, **content: Any) -> Response:
    """Answer 202 with the task's id, and its address as Location.

    Args:
        content: further fields of the answer.
    """
    path = request.url_for("get_task", task_id=id).path
    return JSONResponse({"id": str(id), **content}, status_code=202, headers={"Location": path})
