"""Real servers and workers for tasks."""

from __future__ import annotations

import importlib
import json
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
import pytest
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

from tenfold.tasks.states import State
from tenfold.tasks.table import create_table
from tests.sessions.conftest import own_redis, postgresql_server, redis_server
from tests.support.servers import PostgreSQLServer, RedisServer
from tests.support.waiting import eventually

__all__ = ["own_redis", "postgresql_server", "redis_server"]

ROOT = Path(__file__).parents[2]
FAST = {"retry_base_s": 0.05, "lost_after_s": 1, "drain_s": 1}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the oldest Redis where it makes no difference."""

    def is_superfluous(item: pytest.Item) -> bool:
        parameters = getattr(getattr(item, "callspec", None), "params", {})
        is_here = item.nodeid.startswith("tests/tasks/")
        return is_here and parameters.get("redis_program") == "redis" and item.path.stem != "test_redis_kinds"

    left_out = {item for item in items if is_superfluous(item)}
    if left_out:
        config.hook.pytest_deselected(items=list(left_out))
        items[:] = [item for item in items if item not in left_out]


class Service:
    """The service of tests/tasks/support in a database of its own, and its workers."""

    def __init__(self, admin: Engine, url: str, broker: str, settings: dict[str, Any], folder: Path) -> None:
        self.admin, self.broker, self.folder = admin, broker, folder
        self.name = f"tasks_{secrets.token_hex(4)}"
        with admin.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text(f"CREATE DATABASE {self.name}"))
        self.url = url.rpartition("/")[0] + f"/{self.name}"
        self.environment = {
            "BROKER_URL": broker,
            "DATABASE_URL": self.url,
            "TASKS": json.dumps({**FAST, **settings}),
        }
        self.engine = create_engine(self.url)
        create_table(self.engine)
        with self.engine.begin() as connection:
            connection.execute(text("CREATE TABLE effects (id serial, name text, detail text)"))
        os.environ.update(self.environment)
        sys.modules.pop("tests.tasks.support.service", None)
        self.module: ModuleType = importlib.import_module("tests.tasks.support.service")
        self.workers: list[Worker] = []

    def start_worker(self, *options: str, queues: str = "default", processes: int = 2) -> Worker:
        worker = Worker(self, *options, "-Q", queues, "-c", str(processes))
        self.workers.append(worker)
        return worker

    def enqueue(self, task: str, *args: Any, **kwargs: Any) -> Any:
        with Session(self.engine) as session:
            id = self.module.outbox.enqueue(session, getattr(self.module, task), *args, **kwargs)
            session.commit()
        return id

    def status(self, id: Any) -> Any:
        with Session(self.engine) as session:
            return self.module.outbox.status(session, id)

    def wait(
        self,
        id: Any,
        state: State = State.SUCCEEDED,
        *,
        within_s: float = 20.0,
        restarting: Worker | None = None,
    ) -> Any:
        """Wait for a state; a final one that is another fails at once.

        ``restarting`` is started again when it has ended, as tenfold tasks worker does: Celery's do at times
        when their broker restarts.
        """

        def look() -> Any:
            nonlocal restarting
            if restarting is not None and restarting.process.poll() is not None:
                restarting = self.start_worker()
            status = self.status(id)
            assert status.state is state or not status.state.is_final, status
            return status.state is state and status

        return eventually(look, within_s=within_s)

    def effects(self, name: str | None = None) -> list[str]:
        with self.engine.connect() as connection:
            rows = connection.execute(
                text("SELECT detail FROM effects WHERE name = coalesce(:name, name) ORDER BY id"),
                {"name": name},
            )
            return list(rows.scalars())

    def execute(self, statement: str, **values: Any) -> list[Any]:
        with self.engine.begin() as connection:
            result = connection.execute(text(statement), values)
            return list(result.all()) if result.returns_rows else []

    def close(self) -> None:
        for worker in self.workers:
            worker.kill()
        self.module.celery.ledger.close()
        self.module.celery.close()
        self.engine.dispose()
        with self.admin.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text(f"DROP DATABASE {self.name} WITH (FORCE)"))
        for name in self.environment:
            os.environ.pop(name, None)
        sys.modules.pop("tests.tasks.support.service", None)


class Worker:
    """A Celery worker with its processes."""

    def __init__(self, service: Service, *options: str) -> None:
        self.log = service.folder / f"worker-{secrets.token_hex(2)}.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    sys.executable, "-m", "celery", "-A", "tests.tasks.support.service:celery", "worker",
                    "--without-gossip", "--without-mingle", "-l", "INFO",
                    "-n", f"{self.log.stem}@%h", *options,
                ],
                cwd=ROOT, stdout=log, stderr=log, start_new_session=True,
                env={**os.environ, **service.environment, "REMAP_SIGTERM": "SIGQUIT", "C_FORCE_ROOT": "1"},
            )  # fmt: skip
        eventually(lambda: "ready." in self.log.read_text() or self.process.poll() is not None, within_s=30)
        assert "ready." in self.log.read_text(), self.log.read_text()  # it may have died of its task since

    def children(self) -> list[psutil.Process]:
        with suppress(psutil.NoSuchProcess):
            return psutil.Process(self.process.pid).children(recursive=True)
        return []

    def kill(self) -> None:
        """End it with all its processes, as a node that goes down."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(10)

    def terminate(self, *, within_s: float = 30.0) -> int:
        """Send SIGTERM, and wait until it has ended."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(within_s)


@contextmanager
def open_services(
    postgresql: PostgreSQLServer, redis: RedisServer, folder: Path
) -> Iterator[Callable[..., Service]]:
    """A factory of services; they and their workers end with the block."""
    made: list[Service] = []
    admin = create_engine(postgresql.url, poolclass=NullPool)  # which may be restarted

    def make(broker: str = "", **settings: Any) -> Service:
        if not broker:
            redis.command("FLUSHALL")
        made.append(Service(admin, postgresql.url, broker or redis.url, settings, folder))
        return made[-1]

    try:
        yield make
    finally:
        for service in made:
            service.close()
        admin.dispose()


@pytest.fixture
def make_service(
    postgresql_server: PostgreSQLServer, redis_server: RedisServer, tmp_path: Path
) -> Iterator[Callable[..., Service]]:
    with open_services(postgresql_server, redis_server, tmp_path) as make:
        yield make


@pytest.fixture(scope="module")
def module_service(
    postgresql_server: PostgreSQLServer, redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., Service]]:
    with open_services(postgresql_server, redis_server, tmp_path_factory.mktemp("workers")) as make:
        yield make


@pytest.fixture
def service(make_service: Callable[..., Service]) -> Service:
    return make_service()
