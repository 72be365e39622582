"""The routes that tell an owner what became of a task."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
from fastapi import FastAPI, Header, HTTPException, Request, Response
from fastapi.testclient import TestClient
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, sessionmaker

from tenfold.tasks.fastapi import accepted, create_task_router
from tenfold.tasks.states import State
from tests.tasks.conftest import Service


def current_user(user: str | None = Header(None)) -> str:
    if user is None:
        raise HTTPException(401)
    return user


@pytest.fixture(params=["sync", "async"])
def client(service: Service, request: pytest.FixtureRequest) -> Iterator[TestClient]:
    app, outbox = FastAPI(), service.module.outbox
    sessions: Any = sessionmaker(service.engine)
    if request.param == "async":
        sessions = async_sessionmaker(create_async_engine(service.url), class_=AsyncSession)
    app.include_router(create_task_router(outbox, sessions=sessions, owner=current_user))

    @app.post("/work")
    def start(http: Request) -> Response:
        with Session(service.engine) as session:
            id = outbox.enqueue(session, service.module.effect, "by request", owner="ann")
            session.commit()
        return accepted(http, id, status="pending")

    with TestClient(app, root_path="/shop") as client:
        yield client


def test_owner_is_told_and_others_find_nothing(client: TestClient, service: Service) -> None:
    answer = client.post("/work")
    location = answer.headers["Location"]
    assert (answer.status_code, answer.json()["status"]) == (202, "pending")
    assert location == f"/shop/tasks/{answer.json()['id']}"

    def look(user: str | None) -> Any:
        return client.get(location, headers={"user": user} if user else {})

    assert (look("ann").status_code, look("ann").json()["state"]) == (200, "enqueued")
    assert [look("bob").status_code, look(None).status_code] == [404, 401]
    assert client.get(f"/tasks/{uuid4()}", headers={"user": "ann"}).status_code == 404
    assert client.get("/tasks/nonsense", headers={"user": "ann"}).status_code == 422
    service.start_worker()
    service.wait(answer.json()["id"])
    assert look("ann").json()["result"] == "did by request"


def test_task_without_owner_is_shown_to_no_user(client: TestClient, service: Service) -> None:
    id = service.enqueue("effect", "internal")
    for user in ("ann", "None", ""):
        assert client.get(f"/tasks/{id}", headers={"user": user}).status_code == 404


def test_owner_cancels_and_others_cannot(client: TestClient, service: Service) -> None:
    location = client.post("/work").headers["Location"]
    assert client.delete(location, headers={"user": "bob"}).status_code == 404
    answer = client.delete(location, headers={"user": "ann"})
    assert (answer.status_code, answer.json()["state"]) == (202, "cancelled")
    assert client.delete(location, headers={"user": "ann"}).status_code == 409
    service.start_worker()
    service.wait(service.enqueue("effect", "after it"))
    assert service.effects("by request") == []


def test_failure_is_told_without_its_words(client: TestClient, service: Service) -> None:
    service.start_worker()
    with Session(service.engine) as session:
        id = service.module.outbox.enqueue(session, service.module.fail_for_good, "secret", owner="ann")
        session.commit()
    service.wait(id, State.FAILED)
    answer = client.get(f"/tasks/{id}", headers={"user": "ann"})
    assert answer.json()["state"] == "failed"
    assert "no such thing" not in answer.text
