"""What is killed, paused, emptied or restarted while tasks run: nothing is lost, nothing happens twice."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest
from sqlalchemy.orm import Session

from tenfold.tasks.states import State
from tests.support.servers import RedisServer
from tests.support.waiting import eventually
from tests.tasks.conftest import Service


@pytest.mark.guarantee(
    "a task survives the death of its worker", pattern="tasks", under="kill -9 of the node"
)
def test_killed_workers_tasks_are_started_elsewhere(service: Service) -> None:
    first = service.start_worker()
    ids = [service.enqueue("effect", f"task {number}", seconds=1.5) for number in range(2)]
    for id in ids:
        service.wait(id, State.STARTED)
    first.kill()
    service.start_worker()
    for number, id in enumerate(ids):
        service.wait(id)
        assert service.effects(f"task {number}") == [""]


@pytest.mark.control("a task survives the death of its worker", "past the outbox, with Celery's defaults")
def test_the_control_early_acknowledged_task_is_lost(service: Service) -> None:
    first = service.start_worker()
    service.module.celery.send_task("tests.tasks.support.service.early", ("lost",))
    eventually(lambda: service.effects("lost") == ["start"])
    first.kill()
    service.start_worker()
    service.wait(service.enqueue("effect", "afterwards"))
    assert service.effects("lost") == ["start"]
    assert service.execute("SELECT 1 FROM tenfold_tasks WHERE task LIKE '%early'") == []


def test_killed_task_that_was_sent_past_the_outbox_is_started_elsewhere(service: Service) -> None:
    first = service.start_worker(processes=1)
    service.module.keyed.delay("sent", seconds=1.5)
    eventually(lambda: service.execute("SELECT 1 FROM tenfold_tasks WHERE state = 'started'"))
    first.kill()
    service.start_worker(processes=1)
    eventually(lambda: service.effects("sent") == [""])


def test_killed_process_of_a_worker_loses_no_task(service: Service) -> None:
    worker = service.start_worker(processes=1)
    id = service.enqueue("effect", "killed", seconds=1)
    service.wait(id, State.STARTED)
    for child in worker.children():
        child.kill()
    service.wait(id)
    assert service.effects("killed") == [""]


@pytest.mark.guarantee(
    "a task that kills its processes is given up, and the others go on", pattern="tasks", under="poison"
)
def test_task_that_kills_its_process_is_given_up(service: Service) -> None:
    service.start_worker()
    poison = service.enqueue("kill_own_process", "poison")
    others = [service.enqueue("effect", f"other {number}") for number in range(5)]
    status = service.wait(poison, State.FAILED, within_s=40)
    assert "killed or ended 3 times" in status.error
    assert service.effects("poison") == ["start"] * 3
    for id in others:
        service.wait(id)


@pytest.mark.control(
    "a task that kills its processes is given up, and the others go on", "starts are not counted"
)
def test_the_control_poison_goes_on_for_ever(make_service: Callable[..., Service]) -> None:
    service = make_service(max_crashes=100)
    service.start_worker()
    service.enqueue("kill_own_process", "poison")
    eventually(lambda: len(service.effects("poison")) > 3, within_s=40)


def test_emptied_redis_loses_no_task(service: Service, redis_server: RedisServer) -> None:
    publish_without_worker(service, ids := [service.enqueue("effect", f"kept {n}") for n in range(5)])
    redis_server.command("FLUSHALL")
    service.start_worker()
    for number, id in enumerate(ids):
        service.wait(id)
        assert service.effects(f"kept {number}") == [""]


@pytest.mark.guarantee(
    "a message that the broker lost is sent again", pattern="tasks", under="loss between pop and unacked"
)
def test_message_lost_between_pop_and_unacked_is_found(service: Service, redis_server: RedisServer) -> None:
    publish_without_worker(service, [lost := service.enqueue("effect", "popped")])
    redis_server.command("RPOP", "default")
    publish_without_worker(service, [service.enqueue("effect", "next")])
    service.execute(
        "UPDATE tenfold_tasks SET published_at = published_at - interval '1 minute' WHERE id = :id", id=lost
    )
    service.start_worker()
    service.wait(lost)
    assert service.effects("popped") == [""]


@pytest.mark.control("a message that the broker lost is sent again", "the relay does not look for lost ones")
def test_the_control_a_popped_message_never_runs(service: Service, redis_server: RedisServer) -> None:
    publish_without_worker(service, [lost := service.enqueue("effect", "popped")])
    redis_server.command("RPOP", "default")
    service.execute("UPDATE tenfold_tasks SET epoch = NULL, published_at = NULL")  # which it goes by
    service.start_worker()
    service.wait(service.enqueue("effect", "next"))
    assert service.status(lost).state is State.ENQUEUED


def test_long_queue_is_not_taken_for_lost(service: Service, redis_server: RedisServer) -> None:
    ids = [service.enqueue("effect", f"queued {number}") for number in range(5)]
    publish_without_worker(service, ids)
    service.module.work.delay("past the outbox")
    move = "UPDATE tenfold_tasks SET published_at = published_at + CAST(:by AS interval)"
    service.execute(f"{move} WHERE id = :id", by="1 minute", id=ids[0])  # as if it had been published again
    assert find_lost(service) == 0
    redis_server.command("LTRIM", "default", "0", "0")
    service.execute(move, by="-1 hour")
    assert find_lost(service) == 0  # the head was sent past the outbox: its age is not known
    redis_server.command("DEL", "default")
    assert find_lost(service) == 5


def find_lost(service: Service) -> int:
    celery = service.module.celery
    with celery.ledger.session_engine.connect() as connection, celery.connection_for_write() as broker:
        return int(celery.relay.find_lost(connection, broker))


def publish_without_worker(service: Service, ids: list[object]) -> None:
    """Publish what is due as the relay of a worker does, which then died."""
    celery = service.module.celery
    with celery.ledger.session_engine.connect() as connection, celery.connection_for_write() as broker:
        assert celery.relay.publish(connection, broker) == len(ids)


def test_outage_of_the_broker_uses_up_no_attempt(
    make_service: Callable[..., Service], own_redis: RedisServer
) -> None:
    service = make_service(own_redis.url)
    worker = service.start_worker()
    service.wait(service.enqueue("effect", "before"))
    own_redis.kill()
    id = service.enqueue("effect", "during")  # the outbox takes it
    own_redis.start()
    status = service.wait(id, within_s=40, restarting=worker)
    assert (status.attempts, service.effects("during")) == (0, [""])


def test_redis_that_restarts_empty_under_a_running_task(
    make_service: Callable[..., Service], own_redis: RedisServer
) -> None:
    service = make_service(own_redis.url)
    worker = service.start_worker()
    id = service.enqueue("effect", "running", seconds=3)
    service.wait(id, State.STARTED)
    own_redis.kill()
    own_redis.start()
    service.wait(id)
    assert service.effects("running") == [""]
    assert worker.process.poll() is None


@pytest.mark.guarantee(
    "a paused worker that wakes up changes nothing that was started elsewhere",
    pattern="tasks",
    under="SIGSTOP",
)
def test_paused_worker_stores_nothing_after_its_task_ran_elsewhere(service: Service) -> None:
    paused = service.start_worker(processes=1)
    id = service.enqueue("effect", "paused", seconds=0.5)
    service.wait(id, State.STARTED)
    os.killpg(paused.process.pid, signal.SIGSTOP)
    service.start_worker(processes=1)
    service.wait(id)
    os.killpg(paused.process.pid, signal.SIGCONT)
    eventually(lambda: "Task" in paused.log.read_text() and is_idle(service))
    service.wait(service.enqueue("effect", "and on"))
    assert service.effects("paused") == [""]


@pytest.mark.control(
    "a paused worker that wakes up changes nothing that was started elsewhere", "without @once"
)
def test_the_control_a_paused_bare_task_has_its_effect_twice(service: Service) -> None:
    paused = service.start_worker(processes=1)
    id = service.enqueue("work", "paused", 0.5)
    eventually(lambda: service.effects("paused") == ["start"])
    os.killpg(paused.process.pid, signal.SIGSTOP)
    service.start_worker(processes=1)
    service.wait(id)
    os.killpg(paused.process.pid, signal.SIGCONT)
    eventually(lambda: service.effects("paused").count("end") == 2)


def is_idle(service: Service) -> bool:
    return not service.execute(
        "SELECT 1 FROM tenfold_tasks WHERE state IN ('started', 'published', 'waiting')"
    )


@pytest.mark.guarantee(
    "a worker that is told to end gives its tasks back, and none starts over",
    pattern="tasks",
    under="a rolling replacement, SIGTERM",
)
def test_task_longer_than_the_drain_goes_on_from_its_checkpoint(
    make_service: Callable[..., Service],
) -> None:
    service = make_service(lost_after_s=600)
    first = service.start_worker(processes=1)
    id = service.enqueue("count_slowly", "long", 60)  # 3 s and more; the drain is 1 s
    eventually(lambda: len(service.effects("long")) > 5)
    first.terminate()
    (row,) = service.execute("SELECT state, starts FROM tenfold_tasks WHERE id = :id", id=id)
    assert tuple(row) == ("waiting", 0)
    service.start_worker(processes=1)
    assert service.wait(id).result == list(range(60))
    counted = [int(number) for number in service.effects("long")]
    assert len(counted) - len(set(counted)) <= 1  # the step that was interrupted
    (row,) = service.execute("SELECT starts, attempts FROM tenfold_tasks WHERE id = :id", id=id)
    assert tuple(row) == (0, 0)


@pytest.mark.control(
    "a worker that is told to end gives its tasks back, and none starts over", "kill -9, and no checkpoint"
)
def test_the_control_a_killed_task_without_checkpoint_starts_over(service: Service) -> None:
    first = service.start_worker(processes=1)
    id = service.enqueue("work", "over", 1.0)
    eventually(lambda: service.effects("over") == ["start"])
    first.kill()
    service.start_worker(processes=1)
    service.wait(id)
    assert service.effects("over") == ["start", "start", "end"]


def test_short_tasks_end_within_the_drain(service: Service) -> None:
    worker = service.start_worker(processes=2)
    ids = [service.enqueue("effect", f"short {n}", seconds=0.5) for n in range(2)]
    for id in ids:
        service.wait(id, State.STARTED)
    assert worker.terminate() == 0
    assert [service.status(id).state for id in ids] == [State.SUCCEEDED] * 2


def test_unknown_task_is_kept_for_a_newer_worker_and_then_given_up(service: Service) -> None:
    id = service.enqueue("effect", "new")
    service.execute("UPDATE tenfold_tasks SET task = 'service.of_tomorrow' WHERE id = :id", id=id)
    service.start_worker()
    status = service.wait(id, State.FAILED)
    assert status.error == "no worker knows a task service.of_tomorrow: deploy one that does"


def test_database_that_is_away_for_a_moment_loses_no_task(service: Service) -> None:
    service.start_worker()
    service.wait(service.enqueue("effect", "before"))
    ids = [service.enqueue("effect", f"cut {n}", seconds=0.3) for n in range(4)]
    service.wait(ids[0], State.STARTED)
    for _ in range(3):
        with service.admin.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                f"WHERE datname = '{service.name}' AND pid <> pg_backend_pid()"
            )
        service.engine.dispose()
    for number, id in enumerate(ids):
        service.wait(id)
        assert service.effects(f"cut {number}") == [""]


def test_worker_of_one_queue_leaves_the_others_alone(make_service: Callable[..., Service]) -> None:
    service = make_service(queues={"reports": {"tasks": ["*.work"], "concurrency": 1}})
    service.start_worker(queues="default")
    report = service.enqueue("work", "report")
    service.wait(service.enqueue("effect", "default"))
    assert service.status(report).state is State.ENQUEUED
    service.start_worker(queues="reports")
    service.wait(report)


def test_forked_processes_have_connections_of_their_own(service: Service) -> None:
    service.start_worker("--max-tasks-per-child", "2", processes=3)
    with Session(service.engine) as session:
        ids = [service.module.outbox.enqueue(session, service.module.effect, f"n{n}") for n in range(60)]
        session.commit()
    for id in ids:
        service.wait(id)
    assert len(service.effects()) == 60
