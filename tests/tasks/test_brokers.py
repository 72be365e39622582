"""Brokers that are no Redis: RabbitMQ with quorum queues, and SQS as moto's server answers it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tenfold.errors import DependencyError
from tenfold.tasks import celery
from tenfold.tasks.states import State
from tests.support.servers import free_port
from tests.support.waiting import eventually
from tests.tasks.conftest import Service
from tests.tasks.support.rabbitmq import RabbitMQServer, find_rabbitmq
from tests.tasks.test_losses import publish_without_worker


@pytest.fixture(scope="module")
def rabbitmq(requires_server: Callable[[Path | None, str], Path]) -> Iterator[RabbitMQServer]:
    server = RabbitMQServer(requires_server(find_rabbitmq(), "RabbitMQ"))
    yield server
    server.close()


def test_rabbitmq_and_workers_are_killed(
    make_service: Callable[..., Service], rabbitmq: RabbitMQServer
) -> None:
    service = make_service(rabbitmq.url)
    first = service.start_worker()
    running = service.enqueue("effect", "running", seconds=1)
    service.wait(service.enqueue("fail_first", "raises", 1))
    service.wait(running, State.STARTED)
    rabbitmq.kill()
    during = service.enqueue("effect", "during")
    rabbitmq.start()
    service.wait(during)
    service.wait(running)
    killed = service.enqueue("effect", "killed", seconds=1)
    service.wait(killed, State.STARTED)
    first.kill()
    service.start_worker()
    service.wait(killed)
    assert [service.effects(name) for name in ("running", "during", "killed")] == [[""]] * 3


def test_rabbitmq_without_its_data_is_sent_everything_again(
    make_service: Callable[..., Service], rabbitmq: RabbitMQServer
) -> None:
    service = make_service(rabbitmq.url)
    publish_without_worker(service, ids := [service.enqueue("effect", f"kept {n}") for n in range(3)])
    rabbitmq.forget()
    service.start_worker()
    for number, id in enumerate(ids):
        service.wait(id)
        assert service.effects(f"kept {number}") == [""]


@pytest.fixture(scope="module")
def sqs() -> Iterator[str]:
    """moto's SQS; yields its URL as a broker's."""
    port = free_port()
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    def answers() -> Any:
        try:
            return httpx.get(f"http://127.0.0.1:{port}/moto-api/").is_success
        except httpx.TransportError:
            return False

    try:
        eventually(answers, within_s=30)
        yield f"sqs://key:secret@127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()


def test_sqs_runs_tasks_of_a_worker_that_is_killed(make_service: Callable[..., Service], sqs: str) -> None:
    service = make_service(sqs, transport={"region": "us-east-1", "is_secure": False})
    first = service.start_worker()
    service.wait(service.enqueue("fail_first", "raises", 1))
    killed = service.enqueue("effect", "killed", seconds=1)
    service.wait(killed, State.STARTED)
    first.kill()
    service.start_worker()
    service.wait(killed)
    assert service.effects("killed") == [""]


def test_sqs_without_its_libraries_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(celery, "find_spec", lambda name: None)
    with pytest.raises(DependencyError, match=r"pip install 'celery\[sqs\]' pycurl"):
        celery.create_celery("x", broker_url="sqs://", database_url="postgresql://127.0.0.1/x")
