"""Sales reports and videos: made in the background. Clients get a task to ask for."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from fastapi import APIRouter, HTTPException

from shop import api
from shop.scaled.database import router as database
from shop.scaled.sessions import CurrentUserId
from shop.scaled.tasks import generate_monthly_report, outbox, process_video
from tenfold.tasks.states import State

router = APIRouter()
STATUS = {
    State.SUCCEEDED: "finished",
    State.FAILED: "failed",
    State.CANCELLED: "failed",
    State.STARTED: "running",
}


@router.post("/reports/monthly", status_code=202)
def monthly_report(request: api.ReportRequest, user_id: CurrentUserId) -> api.TaskCreated:
    with database.write() as session:
        task_id = outbox.enqueue(session, generate_monthly_report, user_id, request.month, owner=str(user_id))
    return api.TaskCreated(task_id=str(task_id))


@router.post("/videos", status_code=202)
def upload_video(video: api.NewVideo, user_id: CurrentUserId) -> api.TaskCreated:
    with database.write() as session:
        task_id = outbox.enqueue(session, process_video, video.name, video.segments, owner=str(user_id))
    return api.TaskCreated(task_id=str(task_id))


@router.get("/tasks/{task_id}")
def show_task(task_id: UUID, user_id: CurrentUserId) -> api.Task:
    with database.read() as session:
        task = outbox.status(session, task_id)
    if task.owner != str(user_id):
        raise HTTPException(404, f"No task {task_id}")
    result: dict[str, Any] | None = task.result if isinstance(task.result, dict) else None
    return api.Task.model_validate(
        {"task_id": str(task.id), "status": STATUS.get(task.state, "queued"), "result": result}
    )
