"""Tasks from their request to their result, with a real worker, Redis and PostgreSQL."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable

import pytest
from opentelemetry import context, trace
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from tenfold.errors import TaskConflictError
from tenfold.tasks.states import State
from tests.support.waiting import eventually
from tests.tasks.conftest import ROOT, Service

READ = "tests.tasks.support.service."


@pytest.fixture(scope="module")
def running(module_service: Callable[..., Service]) -> Service:
    service = module_service()
    service.start_worker()
    return service


def test_committed_task_runs_once_and_stores_its_result(running: Service) -> None:
    status = running.wait(running.enqueue("effect", "a"))
    assert (status.result, status.attempts, status.task) == ("did a", 0, f"{READ}effect")
    assert running.effects("a") == [""]


@pytest.mark.guarantee(
    "a task runs if and only if the transaction that enqueued it is committed",
    pattern="tasks",
    under="rollbacks",
)
def test_rolled_back_task_does_not_run(running: Service) -> None:
    with Session(running.engine) as session:
        id = running.module.outbox.enqueue(session, running.module.effect, "rolled back")
        session.rollback()
    running.wait(running.enqueue("effect", "later"))
    assert running.status(id).state is State.UNKNOWN
    assert running.effects("rolled back") == []


@pytest.mark.control(
    "a task runs if and only if the transaction that enqueued it is committed", "sent past the outbox"
)
def test_the_control_sent_task_runs_although_rolled_back(running: Service) -> None:
    with Session(running.engine) as session:
        running.module.effect.delay("sent")
        session.rollback()
    eventually(lambda: running.effects("sent") == [""])


def test_async_session_enqueues_looks_and_cancels(running: Service) -> None:
    module = running.module

    async def run() -> tuple[State, bool, State]:
        engine = create_async_engine(running.url)
        async with AsyncSession(engine) as session:
            id = await module.outbox.enqueue_async(session, module.effect, "async", delay_s=60)
            await session.commit()
            before = await module.outbox.status_async(session, id)
            cancelled = await module.outbox.cancel_async(session, id)
            await session.commit()
            after = await module.outbox.status_async(session, id)
        await engine.dispose()
        return before.state, cancelled, after.state

    assert asyncio.run(run()) == (State.ENQUEUED, True, State.CANCELLED)


def test_failed_attempts_are_repeated_and_their_changes_undone(running: Service) -> None:
    status = running.wait(running.enqueue("fail_first", "flaky", 2))
    assert (status.result, status.attempts) == (3, 2)
    assert running.effects("flaky") == ["attempt", "attempt", "attempt", "effect"]


def test_task_that_always_fails_ends_as_failed_with_its_error(running: Service) -> None:
    status = running.wait(running.enqueue("fail_first", "never", 99), State.FAILED)
    assert status.attempts == 4  # three retries
    assert status.error == "ConnectionError: attempt 4 fails"
    assert "effect" not in running.effects("never")


def test_error_that_the_task_declares_is_not_retried(running: Service) -> None:
    status = running.wait(running.enqueue("fail_for_good", "declared"), State.FAILED)
    assert (status.attempts, running.effects("declared")) == (1, ["attempt"])


def test_task_retries_itself_without_a_message_in_the_broker(running: Service) -> None:
    status = running.wait(running.enqueue("retry_itself", "itself"))
    assert (status.attempts, len(running.effects("itself"))) == (2, 3)


def test_delayed_task_waits_in_the_outbox(running: Service) -> None:
    id = running.enqueue("effect", "later", delay_s=1.0)
    assert running.status(id).next_at is not None
    status = running.wait(id)
    assert (status.started_at - status.enqueued_at).total_seconds() >= 1.0


def test_second_task_under_a_key_is_the_first(running: Service) -> None:
    first = running.enqueue("effect", "keyed", key="order:1")
    assert running.enqueue("effect", "keyed", key="order:1") == first
    assert running.enqueue("work", "other", key="order:1") != first
    running.wait(first)
    assert running.enqueue("effect", "keyed", key="order:1") == first
    assert running.effects("keyed") == [""]
    with pytest.raises(TaskConflictError, match="with other arguments"):
        running.enqueue("effect", "changed", key="order:1")


def test_once_with_a_key_holds_for_tasks_past_the_outbox(running: Service) -> None:
    for _ in range(3):
        running.module.keyed.delay("sent thrice")
    running.module.keyed.delay("sent last")
    eventually(lambda: running.effects("sent last"))
    assert running.effects("sent thrice") == [""]


@pytest.mark.guarantee(
    "database effects of a task with @once happen once", pattern="tasks", under="duplicate messages"
)
def test_duplicate_messages_change_nothing(running: Service) -> None:
    id = running.enqueue("effect", "twice")
    running.wait(id)
    send_again(running, id, "effect", "twice")
    running.wait(running.enqueue("effect", "after it"))
    assert running.effects("twice") == [""]


@pytest.mark.control("database effects of a task with @once happen once", "without @once")
def test_the_control_a_bare_task_runs_for_each_message(running: Service) -> None:
    for _ in range(2):
        running.module.work.delay("bare")
    eventually(lambda: running.effects("bare").count("end") == 2)


def send_again(service: Service, id: object, task: str, *args: object) -> None:
    service.module.celery.send_task(READ + task, args, task_id=str(id), headers={"tenfold": 1})


def test_chain_goes_on_after_a_finished_duplicate(running: Service) -> None:
    module = running.module
    id = running.enqueue("add", 1, 2, key="chained")
    running.wait(id)
    before = running.effects("add")
    first = module.add.s(1, 2).set(task_id=str(id), headers={"tenfold": 1})
    (first | module.add.s(10)).apply_async()
    eventually(lambda: len(running.effects("add")) == len(before) + 1)  # the second one only
    results = running.execute("SELECT result FROM tenfold_tasks WHERE task LIKE '%.add' ORDER BY created_at")
    assert [row.result for row in results] == ["3", "13"]


def test_context_travels_with_the_task(running: Service) -> None:
    mark = running.module.tenant.set("acme")
    try:
        id = running.enqueue("which_tenant")
    finally:
        running.module.tenant.reset(mark)
    assert running.wait(id).result == "acme"
    assert running.wait(running.enqueue("which_tenant")).result is None


def test_trace_travels_with_the_task(running: Service) -> None:
    number = 0x1234567890ABCDEF1234567890ABCDEF
    span = trace.NonRecordingSpan(
        trace.SpanContext(number, 7, is_remote=False, trace_flags=trace.TraceFlags(1))
    )
    mark = context.attach(trace.set_span_in_context(span))
    try:
        id = running.enqueue("which_trace")
    finally:
        context.detach(mark)
    assert running.wait(id).result == f"{number:032x}"
    assert running.wait(running.enqueue("which_trace")).result == "0" * 32


def test_result_that_is_no_json_is_a_failure(running: Service) -> None:
    status = running.wait(running.enqueue("return_what_is_no_json"), State.FAILED)
    assert "cannot be written as JSON" in status.error


def test_running_task_ends_when_it_is_cancelled(running: Service) -> None:
    id = running.enqueue("count_slowly", "cancelled", 1000)
    eventually(lambda: running.effects("cancelled"))
    with Session(running.engine) as session:
        assert running.module.outbox.cancel(session, id)
        session.commit()
    running.wait(id, State.CANCELLED)


def test_task_past_the_outbox_retries_through_it(running: Service) -> None:
    running.module.plain_retry.delay("past")
    eventually(lambda: running.effects("past") == ["0", "1", "2"])


def test_row_that_cannot_be_published_holds_no_other_up(running: Service) -> None:
    bad, moved = (running.enqueue("effect", name, delay_s=0.5) for name in ("bad", "moved"))
    running.execute("UPDATE tenfold_tasks SET arguments = 'nonsense' WHERE id = :id", id=bad)
    running.execute("UPDATE tenfold_tasks SET queue = 'of yesterday' WHERE id = :id", id=moved)
    assert "cannot be published" in running.wait(bad, State.FAILED).error
    running.wait(moved)


def test_task_that_celery_revokes_is_cancelled(running: Service) -> None:
    with Session(running.engine) as session:
        id = running.module.outbox.enqueue(session, running.module.effect, "revoked", delay_s=1)
        session.commit()
    running.module.celery.control.revoke(str(id))
    running.wait(id, State.CANCELLED)
    assert running.effects("revoked") == []


def test_typed_arguments_and_results_keep_their_types(running: Service) -> None:
    from datetime import UTC, datetime
    from decimal import Decimal
    from uuid import uuid4

    status = running.wait(running.enqueue("keyed", "typed"))
    assert status.result == "typed"
    value = {"at": datetime(2026, 1, 2, tzinfo=UTC), "id": uuid4(), "price": Decimal("1.10")}
    assert running.wait(running.enqueue("echo", value)).result == value


EMBEDDED = """
from celery.contrib.testing.worker import start_worker
from tests.support.waiting import eventually
from tests.tasks.support.service import Session, celery, effect, outbox

with Session(celery.ledger.session_engine) as session:
    id = outbox.enqueue(session, effect, "embedded")
    session.commit()
    with start_worker(celery, pool="solo", perform_ping_check=False):
        eventually(lambda: outbox.status(session, id).state == "succeeded" or session.rollback(), within_s=40)
"""


def test_worker_that_a_users_tests_embed_runs_tasks(service: Service) -> None:
    done = subprocess.run(  # for such a worker sets up logging for its whole process
        [sys.executable, "-c", EMBEDDED],
        cwd=ROOT, capture_output=True, text=True, env={**os.environ, **service.environment},
        timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert service.effects("embedded") == [""]
