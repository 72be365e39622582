"""A service with tasks, as workers of tests import it; its servers come from the environment."""

from __future__ import annotations

import json
import os
import signal
import time
from contextvars import ContextVar
from typing import Any

from celery import Celery
from sqlalchemy import text
from sqlalchemy.orm import Session

from tenfold.tasks import Outbox, TaskSettings, create_celery, once
from tenfold.tasks.ledger import Ledger
from tenfold.tasks.relay import Relay

declared = json.loads(os.environ.get("TASKS", "{}"))
tenant: ContextVar[str | None] = ContextVar("tenant", default=None)
celery = create_celery(
    "service",
    broker_url=os.environ["BROKER_URL"],
    database_url=os.environ["DATABASE_URL"],
    transport_options=declared.pop("transport", None),
    settings=TaskSettings.model_validate(declared),
    carry={"tenant": tenant},
)
outbox = Outbox(celery)


def die_once_after(owner: Any, method: str) -> None:
    """Kill the process after the first call of a method, once for all processes of a test."""
    original = getattr(owner, method)

    def call_and_die(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        try:
            os.close(os.open(os.environ["DIED"], os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return result
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(owner, method, call_and_die)


def hang(*_: Any) -> None:
    time.sleep(600)


signal.signal(
    signal.SIGUSR2, hang
)  # in the main thread of a worker's main process: its event loop stands still

if point := os.environ.get("FAILPOINT"):
    places = {
        "claim": (Ledger, "claim"),
        "store": (Ledger, "succeed"),
        "commit": (Session, "commit"),
        "failure": (Ledger, "fail"),
        "publish": (Celery, "send_task"),
        "sweep": (Relay, "find_lost"),
    }
    die_once_after(*places[point])


def record(session: Session, name: str, detail: str = "") -> None:
    session.execute(
        text("INSERT INTO effects (name, detail) VALUES (:name, :detail)"), {"name": name, "detail": detail}
    )


def record_now(name: str, detail: str = "") -> None:
    """Record in a transaction of its own: an effect that no rollback takes back."""
    with Session(celery.ledger.session_engine) as session:
        record(session, name, detail)
        session.commit()


@celery.task
@once
def effect(session: Session, name: str, *, seconds: float = 0.0) -> str:
    record(session, name)
    time.sleep(seconds)
    return f"did {name}"


@celery.task
def bare_effect(name: str, *, seconds: float = 0.0) -> str:
    with Session(celery.ledger.session_engine) as session:
        record(session, name)
        session.commit()
    time.sleep(seconds)
    return f"did {name}"


@celery.task
def work(name: str, seconds: float = 0.0) -> str:
    record_now(name, "start")
    time.sleep(seconds)
    record_now(name, "end")
    return name


@celery.task
@once
def fail_first(session: Session, name: str, times: int) -> int:
    record_now(name, "attempt")
    record(session, name, "effect")
    made = session.execute(
        text("SELECT count(*) FROM effects WHERE name = :name AND detail = 'attempt'"), {"name": name}
    ).scalar_one()
    if made <= times:
        raise ConnectionError(f"attempt {made} fails")
    return int(made)


@celery.task(throws=(LookupError,))
def fail_for_good(name: str) -> None:
    record_now(name, "attempt")
    raise LookupError("no such thing")


@celery.task
def kill_own_process(name: str) -> None:
    record_now(name, "start")
    os.kill(os.getpid(), signal.SIGKILL)


@celery.task(bind=True, max_retries=5)
def retry_itself(self: Any, name: str) -> str:
    record_now(name, "attempt")
    if self.request.retries < 2:
        raise self.retry(countdown=0.01)
    return name


@celery.task(bind=True)
def plain_retry(self: Any, name: str) -> None:
    record_now(name, str(self.request.retries))
    if self.request.retries < 2:
        self.retry(countdown=0.01)


@celery.task(bind=True)
def count_slowly(self: Any, name: str, up_to: int) -> list[int]:
    counted: list[int] = self.checkpoint or []
    for number in range(len(counted), up_to):
        time.sleep(0.05)
        counted.append(number)
        record_now(name, str(number))
        self.report_progress(len(counted) / up_to, checkpoint=counted)
    return counted


@celery.task
def which_tenant() -> str | None:
    return tenant.get()


@celery.task
def which_trace() -> str:
    from opentelemetry import trace

    return f"{trace.get_current_span().get_span_context().trace_id:032x}"


@celery.task
def return_what_is_no_json() -> object:
    return object()


@celery.task
@once
def add(session: Session, left: int, right: int) -> int:
    record(session, "add")
    return left + right


@celery.task
@once(key=lambda name, seconds=0.0: name)
def keyed(session: Session, name: str, seconds: float = 0.0) -> str:
    record(session, name)
    time.sleep(seconds)
    return name


@celery.task
def echo(value: Any) -> Any:
    return value


@celery.task(acks_late=False)
def early(name: str) -> None:
    record_now(name, "start")
    time.sleep(30)
