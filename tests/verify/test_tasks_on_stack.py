"""The checks of background tasks on real stacks, one that loses them and one that does not."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import psutil
import pytest

from tenfold.errors import SettingsError
from tenfold.measure.observer import StackObserver
from tenfold.measure.settings import Objective
from tenfold.measure.trial import GeneratorHealth, Trial, TrialRequest
from tenfold.settings import Settings
from tenfold.stack import Stack, programs
from tenfold.tasks.settings import StackTaskSettings
from tenfold.types import Verdict
from tenfold.verify import CHECKS, run, select
from tenfold.verify.kit.user_agent import Answer
from tenfold.verify.tasks.background import (
    Latencies,
    Started,
    find_gauges,
    find_id,
    judge_backlog,
    judge_lost_tasks,
    judge_prompt_requests,
    judge_quick_requests,
    risen_metrics,
)
from tests.support.waiting import eventually
from tests.verify.support import tasks


@pytest.fixture(scope="module")
def careful(requires_server: Callable[[Any, str], Any]) -> Iterator[tuple[Stack, Settings]]:
    requires_server(programs.find_redis(Settings()), "Redis")
    settings = tasks.declared("careful")
    settings = settings.model_copy(update={"tasks": settings.tasks.model_copy(update={"flower": True})})
    with Stack(settings) as stack:
        yield stack, settings


def test_flower_shows_the_workers_to_those_who_know_its_password(careful: tuple[Stack, Settings]) -> None:
    stack, settings = careful
    (flower,) = [server for server in stack.servers if server.kind == "flower"]
    assert httpx.get(f"{flower.url}/api/workers").status_code == 401
    (line,) = [line for line in stack.environment_file.read_text().splitlines() if "FLOWER_URL" in line]
    url = line.partition("=")[2]
    workers = eventually(lambda: httpx.get(f"{url}/api/workers?refresh=1").json())
    assert [name.partition("@")[0] for name in workers] == ["default"]
    (password,) = flower.secrets()
    assert password in url and password not in flower.log.read_text()
    commands = [" ".join(psutil.Process(pid).cmdline()) for pid in flower.pids()]
    assert commands and not any(password in command for command in commands)
    assert not list(settings.root.glob("flower*"))


def test_flower_without_a_celery_app_is_refused() -> None:
    settings = Settings(tasks=StackTaskSettings(flower=True))
    with pytest.raises(SettingsError, match=r"name it in \[tasks\] app"), Stack(settings):
        pass


def test_measurement_names_a_queue_that_grows(careful: tuple[Stack, Settings]) -> None:
    stack, _ = careful
    with StackObserver(stack, objective=Objective()) as observer:
        observer.begin_trial(20.0)
        with httpx.Client(base_url=stack.url) as client:  # each takes 0.3 s of one of two processes
            assert {client.post("/work").status_code for _ in range(60)} == {202}
        request = TrialRequest(20.0, 3.0, "search", seed=1)
        health = GeneratorHealth(cpu_share=0.1, late_share=0.0, lag_p99_ms=0.0)
        observer.end_trial(Trial(request, 3.0, settled_s=0.0, blocks=(), generator=health))
        diagnosis = observer.diagnose(20.0, 25.0, begun=time.monotonic())
    (found,) = [one for one in diagnosis.bottlenecks if one.kind == "Tasks"]
    assert found.title.startswith("the queue default grows by ")
    assert diagnosis.not_measured == () or "queues" not in " ".join(diagnosis.not_measured)


def test_tasks_of_an_outbox_pass(careful: tuple[Stack, Settings]) -> None:
    stack, settings = careful
    found = [each.finding for each in run(select(CHECKS, ["tasks"]), stack, settings)]
    assert [finding for finding in found if finding.verdict is not Verdict.PASS] == []
    assert len(found) == 5


@pytest.mark.parametrize(
    ("accepted", "done", "verdict", "words"),
    [
        ({"a": "workers", "b": "app"}, {"a", "b"}, Verdict.PASS, "all of 2 tasks"),
        ({"a": "workers", "b": "app"}, {"a"}, Verdict.FAIL, "1 of them after the app was killed"),
        ({"a": "redis", "b": "redis", "c": "app"}, set(), Verdict.FAIL, "2 of them after Redis was killed"),
    ],
)
def test_lost_tasks(accepted: dict[str, str], done: set[str], verdict: Verdict, words: str) -> None:
    finding = judge_lost_tasks(accepted, done)
    assert finding.verdict is verdict
    assert words in finding.claim


@pytest.mark.parametrize(
    ("idle_ms", "busy_ms", "verdict"),
    [(5, 150, Verdict.PASS), (5, 250, Verdict.FAIL), (300, 400, Verdict.PASS), (300, 500, Verdict.FAIL)],
)
def test_quick_requests(idle_ms: float, busy_ms: float, verdict: Verdict) -> None:
    found = Latencies([idle_ms] * 20, [busy_ms] * 20)
    assert judge_quick_requests(found, objective_ms=200).verdict is verdict


@pytest.mark.parametrize(
    ("request_s", "verdict"), [(0.19, Verdict.PASS), (0.21, Verdict.FAIL)], ids=["quick", "slow"]
)
def test_prompt_requests(request_s: float, verdict: Verdict) -> None:
    found = [Started(request_s, 0.5), Started(request_s)]
    assert judge_prompt_requests(found, objective_ms=200).verdict is verdict


@pytest.mark.parametrize(
    ("done_s", "verdict"),
    [
        ([0.3, 0.3, 0.3], Verdict.PASS),
        ([0.3, 0.9, 1.4], Verdict.PASS),
        ([0.3, 0.9, 1.5], Verdict.FAIL),
        ([0.3, 2.0, 0.3], Verdict.FAIL),  # the second is done 1.5 s after the last was due
        ([5, 7, 8], Verdict.PASS),
        ([0.3, 0.3, None], Verdict.FAIL),
    ],
)
def test_backlog(done_s: list[float | None], verdict: Verdict) -> None:
    assert judge_backlog([Started(0.01, one) for one in done_s], rate=2).verdict is verdict


def test_only_gauges_tell_of_a_queue() -> None:
    text = '# TYPE a_total counter\na_total 3\n# TYPE q gauge\nq{queue="x, y"} 2.0\n'
    text += 'h_bucket{le="1"} 5\nplain 1\n'
    assert find_gauges(text) == {'q{queue="x, y"}': 2.0, "plain": 1.0}


def test_metrics_that_rise() -> None:
    before, now = {"a": 1.0, "b": 1.0}, {"a": 8.0, "b": 9.0, 'c{queue="x"}': 8.0}
    assert risen_metrics(before, now, by=8) == {"b", 'c{queue="x"}'}


@pytest.mark.parametrize(
    ("headers", "body", "id"),
    [
        ([], b'{"task_id": "a"}', "a"),
        ([], b'{"task_id": 7}', "7"),
        ([("location", "/tasks/b/")], b"", "b"),
        ([("Location", "http://h/tasks/b")], b'{"id": "c"}', "b"),
        ([], b"[]", ""),
    ],
)
def test_id_of_a_task_is_in_the_answer_or_its_location(
    headers: list[tuple[str, str]], body: bytes, id: str
) -> None:
    assert find_id(Answer(202, headers, body), "task_id") == id
