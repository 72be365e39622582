"""Checks of a request that starts work in the background: nothing is lost, held up, piled up or unseen."""

from __future__ import annotations

import json
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from tenfold.errors import TargetError
from tenfold.settings import Settings
from tenfold.settings.verify import VerifySettings
from tenfold.types import Finding, Server, Stack, Verdict
from tenfold.verify.kit.instances import hang, kill
from tenfold.verify.kit.session_user import user_of
from tenfold.verify.kit.user_agent import Answer, UserAgent

LOST = "no accepted task is lost"
QUICK = "requests stay quick while tasks run"
PROMPT = "requests do not wait for their tasks"
KEPT_UP = "tasks do not pile up"
WATCHED = "a queue that grows is in the metrics"

_KILLED = {
    "workers": "the workers were",
    "redis": "Redis was",
    "primary": "the primary was",
    "app": "the app was",
}
_TASKS, _WITHIN_S, _POLL_S = 8, 60.0, 0.1
_DONE_WITHIN_S = 150.0  # after faults: an attempt that met one may wait a minute for the next
_ROUNDS, _READS, _PAUSE_S, _SLOWER = 2, 60, 0.01, 1.5
_ACCEPTED_WITHIN_S = 10.0
_UNDER_RATE_S, _LATER_S = 10.0, 1.0
_SEEN_WITHIN_S = 15.0
_OF_COUNTERS = ("_total", "_bucket", "_count", "_sum", "_created")
_TYPE = re.compile(r"^# TYPE (\S+) (\S+)", re.MULTILINE)
_SAMPLE = re.compile(r"^([a-zA-Z_:][^ {]*(?:\{.*\})?) ([0-9.eE+-]+)", re.MULTILINE)

# ------------------------------------------------------------------ kill what runs them


def check_lost_tasks(stack: Stack, settings: Settings) -> Finding:
    """Start tasks, and kill what may have them: the workers, Redis, the database, the app."""
    known = settings.verify
    accepted: dict[str, str] = {}
    done: set[str] = set()
    kinds = [kind for kind in _KILLED if any(one.kind == kind for one in stack.servers)]
    for kind in kinds:
        user = user_of(stack, known)
        for _ in range(_TASKS):
            accepted[start_task_again(user, known)] = kind
        for server in [server for server in stack.servers if server.kind == kind]:
            kill_and_restart(stack, server)
    user = user_of(stack, known)  # sessions may have been in that Redis
    deadline = time.monotonic() + _DONE_WITHIN_S
    while time.monotonic() < deadline and done != accepted.keys():
        done |= {id for id in accepted.keys() - done if is_done(user, known, id)}
        time.sleep(_POLL_S)
    return judge_lost_tasks(accepted, done)


def kill_and_restart(stack: Stack, server: Server) -> None:
    """End a server as a node that goes down, and start it again."""
    kill(server)
    stack.restart(server)


def judge_lost_tasks(accepted: dict[str, str], done: set[str]) -> Finding:
    """The finding about accepted tasks, each with the kind of server that was killed meanwhile; pure."""
    lost = {id: kind for id, kind in accepted.items() if id not in done}
    numbers = {"accepted": len(accepted), "lost": len(lost)}
    kinds = ", ".join(dict.fromkeys(accepted.values()))
    if not lost:
        claim = f"all of {len(accepted)} tasks were done although {kinds} were killed"
        return Finding(LOST, claim, Verdict.PASS, numbers)
    worst = max(dict.fromkeys(lost.values()), key=list(lost.values()).count)
    count = sum(kind == worst for kind in lost.values())
    claim = (
        f"{len(lost)} of {len(accepted)} accepted tasks were not done within {_DONE_WITHIN_S:g} s, "
        f"{count} of them after {_KILLED[worst]} killed"
    )
    remedy = "enqueue them in the request's transaction, with tenfold.tasks.Outbox"
    return Finding(LOST, claim, Verdict.FAIL, numbers, remedy)


# ------------------------------------------------------------------ requests beside tasks


@dataclass(slots=True)
class Latencies:
    """Milliseconds of reads without tasks and beside them."""

    idle: list[float] = field(default_factory=list)
    busy: list[float] = field(default_factory=list)


def check_quick_requests(stack: Stack, settings: Settings) -> Finding:
    """Time the declared read without tasks, while tasks start and run, and both once more."""
    known = settings.verify
    user, found = user_of(stack, known), Latencies()
    for _ in range(_ROUNDS):
        read_until(lambda: len(found.idle) % _READS == 0, user, known, found.idle)
        with ThreadPoolExecutor(_TASKS) as pool:
            copies = [user.copy() for _ in range(_TASKS)]
            started = [pool.submit(start_task, copy, known) for copy in copies]
            watched = pool.submit(wait_for_all, copies[0], known, started)
            read_until(watched.done, user, known, found.busy)
            watched.result()
    return judge_quick_requests(found, objective_ms=settings.measure.objective.slow_ms)


def wait_for_all(user: UserAgent, known: VerifySettings, started: Sequence[Future[str]]) -> None:
    """Return when tasks are done, or after a minute.

    Raises:
        TargetError: one was not started.
    """
    waiting = {future.result() for future in started}
    deadline = time.monotonic() + _WITHIN_S
    while waiting and time.monotonic() < deadline:
        waiting -= {id for id in waiting if is_done(user, known, id)}
        time.sleep(_POLL_S)


def read_until(
    is_over: Callable[[], bool], user: UserAgent, known: VerifySettings, times: list[float]
) -> None:
    """Send the declared read at least once, and add the milliseconds of each.

    Raises:
        TargetError: it is not answered with 2xx.
    """
    while True:
        started = time.perf_counter()
        if not 200 <= (status := user.status(known.read)) < 300:
            raise TargetError(f"{known.read} answers {status}: correct verify.read")
        times.append(1000 * (time.perf_counter() - started))
        if is_over():
            return
        time.sleep(_PAUSE_S)


def judge_quick_requests(found: Latencies, *, objective_ms: float) -> Finding:
    """The finding about the reads; pure."""
    idle, busy = (statistics.quantiles(times, n=20)[-1] for times in (found.idle, found.busy))
    numbers = {"p95_ms": round(idle, 1), "p95_beside_tasks_ms": round(busy, 1)}
    claim = f"p95 of reads {idle:.0f} ms, {busy:.0f} ms while tasks run"
    if busy <= max(objective_ms, _SLOWER * idle):
        return Finding(QUICK, claim, Verdict.PASS, numbers)
    remedy = "run tasks in processes of their own, as a Celery worker does, not in the app's"
    return Finding(QUICK, claim, Verdict.FAIL, numbers, remedy)


# ------------------------------------------------------------------ at a steady rate


@dataclass(slots=True)
class Started:
    """A task: how long the request took that started it, and the task from when it was due, seconds."""

    request_s: float
    done_s: float | None = None


def check_prompt_requests(stack: Stack, settings: Settings) -> Finding:
    """Start tasks one after the other; time the requests, and the tasks."""
    known = settings.verify
    found = run_at_rate(user_of(stack, known), known, count=_TASKS)
    return judge_prompt_requests(found, objective_ms=settings.measure.objective.slow_ms)


def judge_prompt_requests(found: Sequence[Started], *, objective_ms: float) -> Finding:
    """The finding about the requests that started tasks; pure."""
    request_ms = 1000 * statistics.median(task.request_s for task in found)
    done_ms = [1000 * task.done_s for task in found if task.done_s is not None]
    numbers = {"request_ms": round(request_ms, 1)}
    until = ""
    if done_ms:
        numbers["done_ms"] = round(statistics.median(done_ms), 1)
        until = f", its task done after {statistics.median(done_ms):.0f} ms"
    claim = f"a request that starts a task takes {request_ms:.0f} ms{until}"
    if request_ms <= objective_ms:
        return Finding(PROMPT, claim, Verdict.PASS, numbers)
    remedy = "answer with 202 as soon as the task is enqueued, and let a worker do it"
    return Finding(PROMPT, claim, Verdict.FAIL, numbers, remedy)


def check_backlog(stack: Stack, settings: Settings) -> Finding:
    """Start tasks at ``verify.task_rate`` for a while; see how long the last one waits for the others."""
    known = settings.verify
    found = run_at_rate(
        user_of(stack, known), known, count=max(round(known.task_rate * _UNDER_RATE_S), _TASKS)
    )
    return judge_backlog(found, rate=known.task_rate)


def judge_backlog(found: Sequence[Started], *, rate: float) -> Finding:
    """The finding about tasks that were due at a steady rate; pure."""
    done_s = [task.done_s for task in found if task.done_s is not None]
    undone = len(found) - len(done_s)
    numbers = {"tasks": len(found), "undone": undone}
    remedy = "raise the concurrency of their queue, or start more workers"
    if undone:
        claim = f"at {rate:g} tasks/s {undone} of {len(found)} are not done {_WITHIN_S:g} s after the last"
        return Finding(KEPT_UP, claim, Verdict.FAIL, numbers, remedy)
    last_due_s = (len(found) - 1) / rate
    fastest_s = min(done_s)
    drained_s = max(number / rate + seconds for number, seconds in enumerate(done_s)) - last_due_s
    timed = numbers | {"fastest_s": round(fastest_s, 2), "drained_s": round(drained_s, 2)}
    claim = f"at {rate:g} tasks/s all are done {drained_s:.1f} s after the last; one takes {fastest_s:.1f} s"
    if drained_s <= _SLOWER * fastest_s + _LATER_S:
        return Finding(KEPT_UP, claim, Verdict.PASS, timed)
    return Finding(KEPT_UP, claim, Verdict.FAIL, timed, remedy)


def run_at_rate(user: UserAgent, known: VerifySettings, *, count: int) -> list[Started]:
    """Start tasks at ``verify.task_rate``, whatever becomes of them, and wait until they are done.

    A task's time begins when it was due, so that a service that is late with its answers is not flattered.

    Raises:
        TargetError: one is refused.
    """
    begun = time.monotonic()

    def start(number: int) -> tuple[str, float, Started]:
        due = begun + number / known.task_rate
        time.sleep(max(due - time.monotonic(), 0.0))
        sent = time.monotonic()
        id = start_task(user.copy(), known)
        return id, due, Started(time.monotonic() - sent)

    with ThreadPoolExecutor(_TASKS) as pool:
        starting = [pool.submit(start, number) for number in range(count)]
        waiting: dict[str, tuple[float, Started]] = {}
        found: list[Started] = []
        while starting or (waiting and time.monotonic() < begun + count / known.task_rate + _WITHIN_S):
            while starting and starting[0].done():
                id, due, task = starting.pop(0).result()
                found.append(task)
                waiting[id] = due, task
            for id, (due, task) in list(waiting.items()):
                if is_done(user, known, id):
                    task.done_s = time.monotonic() - due
                    del waiting[id]
            time.sleep(_POLL_S)
    return found


# ------------------------------------------------------------------ what is seen of a queue


def check_watched_queue(stack: Stack, settings: Settings) -> Finding:
    """Stop the workers, start tasks, and look for a metric that rises with them and falls afterwards."""
    known = settings.verify
    user = user_of(stack, known)
    before = read_metrics(user, known)
    risen, fallen = set[str](), set[str]()
    with hang(server for server in stack.servers if server.kind == "workers"):
        waiting = {start_task(user, known) for _ in range(_TASKS)}
        deadline = time.monotonic() + _SEEN_WITHIN_S
        while not (risen := risen_metrics(before, read_metrics(user, known), by=_TASKS)):
            if time.monotonic() > deadline:
                break
            time.sleep(_POLL_S)
    deadline = time.monotonic() + _WITHIN_S
    while (waiting or (risen and not fallen)) and time.monotonic() < deadline:
        waiting -= {id for id in waiting if is_done(user, known, id)}
        fallen = risen - risen_metrics(before, read_metrics(user, known), by=1)
        time.sleep(_POLL_S)
    return judge_watched_queue(fallen)


def judge_watched_queue(found: set[str]) -> Finding:
    """The finding about the samples that rose while tasks waited, and fell afterwards; pure."""
    if found:
        name = min(found)
        claim = f"{name} rises by {_TASKS} with {_TASKS} tasks that wait, and falls when they are done"
        return Finding(WATCHED, claim, Verdict.PASS, {"metrics": len(found)})
    claim = f"no metric rises while {_TASKS} tasks wait and falls when they are done"
    remedy = "MetricsEndpoint(collectors=[TaskCollector(celery)]), or a Celery exporter"
    return Finding(WATCHED, claim, Verdict.FAIL, {"metrics": 0}, remedy)


def read_metrics(user: UserAgent, known: VerifySettings) -> dict[str, float]:
    """The gauges that ``verify.metrics`` answers with, by name and labels; counters only rise.

    Raises:
        TargetError: it is not answered with 2xx.
    """
    answer = user.request(known.metrics)
    if not answer.ok:
        raise TargetError(f"{known.metrics} answers {answer.status}: correct verify.metrics")
    return find_gauges(answer.text)


def find_gauges(text: str) -> dict[str, float]:
    """The samples in Prometheus' text format that are gauges, or of no type."""
    types = dict(_TYPE.findall(text))
    return {
        name: float(value)
        for name, value in _SAMPLE.findall(text)
        if types.get(name.partition("{")[0], "gauge") in ("gauge", "untyped")
        and not name.partition("{")[0].endswith(_OF_COUNTERS)
    }


def risen_metrics(before: Mapping[str, float], now: Mapping[str, float], *, by: float) -> set[str]:
    """The samples that rose by so much, or more."""
    return {name for name, value in now.items() if value - before.get(name, 0.0) >= by}


# ------------------------------------------------------------------ tasks of the service


def start_task(user: UserAgent, known: VerifySettings) -> str:
    """Send ``verify.task``; return the id of what it has started.

    Raises:
        TargetError: it is refused, or its answer has no id.
    """
    answer = user.request(known.task, body=known.task_body)
    if not answer.ok:
        raise TargetError(f"{known.task} answers {answer.status}: correct verify.task and verify.task_body")
    if not (id := find_id(answer, known.task_id)):
        raise TargetError(
            f"the answer of {known.task} has neither a Location nor {known.task_id}: "
            "name its place in verify.task_id"
        )
    return id


def start_task_again(user: UserAgent, known: VerifySettings) -> str:
    """Start a task, at another attempt if the first meets what a fault has left: broken connections, say.

    Raises:
        TargetError: every attempt was refused.
    """
    deadline = time.monotonic() + _ACCEPTED_WITHIN_S
    while True:
        try:
            return start_task(user, known)
        except TargetError:
            if time.monotonic() > deadline:
                raise
            time.sleep(_POLL_S)


def find_id(answer: Answer, name: str) -> str:
    """The id of a task in an answer: in its JSON under a name, or the end of its Location; empty without."""
    try:
        found = json.loads(answer.body)
    except ValueError:
        found = None
    if isinstance(found, dict) and isinstance(found.get(name), str | int):
        return str(found[name])
    return answer.header("Location").rstrip("/").rpartition("/")[2]


def is_done(user: UserAgent, known: VerifySettings, id: str) -> bool:
    """Return whether the service says that a task is done."""
    try:
        answer = user.request(known.task_status, values={"id": id})
    except TargetError:
        return False
    return answer.ok and known.task_done in answer.text
