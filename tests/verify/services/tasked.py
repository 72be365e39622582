"""Services that start background work: `careless` in its own process, `careful` with tenfold's tasks."""

from __future__ import annotations

import os
import time
from typing import Any
from uuid import uuid4

from fastapi import BackgroundTasks, FastAPI, Request
from fastapi.responses import Response


def careless() -> FastAPI:
    app, done = FastAPI(), set[str]()

    async def work(id: str) -> None:
        time.sleep(0.3)  # holds the event loop up
        done.add(id)

    @app.post("/work", status_code=202)
    async def start(tasks: BackgroundTasks) -> dict[str, str]:
        id = str(uuid4())
        tasks.add_task(work, id)
        return {"task_id": id}

    @app.post("/waited-for", status_code=202)
    def wait() -> dict[str, str]:
        id = str(uuid4())
        time.sleep(0.3)
        done.add(id)
        return {"task_id": id}

    @app.get("/work/{id}")
    async def look(id: str) -> dict[str, str]:
        return {"state": "succeeded" if id in done else "enqueued"}

    @app.get("/read")
    async def read() -> str:
        return "read"

    return app


def create_tasks() -> Any:
    from tenfold.tasks import TaskSettings, create_celery

    # Killing the workers three times in the middle of a task is not the task's fault.
    return create_celery(
        "tasked",
        broker_url=os.environ["REDIS_URL"],
        database_url=os.environ["DATABASE_URL"],
        settings=TaskSettings(lost_after_s=2, max_crashes=10),
    )


if "REDIS_URL" in os.environ:
    celery = create_tasks()

    @celery.task(name="tasked.work")
    def work() -> None:
        time.sleep(0.3)


def prepare() -> None:
    from sqlalchemy import create_engine

    from tenfold.tasks.table import create_table

    create_table(create_engine(os.environ["DATABASE_URL"].replace("postgresql://", "postgresql+psycopg://")))


def careful() -> FastAPI:
    """With its queue in the metrics."""
    from tenfold.metrics import MetricsEndpoint
    from tenfold.tasks.prometheus import TaskCollector

    app = unwatched()
    app.add_middleware(MetricsEndpoint, collectors=[TaskCollector(celery)])
    return app


def unwatched() -> FastAPI:
    """With metrics of requests alone."""
    from sqlalchemy.orm import Session

    from tenfold.metrics import MetricsEndpoint, MetricsMiddleware
    from tenfold.tasks import Outbox
    from tenfold.tasks.fastapi import accepted, create_task_router

    app, outbox = FastAPI(), Outbox(celery)
    app.add_middleware(MetricsMiddleware)
    app.add_middleware(MetricsEndpoint)

    def sessions() -> Session:
        return Session(celery.ledger.session_engine)

    app.include_router(create_task_router(outbox, sessions=sessions, owner=lambda: "anybody"))

    @app.post("/work")
    def start(request: Request) -> Response:
        with sessions() as session:
            id = outbox.enqueue(session, work, owner="anybody")
            session.commit()
        return accepted(request, id)

    @app.get("/read")
    async def read() -> str:
        return "read"

    return app
