"""``tenfold tasks worker``: one worker a queue, kept running, drained at SIGTERM; its health."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest
from celery import Celery

from tenfold.tasks.states import State
from tests.support.servers import RedisServer, free_port
from tests.support.waiting import eventually
from tests.tasks.conftest import ROOT, Service

APP = "tests.tasks.support.service:celery"


@contextmanager
def running(service: Service, log: Path, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "tenfold", "tasks", "worker", *arguments],
            cwd=ROOT, stdout=output, stderr=output, env={**os.environ, **service.environment},
        )  # fmt: skip
    children: list[psutil.Process] = []
    try:
        yield process
        children = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        eventually(lambda: not any(child.is_running() for child in children))
    finally:
        process.kill()
        for child in children:
            if child.is_running():
                child.kill()


def ready(log: Path) -> int:
    return log.read_text().count(" ready.")


def test_killed_worker_is_started_again_and_the_others_go_on(
    make_service: Callable[..., Service], tmp_path: Path
) -> None:
    service = make_service(queues={"reports": {"tasks": ["*.work"], "concurrency": 1}})
    log = tmp_path / "log"
    with running(service, log, APP) as process:
        eventually(lambda: ready(log) == 2)
        first, second = psutil.Process(process.pid).children()
        first.kill()
        eventually(lambda: ready(log) == 3)
        assert second.is_running()
        for task in ("effect", "work"):
            service.wait(service.enqueue(task, task))


@pytest.mark.guarantee(
    "a worker that hangs is started again",
    pattern="tasks",
    under="SIGSTOP of its main process, an event loop that stands still",
)
@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGUSR2], ids=["stopped", "its loop stands still"])
def test_worker_that_hangs_is_started_again(service: Service, tmp_path: Path, number: signal.Signals) -> None:
    log = tmp_path / "log"
    with running(service, log, APP, "--hang-s", "3") as process:
        eventually(lambda: ready(log) == 1)
        (worker,) = psutil.Process(process.pid).children()
        service.wait(service.enqueue("effect", "before"))
        worker.send_signal(number)
        eventually(lambda: ready(log) == 2, within_s=30)
        assert "hangs: it is started again" in log.read_text()
        service.wait(service.enqueue("effect", "after"))
        assert not worker.is_running()


def test_second_signal_ends_workers_whose_tasks_are_waited_for(service: Service, tmp_path: Path) -> None:
    service.environment["TASKS"] = json.dumps({"drain_s": 600})
    log = tmp_path / "log"
    with running(service, log, APP) as process:
        eventually(lambda: ready(log) == 1)
        service.wait(service.enqueue("work", "long", 600.0), State.STARTED)
        process.send_signal(signal.SIGINT)
        eventually(lambda: "Hitting Ctrl+C again" in log.read_text())  # and SIGTERM follows


@pytest.mark.control("a worker that hangs is started again", "its heartbeat is not looked at")
def test_the_control_worker_that_hangs_takes_nothing(service: Service, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with running(service, log, APP, "--hang-s", "600") as process:
        eventually(lambda: ready(log) == 1)
        (worker,) = psutil.Process(process.pid).children()
        worker.suspend()
        id = service.enqueue("effect", "never")
        with pytest.raises(AssertionError, match="still"):
            service.wait(id, within_s=6)
        worker.resume()


def test_health_follows_broker_and_workers(
    make_service: Callable[..., Service], own_redis: RedisServer, tmp_path: Path
) -> None:
    service, log, port = make_service(own_redis.url), tmp_path / "log", free_port()

    def answer(path: str) -> tuple[int, str]:
        try:
            response = httpx.get(f"http://127.0.0.1:{port}{path}", timeout=10)
        except httpx.TransportError:
            return 0, ""
        return response.status_code, response.text

    with running(service, log, APP, "--health", f"127.0.0.1:{port}", "--hang-s", "4") as process:
        eventually(lambda: answer("/ready")[0] == 503 and "take no tasks yet" in answer("/ready")[1])
        eventually(lambda: answer("/ready")[0] == 200)
        assert 'tenfold_task_processes{queue="default"} ' in answer("/metrics")[1]
        own_redis.kill()
        eventually(lambda: "the broker does not answer" in answer("/ready")[1])
        (worker,) = psutil.Process(process.pid).children()
        start = time.monotonic()
        eventually(lambda: time.monotonic() - start > 6)  # longer than --hang-s: an outage is no hang
        with socket.create_connection(("127.0.0.1", port)):  # a client that sends nothing holds up no other
            assert answer("/live")[0] == 200
        assert worker.is_running()
        assert "hangs" not in log.read_text()
        own_redis.start()
        eventually(lambda: answer("/ready")[0] == 200)
        assert answer("/")[0] == 404
    assert answer("/live")[0] == 0


PLAIN = """
import os, time
from celery import Celery
app = Celery("plain", broker=os.environ["BROKER_URL"])

@app.task(name="slow")
def slow(path):
    open(path + ".started", "w").close()
    time.sleep(2)
    open(path + ".ended", "w").close()
"""


def test_tasks_of_another_celery_app_are_waited_for(service: Service, tmp_path: Path) -> None:
    (tmp_path / "plain_jobs.py").write_text(PLAIN)
    environment = {**os.environ, **service.environment, "PYTHONPATH": str(tmp_path), "C_FORCE_ROOT": "1"}
    log = (tmp_path / "log").open("wb")
    process = subprocess.Popen(
        [sys.executable, "-m", "tenfold", "tasks", "worker", "plain_jobs:app"],
        cwd=tmp_path, stdout=log, stderr=log, env=environment,
    )  # fmt: skip
    try:
        eventually(lambda: ready(tmp_path / "log") == 1, within_s=30)
        Celery("client", broker=service.broker).send_task("slow", (str(tmp_path / "task"),))
        eventually(lambda: (tmp_path / "task.started").exists())
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        assert (tmp_path / "task.ended").exists()
    finally:
        process.kill()
        log.close()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "no Celery app is named"),
        (("tests.tasks.no_such_module:celery",), "no_such_module"),
        (("tests.tasks.support.service:outbox",), "not a Celery app"),
        ((APP, "no-such-queue"), "no queue no-such-queue: there are default"),
        ((APP, APP), "two apps are named"),
        ((APP, "--health", "nonsense"), "the health endpoint cannot listen on nonsense"),
    ],
)
def test_wrong_names_are_one_sentence(service: Service, arguments: tuple[str, ...], words: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tenfold", "tasks", "worker", *arguments],
        cwd=ROOT, capture_output=True, text=True, env={**os.environ, **service.environment},
        timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr
