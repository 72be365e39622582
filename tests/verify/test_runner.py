"""The runner survives any check, and every check on the list can fail."""

from __future__ import annotations

import http.server
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tenfold.errors import SettingsError, StackError
from tenfold.settings import ServiceSettings, Settings, StackSettings
from tenfold.settings.verify import VerifySettings
from tenfold.types import Finding, Stack, Verdict
from tenfold.verify import CHECKS, Check, run, select
from tests.verify.support import (
    caches,
    databases,
    edges,
    metered,
    sessions_cases,
    shards,
    stacks,
    tasks,
    waiting,
)
from tests.verify.support.served import serve

STACK: Any = None


def check(body: Callable[[Stack, Settings], Any], **options: Any) -> Check:
    return Check("it works", "measure", body, **options)


def verdict(
    body: Callable[[Stack, Settings], Any], settings: Settings | None = None, **options: Any
) -> Finding:
    (outcome,) = run([check(body, **options)], STACK, settings or Settings())
    return outcome.finding


def passes(stack: Stack, settings: Settings) -> Finding:
    return Finding("it works", "42 requests/s", Verdict.PASS, {"rate": 42})


def test_finding_is_returned() -> None:
    assert verdict(passes) == Finding("it works", "42 requests/s", Verdict.PASS, {"rate": 42})


def raising(error: BaseException) -> Callable[[Stack, Settings], Finding]:
    def body(stack: Stack, settings: Settings) -> Finding:
        raise error

    return body


@pytest.mark.parametrize(
    ("body", "claim"),
    [
        (raising(ZeroDivisionError("division by zero")), "raised ZeroDivisionError: division by zero"),
        (raising(StackError("nginx ended.")), "nginx ended."),
        (raising(SystemExit(0)), "raised SystemExit: 0"),
        (raising(KeyboardInterrupt()), "raised KeyboardInterrupt"),
        (raising(OSError("two\nlines")), "raised OSError: two lines"),
        (
            raising(OSError("no postgresql://shop:hunter2@127.0.0.1/shop")),
            "raised OSError: no postgresql://***@127.0.0.1/shop",
        ),
        (lambda stack, settings: None, "ended with NoneType in place of a finding"),
        (lambda stack, settings: True, "ended with bool in place of a finding"),
    ],
)
def test_exception_fails_its_check_only(body: Any, claim: str) -> None:
    finding = verdict(body)
    assert (finding.verdict, finding.claim) == (Verdict.FAIL, claim)


def test_long_message_is_cut() -> None:
    assert len(verdict(raising(OSError("x" * 10_000))).claim) < 400


@pytest.fixture
def stuck() -> Iterator[Callable[[Stack, Settings], Finding]]:
    released = threading.Event()

    def body(stack: Stack, settings: Settings) -> Finding:
        released.wait(30)
        return passes(stack, settings)

    yield body
    released.set()


def test_hanging_check_fails_and_the_next_one_runs(stuck: Any) -> None:
    started = time.monotonic()
    first, second = run([check(stuck, timeout_s=0.1), check(passes)], STACK, Settings())
    assert time.monotonic() - started < 10
    assert (first.finding.verdict, first.finding.claim) == (Verdict.FAIL, "did not end within 0.1 s")
    assert first.seconds >= 0.1
    assert second.finding.verdict is Verdict.PASS


@pytest.mark.parametrize(
    ("need", "settings", "skipped"),
    [
        ("app", Settings(), True),
        ("app", Settings(service=ServiceSettings(app="main:app")), False),
        ("database", Settings(), False),
        ("database", Settings(stack=StackSettings(database=False)), True),
        ("replicas", Settings(), True),
        ("replicas", Settings(stack=StackSettings(replicas=1)), False),
        ("redis", Settings(stack=StackSettings(redis=False)), True),
        ("nginx", Settings(stack=StackSettings(nginx=False)), True),
        ("instances", Settings(), True),
        ("instances", Settings(stack=StackSettings(instances=2)), False),
    ],
)
def test_check_with_unmet_need_is_skipped(need: str, settings: Settings, skipped: bool) -> None:
    finding = verdict(passes, settings, needs=frozenset({need}))
    assert (finding.verdict is Verdict.SKIP) == skipped
    if skipped:
        assert finding.claim == f"needs {need}"
        assert finding.remedy


def test_unknown_need_and_key_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown needs reddis"):
        check(passes, needs=frozenset({"reddis"}))
    with pytest.raises(ValueError, match="unknown keys log_in"):
        check(passes, keys=("log_in",))


@pytest.mark.parametrize(
    ("declared", "claim", "remedy"),
    [
        (
            {},
            "verify.login and verify.whoami are not set",
            'set verify.login, for example login = "POST /login"',
        ),
        (
            {"login": "POST /login"},
            "verify.whoami is not set",
            'set verify.whoami, for example whoami = "GET /me"',
        ),
    ],
)
def test_check_with_undeclared_key_is_skipped_and_names_it(
    declared: dict[str, str], claim: str, remedy: str
) -> None:
    settings = Settings(verify=VerifySettings(**declared))
    finding = verdict(passes, settings, keys=("login", "whoami"))
    assert (finding.verdict, finding.claim, finding.remedy) == (Verdict.SKIP, claim, remedy)


def test_check_with_declared_keys_runs() -> None:
    settings = Settings(verify=VerifySettings(login="POST /login", whoami="GET /me"))
    assert verdict(passes, settings, keys=("login", "whoami")).verdict is Verdict.PASS


def test_outcomes_are_yielded_one_by_one() -> None:
    ran: list[int] = []

    def count(stack: Stack, settings: Settings) -> Finding:
        ran.append(1)
        return passes(stack, settings)

    outcomes = run([check(count)] * 3, STACK, Settings())
    next(outcomes)
    assert len(ran) == 1


def test_select_takes_names_and_patterns() -> None:
    checks = [Check("a", "caching", passes), Check("b", "caching", passes), Check("c", "tasks", passes)]
    names = [[found.name for found in select(checks, only)] for only in ((), ["caching"], ["c", "a"])]
    assert names == [["a", "b", "c"], ["a", "b"], ["a", "c"]]
    with pytest.raises(SettingsError, match=r"^no check cachin; did you mean caching\?$"):
        select(checks, ["cachin"])
    with pytest.raises(SettingsError, match=r"^no check zzz; tenfold verify --list shows all$"):
        select(checks, ["zzz"])


# ------------------------------------------------------------------ the list


def with_broken_baseline(folder: Path, ending: ExitStack) -> tuple[Any, Settings]:
    stored = folder / ".tenfold" / "baselines" / "main.json"
    stored.parent.mkdir(parents=True)
    stored.write_text("{}")
    return STACK, Settings(root=folder)


LOCUSTFILE = """
from locust import FastHttpUser, task

class Visitor(FastHttpUser):
    @task
    def visit(self):
        self.client.get("/")
"""


class ServiceWithoutProbe(http.server.BaseHTTPRequestHandler):
    """A service that has no probe."""

    def do_GET(self) -> None:
        self.send_response(204)
        self.end_headers()

    def log_message(self, *args: object) -> None:
        """Nothing."""


def without_a_probe(folder: Path, ending: ExitStack) -> tuple[Any, Settings]:
    (folder / "locustfile.py").write_text(LOCUSTFILE)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), ServiceWithoutProbe)
    ending.callback(server.server_close)
    ending.callback(server.shutdown)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    stack = SimpleNamespace(
        url=f"http://127.0.0.1:{server.server_port}", probe_address=Path(tempfile.mkdtemp()) / "probe"
    )
    declared = Settings(
        root=folder,
        service=ServiceSettings(app="a:b"),
    )
    return stack, declared


def failing_service(name: str) -> Callable[[Path, ExitStack], tuple[Any, Settings]]:
    """The first service on which this check fails, on loopback threads."""

    def case(folder: Path, ending: ExitStack) -> tuple[Any, Settings]:
        _, service, verify, _ = sessions_cases.FAILING[name][0]
        made = service()
        stack = ending.enter_context(serve(folder, *(made if isinstance(made, tuple) else (made,))))
        return stack, Settings(
            service=ServiceSettings(app="a:b"), stack=StackSettings(instances=2), verify=verify
        )

    return case


def misconfigured(**balancing: Any) -> Callable[[Path, ExitStack], tuple[Any, Settings]]:
    """A real stack whose nginx differs from the settings that the check gets."""

    def case(folder: Path, ending: ExitStack) -> tuple[Any, Settings]:
        stack, settings = stacks.failing(folder, ending)
        stacks.store_baseline(folder, 38)
        return stack, stacks.with_balancing(settings, **balancing)

    return case


# How to make each check fail, by its name.
FAILING: dict[str, Callable[[Path, ExitStack], tuple[Any, Settings]]] = {
    "baseline established": with_broken_baseline,
    "percentiles known": with_broken_baseline,
    "slow queries found": without_a_probe,
    "session fixation refused": failing_service("session fixation refused"),
    "session ids unguessable": failing_service("session ids unguessable"),
    "session replay refused": failing_service("session replay refused"),
    "no session resurrection": failing_service("no session resurrection"),
    "no lost session update": failing_service("no lost session update"),
    "oversize session refused": failing_service("oversize session refused"),
    "session cookie attributes": failing_service("session cookie attributes"),
    "session ids stay hidden": failing_service("session ids stay hidden"),
    "no affinity needed": failing_service("no affinity needed"),
    "sessions survive a kill": stacks.unshared_sessions,
    "no files on local disk": misconfigured(),
    "load is even": misconfigured(),
    "slow instance gets less": misconfigured(method="least_conn"),
    "backup only when needed": misconfigured(backups=1),
    "kill loses no request": misconfigured(tries=3),
    "no POST carried out twice": misconfigured(tries=3),
    "rolling replacement clean": misconfigured(tries=3),
    "goodput under overload": misconfigured(),
    "instances follow the load": waiting.start("lonely"),
    "reads reach replicas": databases.careless("GET /primary/notes"),
    "own writes are seen": databases.careless(),
    "reads never go back": databases.careless(),
    "replica loss fails no read": databases.careless(),
    "acknowledged write survives": databases.careless("GET /primary/notes"),
    "pools keep their budget": databases.careless("GET /held/notes"),
    "nothing stays checked out": databases.careless("GET /kept/notes"),
    "rows are on their own shard": shards.careless,
    "keys are spread evenly": shards.careless,
    "a dead shard fails alone": shards.careless,
    "an older directory writes nothing": shards.careless,
    "cached reads need no database": databases.careless(cached="GET /notes"),
    "a Redis outage fails no cached read": caches.naive,
    "no user gets another's cached answer": caches.naive,
    "caches answer most reads": edges.start("careless"),
    "caches share nothing personal": edges.start("careless", edges.EVERYTHING),
    "no accepted task is lost": tasks.start("careless"),
    "requests stay quick while tasks run": tasks.start("careless"),
    "requests do not wait for their tasks": tasks.start("careless", "POST /waited-for"),
    "tasks do not pile up": tasks.start("careless", rate=5.0),
    "a queue that grows is in the metrics": tasks.start("unwatched"),
    "every request is counted": metered.start("careless"),
    "metrics cost little": metered.start("careless"),
}


@pytest.fixture(scope="module", autouse=True)
def shared_stacks() -> Iterator[None]:
    yield
    databases.stop()
    caches.stop()
    shards.stop()


@pytest.mark.control("every check can fail")
def test_every_check_has_a_failing_case() -> None:
    assert [found.name for found in CHECKS] == list(FAILING)


@pytest.mark.guarantee("every check can fail", pattern="checks")
@pytest.mark.control("no check fails on a correct service", "a faulty stack")
@pytest.mark.guarantee(
    "stale reads, reads that go back in time, lost writes, failing reads and leaking pools "
    "are found in any service",
    pattern="checks",
    under="replicas held back, killed, stopped; the primary killed; many clients; clients that hang up",
)
@pytest.mark.parametrize("found", CHECKS, ids=lambda found: found.name)
def test_every_check_can_fail(found: Check, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tenfold.verify.tasks.background._DONE_WITHIN_S", 3.0)  # nothing lost comes back
    with ExitStack() as ending:
        stack, settings = FAILING[found.name](tmp_path, ending)
        (outcome,) = run([found], stack, settings)
    assert outcome.finding.verdict is Verdict.FAIL
    assert not outcome.finding.claim.startswith("raised"), "the check raised, which is no finding"
    assert outcome.finding.check == found.name
    if found.pattern == "database":
        assert outcome.finding.numbers, "the settings were refused before the check"


def test_every_pattern_is_a_package() -> None:
    import tenfold

    (root,) = tenfold.__path__
    assert {found.pattern for found in CHECKS} <= {
        path.name for path in Path(root).iterdir() if path.is_dir()
    }
    assert sys.modules["tenfold.verify"]
