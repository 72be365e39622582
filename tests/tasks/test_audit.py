"""The audit finds each planted fault, and none in a right app."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from sqlalchemy.orm import Session

from tenfold.tasks import QueueSettings, TaskSettings, once
from tenfold.tasks.audit import audit
from tests.tasks.test_declarations import make_app

RIGHT: dict[str, Any] = {
    "accept_content": ["json"],
    "task_acks_late": True,
    "task_reject_on_worker_lost": True,
    "task_retry_on_worker_lost": True,
    "task_time_limit": 300,
    "worker_prefetch_multiplier": 1,
    "broker_transport_options": {"confirm_publish": True},
}


def make_plain(
    broker: str = "redis://localhost/0", *, task: dict[str, Any] | None = None, **conf: Any
) -> Celery:
    app = Celery("plain", broker=broker, set_as_current=False)
    app.conf.update({**RIGHT, **conf})

    @app.task(name="send", shared=False, **{"idempotent": True, **(task or {})})
    def send() -> None: ...

    return app


@pytest.mark.parametrize("broker", ["redis://h", "amqp://h", "sqs://"])
def test_right_app_has_no_finding(broker: str) -> None:
    assert audit(make_plain(broker)) == []


def test_app_of_create_celery_has_no_finding() -> None:
    app = make_app(settings=TaskSettings(queues={"slow": QueueSettings(hard_limit_s=7200)}))

    @app.task(name="t.once")
    @once
    def effect(session: Session) -> None: ...

    @app.task(name="t.plain")
    def plain() -> None: ...

    assert audit(app) == []


@pytest.mark.parametrize(
    ("broker", "conf", "task", "words"),
    [
        ("redis://h", {"accept_content": ["json", "pickle"]}, {}, "pickle is accepted"),
        ("redis://h", {"task_serializer": "pickle"}, {}, "pickle is accepted"),
        ("filesystem://", {}, {}, "a filesystem broker loses the running tasks"),
        ("sqla+sqlite://", {}, {}, "a sqla broker loses"),
        ("redis://h", {"task_acks_late": False}, {}, "send: acknowledged before they run"),
        ("redis://h", {}, {"acks_late": False}, "send: acknowledged before they run"),
        (
            "redis://h",
            {"task_reject_on_worker_lost": False, "task_retry_on_worker_lost": False},
            {},
            "acknowledged when their process is killed",
        ),
        (
            "redis://h",
            {"task_retry_on_worker_lost": False},
            {},
            "kills its process is delivered again for ever",
        ),
        ("amqp://h", {"broker_transport_options": {}}, {}, "need not have stored a message"),
        ("redis://h", {"task_acks_lates": True}, {}, "Celery has no setting task_acks_lates"),
        ("redis://h", {"task_max_retries": 3}, {}, "Celery has no setting task_max_retries: it is ignored"),
        ("redis://h", {}, {"idempotent": False}, "send: acknowledged late, so that"),
        ("redis://h", {"task_time_limit": 7200}, {}, "longer than the visibility timeout of 3600 s"),
        ("sqs://", {"task_time_limit": 2000}, {}, "longer than the visibility timeout of 1800 s"),
        ("redis://h", {"broker_transport_options": {"visibility_timeout": 200}}, {}, "timeout of 200 s"),
        ("redis://h", {"task_time_limit": None}, {}, "send: without a time limit"),
        ("amqp://h", {"task_time_limit": None}, {}, "one that hangs takes its process away"),
        (
            "redis://h",
            {
                "task_routes": {"send": {"queue": "mail"}},
                "broker_transport_options": {"visibility_timeout": 900},
            },
            {},
            "share the key `unacked`",
        ),
        ("redis://h", {}, {"default_retry_delay": 7200}, "send: waits 7200 s before a retry"),
        ("redis://h", {"worker_prefetch_multiplier": 4}, {}, "each process reserves 4 messages"),
        ("redis://h", {"worker_pool": "gevent"}, {}, "the pool gevent cannot end a task"),
        (
            "redis://h",
            {"result_backend": "redis://h", "result_expires": None},
            {},
            "results are kept for ever",
        ),
    ],
)
def test_planted_fault_is_found_alone(
    broker: str, conf: dict[str, Any], task: dict[str, Any], words: str
) -> None:
    found = audit(make_plain(broker, task=task, **conf))
    assert [words in finding.reason for finding in found] == [True], found


def test_setting_with_a_prefix_is_read_as_django_has_it() -> None:
    app = Celery("django", set_as_current=False)
    right = {f"CELERY_{name.upper()}": value for name, value in RIGHT.items()}
    app.config_from_object(
        {**right, "CELERY_BROKER_URL": "redis://h", "CELERY_BEAT_DBURI": "x"}, namespace="CELERY"
    )
    assert audit(app) == []
    app = Celery("django", set_as_current=False)
    app.config_from_object({**right, "CELERY_TASK_ACKS_LATES": True}, namespace="CELERY")
    assert "no setting CELERY_TASK_ACKS_LATES" in audit(app)[0].reason


def test_coroutine_is_found() -> None:
    app = make_plain()

    @app.task(name="later", shared=False, idempotent=True)
    async def later() -> None: ...

    (finding,) = audit(app)
    assert "later: async def, which Celery calls but does not await" in finding.reason


MODULE = """
from celery import Celery
app = Celery("m", broker="redis://localhost/0")
app.conf.update(
    task_acks_late=True, task_reject_on_worker_lost=True, task_retry_on_worker_lost=True,
    task_time_limit=300, worker_prefetch_multiplier=1,
)

@app.task(idempotent=True)
def remind(user):
    remind.apply_async((user,), countdown=60)
    remind.apply_async((user,), countdown=86_400)
    remind.apply_async((user,), eta=user.tomorrow)
"""


def test_command_names_file_and_line_of_a_long_countdown(tmp_path: Path) -> None:
    (tmp_path / "jobs.py").write_text(MODULE)
    done = subprocess.run(
        [sys.executable, "-m", "tenfold", "tasks", "audit", "jobs:app"],
        cwd=tmp_path, capture_output=True, text=True, env={**os.environ}, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "jobs.py:12: a countdown of 86400 s" in done.stdout
    assert "jobs.py:13: an ETA" in done.stdout
    assert "jobs.py:11" not in done.stdout
    (tmp_path / "jobs.py").write_text(MODULE.partition("    remind.apply_async((user,), countdown=86")[0])
    done = subprocess.run(
        [sys.executable, "-m", "tenfold", "tasks", "audit", "jobs:app"],
        cwd=tmp_path, capture_output=True, text=True, env={**os.environ}, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "✔ nothing in jobs:app loses or doubles tasks\n")
