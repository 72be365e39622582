"""Status, findings and dead letters, by the command and by its functions."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tenfold.errors import TargetError, TaskError
from tenfold.tasks import operations
from tenfold.tasks.operations import QueueStatus, WorkerStatus, find_problems, mask_arguments, read_status
from tenfold.tasks.prometheus import render_metrics
from tenfold.tasks.states import State
from tests.support.servers import RedisServer
from tests.support.waiting import eventually
from tests.tasks.conftest import ROOT, Service
from tests.tasks.test_losses import publish_without_worker

APP = "tests.tasks.support.service:celery"


def tenfold(service: Service, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tenfold", "tasks", *arguments],
        cwd=ROOT, capture_output=True, text=True, env={**os.environ, **service.environment, "COLUMNS": "80"},
        timeout=60, check=False,
    )  # fmt: skip


# ------------------------------------------------------------------ status


def test_status_shows_what_waits_while_no_worker_lives(service: Service) -> None:
    ids = [service.enqueue("effect", f"n{number}") for number in range(3)]
    publish_without_worker(service, ids)
    service.enqueue("effect", "later", delay_s=60)
    done = tenfold(service, "status", APP)
    assert done.returncode == 1
    assert re.search(r"^default +3 ", done.stdout, re.MULTILINE)
    assert "queue default has no worker and 3 tasks waiting" in done.stdout
    assert max(map(len, done.stdout.splitlines()[:3])) <= 80
    (queue,) = json.loads(tenfold(service, "status", APP, "--json").stdout)["queues"]
    assert (queue["depth"], queue["published"], queue["delayed"], queue["workers"]) == (3, 3, 1, 0)


def test_status_of_a_healthy_worker_names_no_problem(make_service: Callable[..., Service]) -> None:
    service = make_service(lost_after_s=60)
    service.start_worker()
    service.wait(service.enqueue("effect", "x"))
    eventually(lambda: read_status(service.module.celery)[1])
    done = tenfold(service, "status", APP)
    assert (done.returncode, "nothing is wrong" in done.stdout) == (0, True), done.stdout + done.stderr
    (queue,), (worker,) = read_status(service.module.celery)
    assert (queue.done, queue.processes, queue.backlog, worker.queues) == (1, 2, 0, ("default",))
    assert queue.run_p95_s is not None and queue.wait_p95_s is not None


def test_metrics_are_what_the_ledger_says(service: Service) -> None:
    publish_without_worker(service, [service.enqueue("effect", "x")])
    service.enqueue("fail_for_good", "y")
    service.execute("UPDATE tenfold_tasks SET state = 'failed', finished_at = now() WHERE task LIKE '%fail%'")
    text = render_metrics(service.module.celery).decode()
    assert 'tenfold_tasks_waiting{queue="default"} 1.0' in text
    assert 'tenfold_tasks_dead{queue="default"} 1.0' in text
    assert 'tenfold_task_processes{queue="default"} 0.0' in text
    service.module.celery.ledger.close()
    service.module.celery.ledger._url = service.module.celery.ledger._url.set(port=1)
    assert "tenfold_tasks_waiting" not in render_metrics(service.module.celery).decode()


def test_settings_name_the_app_and_its_folder(service: Service, tmp_path: Path) -> None:
    file = tmp_path / "tenfold.toml"
    file.write_text(f'[service]\napp = "x:y"\nfolder = "{ROOT}"\n[tasks]\napp = "{APP}"\n')
    service.start_worker()
    eventually(lambda: read_status(service.module.celery)[1])
    for folder, named in ((tmp_path, ()), (tmp_path.parent, ("--settings", str(file)))):
        done = subprocess.run(
            [sys.executable, "-m", "tenfold", "tasks", "status", *named, "--json", "default"],
            cwd=folder, capture_output=True, text=True, env={**os.environ, **service.environment},
            timeout=60, check=False,
        )  # fmt: skip
        assert [queue["name"] for queue in json.loads(done.stdout)["queues"]] == ["default"], done.stderr


def test_killed_worker_is_named_and_one_that_ends_is_forgotten(service: Service) -> None:
    first, second = service.start_worker(processes=1), service.start_worker(processes=1)
    eventually(lambda: len(read_status(service.module.celery)[1]) == 2)
    assert second.terminate() == 0
    first.kill()

    def problems() -> list[str]:
        queues, workers = read_status(service.module.celery)
        return find_problems([queues], workers, lost_after_s=1)

    eventually(lambda: [problem for problem in problems() if "no sign of life" in problem])
    assert len(read_status(service.module.celery)[1]) == 1


def test_broker_that_is_away_is_named_and_the_database_still_counts(
    make_service: Callable[..., Service], own_redis: RedisServer
) -> None:
    service = make_service(own_redis.url)
    service.enqueue("effect", "x")
    own_redis.kill()
    (queue,), workers = read_status(service.module.celery)
    assert (queue.depth, queue.due) == (None, 1)
    assert "the broker does not answer" in find_problems([[queue]], workers, lost_after_s=30)[0]
    own_redis.start()


def test_database_that_is_away_is_one_sentence(service: Service) -> None:
    service.environment["DATABASE_URL"] = "postgresql+psycopg://u:secret@127.0.0.1:1/x"
    done = tenfold(service, "status", APP)
    assert done.returncode == 2
    assert done.stderr.startswith("tenfold: the database of the tasks does not answer")
    assert "secret" not in done.stderr and "Traceback" not in done.stderr


def queue(**values: Any) -> QueueStatus:
    return QueueStatus(name="q", **{"depth": 0, "workers": 1, "processes": 2, **values})


@pytest.mark.parametrize(
    ("samples", "words"),
    [
        ([queue()], None),
        ([queue(depth=500, running=2, oldest_s=90)], None),  # busy, and working
        ([queue(depth=5, oldest_s=90)], "start nothing, and the oldest task has waited for 90 s"),
        ([queue(depth=n * 14, running=2) for n in range(11)], "backlog of q grows by 140 in this time"),
        ([queue(depth=n, running=2) for n in (100, 300, 0, 90)], None),
        ([queue(depth=n, running=2) for n in (0, 1, 2, 3)], None),  # by chance
        ([queue(workers=0, due=1)], "queue q has no worker and 1 task waiting"),
        ([queue(workers=0)], None),
        ([queue(dead=2)], "queue q has 2 tasks that failed for good"),
        ([queue(depth=None)], "the broker does not answer"),
    ],
)
def test_problems_are_named(samples: list[QueueStatus], words: str | None) -> None:
    found = find_problems([[one] for one in samples], [], lost_after_s=30)
    assert (words is None and found == []) or (words is not None and words in found[0])


def test_silent_worker_is_a_problem() -> None:
    workers = [WorkerStatus(name="a@h", queues=("q",), processes=1, silent_s=31)]
    (problem,) = find_problems([[queue()]], workers, lost_after_s=30)
    assert problem == "worker a@h gives no sign of life for 31 s: its tasks start elsewhere"


# ------------------------------------------------------------------ dead letters


def fail(service: Service, name: str) -> Any:
    id = service.enqueue("fail_for_good", name, key=f"key of {name}")
    service.wait(id, State.FAILED)
    return id


def test_dead_task_is_shown_and_replayed_under_its_key(service: Service) -> None:
    service.start_worker(processes=1)
    id = fail(service, "first")
    listed = tenfold(service, "dead", "list", APP).stdout
    assert str(id) in listed and "LookupError: no such thing" in listed
    shown = tenfold(service, "dead", "show", str(id), APP).stdout
    assert "key of first" in shown and "Traceback" in shown and '[["first"], {}]' in shown
    before = len(service.effects("first"))
    done = tenfold(service, "dead", "replay", str(id), APP)
    assert (done.returncode, done.stdout) == (0, "✔ 1 task enqueued again\n")
    eventually(lambda: len(service.effects("first")) == before + 1)
    service.wait(id, State.FAILED)
    assert service.enqueue("fail_for_good", "first", key="key of first") == id


@pytest.mark.guarantee(
    "a replayed task has its database effects once", pattern="tasks", under="replay by two operators"
)
def test_replay_by_two_operators_has_one_effect(service: Service) -> None:
    id = service.enqueue("fail_first", "replayed", 1)
    service.execute("UPDATE tenfold_tasks SET state = 'failed', finished_at = now(), error = 'x'")
    service.execute("INSERT INTO effects (name, detail) VALUES ('replayed', 'attempt')")
    app = service.module.celery
    assert operations.replay(app, ids=[id]) == 1
    with pytest.raises(TaskError, match=f"task {id} is waiting, not failed"):
        operations.replay(app, ids=[id])
    service.start_worker()
    service.wait(id)
    assert service.effects("replayed").count("effect") == 1


@pytest.mark.control("a replayed task has its database effects once", "replayed without its key")
def test_the_control_task_that_is_sent_again_by_hand_has_two(service: Service) -> None:
    ids = [service.enqueue("effect", "by hand") for _ in range(2)]
    service.start_worker()
    for id in ids:
        service.wait(id)
    assert len(service.effects("by hand")) == 2


def test_replay_and_discard_of_many(service: Service) -> None:
    service.start_worker(processes=2)
    ids = [fail(service, f"n{number}") for number in range(3)]
    app = service.module.celery
    assert operations.discard(app, ids=ids[:1]) == 1
    assert service.status(ids[0]).state is State.CANCELLED
    assert tenfold(service, "dead", "discard", APP).returncode == 2
    assert operations.discard(app, task="another") == 0
    assert "✔ 2 tasks discarded" in tenfold(service, "dead", "discard", APP, "--all").stdout
    assert "no task has failed" in tenfold(service, "dead", APP).stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("dead", "show", "7", APP), "'7' is no id of a task"),
        (("dead", "replay", "00000000-0000-0000-0000-000000000001", APP), "no task 00000000"),
        (("dead", "replay", APP), "nothing is chosen"),
        (("dead", "burn", APP), "dead has no 'burn'"),
        (("status", APP, "nowhere"), "no queue nowhere: there are default"),
        (("explode", APP), "no action 'explode'"),
        (("status", "tests.tasks.support.service:nothing"), "cannot be loaded"),
    ],
)
def test_wrong_names_are_one_sentence(service: Service, arguments: tuple[str, ...], words: str) -> None:
    done = tenfold(service, *arguments)
    assert (done.returncode, words in done.stderr) == (2, True), done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_running_task_is_not_replayed(service: Service) -> None:
    service.start_worker(processes=1)
    id = service.enqueue("work", "runs", seconds=2)
    service.wait(id, State.STARTED)
    with pytest.raises(TaskError, match="is started, not failed: it cannot be replayed or discarded"):
        operations.replay(service.module.celery, ids=[id])


def test_secrets_in_arguments_are_masked() -> None:
    text = '[["postgresql://u:pw@h/d", {"api_key": "k", "card": {"number": "4"}}], {"password": "x", "n": 1}]'
    masked = mask_arguments(text)
    assert json.loads(mask_arguments('[[1], {"n": 2}]')) == [[1], {"n": 2}]
    for secret in ("pw", '"k"', '"x"'):
        assert secret not in masked


def test_unknown_database_is_a_target_error(service: Service) -> None:
    app = service.module.celery
    app.ledger.close()
    app.ledger._url = app.ledger._url.set(port=1)
    with pytest.raises(TargetError, match="does not answer"):
        operations.list_dead(app)
