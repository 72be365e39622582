"""Orders are placed while workers, relays, Redis and PostgreSQL are killed: each has one effect."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from tenfold.settings import Settings
from tenfold.stack.programs import find_postgresql
from tests.support.servers import PostgreSQLServer, RedisServer
from tests.support.waiting import eventually
from tests.tasks.conftest import Service, open_services

EXACTLY_ONCE = "every committed order has its effect exactly once, and no other has one"
OPEN = "SELECT count(*) FROM tenfold_tasks WHERE state IN ('waiting', 'published', 'started')"


@pytest.fixture
def own_postgresql(requires_server: Callable[[Any, str], Any]) -> Iterator[PostgreSQLServer]:
    server = PostgreSQLServer(requires_server(find_postgresql(Settings()), "PostgreSQL").path.parent)
    yield server
    server.close()


class Soak:
    """Places orders, and kills what they depend on."""

    def __init__(self, service: Service, servers: list[Any], *, seed: int, task: str) -> None:
        self.service, self.servers, self.task = service, servers, task
        self.random = random.Random(seed)
        self.faults: Counter[str] = Counter()
        with service.engine.begin() as connection:
            connection.execute(text("CREATE TABLE orders (name text PRIMARY KEY)"))

    def place(self, number: int, *, is_kept: bool) -> None:
        """Place an order; one whose COMMIT has no answer is in the table or not."""
        name = f"order {number}"
        task = getattr(self.service.module, self.task)
        while True:
            try:
                with Session(self.service.engine) as session:
                    session.execute(text("INSERT INTO orders VALUES (:name)"), {"name": name})
                    self.enqueue(session, task, name)
                    (session.commit if is_kept else session.rollback)()
                return
            except DBAPIError as error:
                if "duplicate key" in str(error):
                    return
                time.sleep(0.05)

    def enqueue(self, session: Session, task: Any, name: str) -> None:
        seconds = self.random.choice([0, 0, 0, 0.02, 0.1])
        self.service.module.outbox.enqueue(session, task, name, seconds=seconds, key=name)

    def hurt(self) -> None:
        """Kill, pause or restart something."""
        workers = self.service.workers
        fault = self.random.choice(["worker", "process", "pause", "drain", "redis", "postgresql"])
        self.faults[fault] += 1
        victim = self.random.choice(workers)
        if fault == "worker":
            victim.kill()
        elif fault == "process" and (children := victim.children()):
            with suppress(psutil.NoSuchProcess):
                self.random.choice(children).kill()
        elif fault == "pause":
            os.killpg(victim.process.pid, signal.SIGSTOP)
            time.sleep(1.5)  # longer than until it is taken for lost
            os.killpg(victim.process.pid, signal.SIGCONT)
        elif fault == "drain":
            victim.terminate()
        elif fault == "redis":
            self.servers[0].kill()
            self.servers[0].start()
        elif fault == "postgresql":
            self.servers[1].kill()
            self.servers[1].start()
        for worker in [worker for worker in workers if worker.process.poll() is not None]:
            workers.remove(worker)
            self.service.start_worker()

    def run(self, orders: int) -> None:
        for _ in range(2):
            self.service.start_worker()
        placing = threading.Thread(target=self.place_all, args=(orders,))
        placing.start()
        while placing.is_alive():
            placing.join(self.random.uniform(0.3, 1.0))
            self.hurt()
        eventually(lambda: self.is_done(), within_s=60)

    def place_all(self, orders: int) -> None:
        for number in range(orders):
            self.place(number, is_kept=number % 10 != 0)
            time.sleep(0.02)

    def is_done(self) -> bool:
        with suppress(DBAPIError):
            return self.service.execute(OPEN)[0][0] == 0
        return False

    def damage(self) -> dict[str, int]:
        """Count the orders without their one effect, and the effects without an order."""
        effects = Counter(row.name for row in self.service.execute("SELECT name FROM effects"))
        orders = {row.name for row in self.service.execute("SELECT name FROM orders")}
        return {
            "missing": len(orders - effects.keys()),
            "double": sum(count > 1 for count in effects.values()),
            "ghosts": len(effects.keys() - orders),
        }


@pytest.fixture
def make_soak(
    own_redis: RedisServer, own_postgresql: PostgreSQLServer, tmp_path: Path
) -> Iterator[Callable[..., Soak]]:
    with open_services(own_postgresql, own_redis, tmp_path) as make:

        def make_soak(
            kind: type[Soak] = Soak, *, seed: int = 1, task: str = "effect", **settings: Any
        ) -> Soak:
            # A worker that is killed with its tasks kills those as well: not the task's fault here.
            service = make(own_redis.url, max_crashes=50, **settings)
            return kind(service, [own_redis, own_postgresql], seed=seed, task=task)

        yield make_soak


NONE = {"missing": 0, "double": 0, "ghosts": 0}


@pytest.mark.guarantee(
    EXACTLY_ONCE, pattern="tasks", under="kill -9 of workers, Redis and PostgreSQL, pauses, drains"
)
def test_orders_have_their_effect_once_whatever_is_killed(make_soak: Callable[..., Soak]) -> None:
    soak = make_soak()
    soak.run(200)
    assert soak.damage() == NONE, soak.faults


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", range(20))
def test_orders_have_their_effect_once_for_long(make_soak: Callable[..., Soak], seed: int) -> None:
    soak = make_soak(seed=seed)
    soak.run(500)
    assert soak.damage() == NONE, soak.faults


class WithWorkersKilled(Soak):
    """Kills both workers while each task that runs has had its effect and has not ended."""

    RUNNING = "SELECT count(*) FROM effects JOIN tenfold_tasks ON key = name WHERE state = 'started'"

    def enqueue(self, session: Session, task: Any, name: str) -> None:
        self.service.module.outbox.enqueue(session, task, name, seconds=0.3, key=name)

    def hurt(self) -> None:
        eventually(lambda: self.service.execute(self.RUNNING)[0][0] > 0 or self.is_done())
        for worker in list(self.service.workers):
            worker.kill()
            self.service.workers.remove(worker)
            self.service.start_worker()


@pytest.mark.control(EXACTLY_ONCE, "without @once")
def test_the_control_without_once_effects_are_doubled(make_soak: Callable[..., Soak]) -> None:
    soak = make_soak(WithWorkersKilled, task="bare_effect")
    soak.run(40)
    assert soak.damage()["double"] > 0


class PastTheOutbox(Soak):
    """Sends its tasks before it commits."""

    def enqueue(self, session: Session, task: Any, name: str) -> None:
        with suppress(Exception):  # the broker is away
            task.apply_async((name,), retry=False)


@pytest.mark.control(EXACTLY_ONCE, "without the outbox")
def test_the_control_without_the_outbox_effects_lack_orders(make_soak: Callable[..., Soak]) -> None:
    soak = make_soak(PastTheOutbox)
    soak.run(100)
    assert soak.damage()["ghosts"] > 0


POINTS = ["claim", "store", "commit", "failure", "publish", "sweep"]


@pytest.mark.parametrize("point", POINTS)
def test_death_at_a_point_between_two_steps_changes_nothing(
    service: Service, point: str, tmp_path: Path
) -> None:
    service.environment.update(FAILPOINT=point, DIED=str(tmp_path / "died"))
    service.start_worker()
    ids = [service.enqueue("effect", f"n{number}") for number in range(3)]
    ids.append(service.enqueue("fail_first", "n3", 1))
    if point in ("publish", "sweep"):  # the main process has died
        eventually((tmp_path / "died").exists)
        service.start_worker()
    for id in ids:
        service.wait(id)
    assert (tmp_path / "died").exists()
    assert [len(service.effects(f"n{number}")) for number in range(3)] == [1, 1, 1]
    assert service.effects("n3").count("effect") == 1
