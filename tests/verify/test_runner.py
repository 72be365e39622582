"""The runner outlives whatever a check does, and every check on the list can fail."""

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
from tenfold.types import Finding, Stack, Verdict
from tenfold.verify import CHECKS, Check, run, select
from tests.verify.support import databases, stacks
from tests.verify.support.served import standing
from tests.verify.support.sessions_cases import FALLEN

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


def test_a_finding_is_handed_on() -> None:
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
            "raised OSError: no postgresql://shop:***@127.0.0.1/shop",
        ),
        (lambda stack, settings: None, "ended with NoneType in place of a finding"),
        (lambda stack, settings: True, "ended with bool in place of a finding"),
    ],
)
def test_what_a_check_breaks_is_its_own_failure(body: Any, claim: str) -> None:
    finding = verdict(body)
    assert (finding.verdict, finding.claim) == (Verdict.FAIL, claim)


def test_a_long_message_is_cut() -> None:
    assert len(verdict(raising(OSError("x" * 10_000))).claim) < 400


@pytest.fixture
def stuck() -> Iterator[Callable[[Stack, Settings], Finding]]:
    released = threading.Event()

    def body(stack: Stack, settings: Settings) -> Finding:
        released.wait(30)
        return passes(stack, settings)

    yield body
    released.set()


def test_a_check_that_hangs_fails_and_the_next_one_runs(stuck: Any) -> None:
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
def test_a_check_without_what_it_needs_is_skipped(need: str, settings: Settings, skipped: bool) -> None:
    finding = verdict(passes, settings, needs=frozenset({need}))
    assert (finding.verdict is Verdict.SKIP) == skipped
    if skipped:
        assert finding.claim == f"needs {need}"
        assert finding.remedy


def test_an_unknown_need_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown needs reddis"):
        check(passes, needs=frozenset({"reddis"}))


def test_outcomes_come_one_by_one() -> None:
    ran: list[int] = []

    def counted(stack: Stack, settings: Settings) -> Finding:
        ran.append(1)
        return passes(stack, settings)

    outcomes = run([check(counted)] * 3, STACK, Settings())
    next(outcomes)
    assert len(ran) == 1


def test_selection() -> None:
    checks = [Check("a", "caching", passes), Check("b", "caching", passes), Check("c", "tasks", passes)]
    names = [[found.name for found in select(checks, only)] for only in ((), ["caching"], ["c", "a"])]
    assert names == [["a", "b", "c"], ["a", "b"], ["a", "c"]]
    with pytest.raises(SettingsError, match=r"^no check cachin; did you mean caching\?$"):
        select(checks, ["cachin"])
    with pytest.raises(SettingsError, match=r"^no check zzz; tenfold verify --list shows all$"):
        select(checks, ["zzz"])


# ------------------------------------------------------------------ the list


def without_baseline(folder: Path, ending: ExitStack) -> tuple[Any, Settings]:
    return STACK, Settings(root=folder)


LOCUSTFILE = """
from locust import FastHttpUser, task

class Visitor(FastHttpUser):
    @task
    def visit(self):
        self.client.get("/")
"""


class Unwatched(http.server.BaseHTTPRequestHandler):
    """A service that answers and carries no probe."""

    def do_GET(self) -> None:
        self.send_response(204)
        self.end_headers()

    def log_message(self, *args: object) -> None:
        """Nothing."""


def without_a_probe(folder: Path, ending: ExitStack) -> tuple[Any, Settings]:
    (folder / "locustfile.py").write_text(LOCUSTFILE)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Unwatched)
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


def fallen(name: str) -> Callable[[Path, ExitStack], tuple[Any, Settings]]:
    """The first service that falls to this attack, on loopback threads."""

    def case(folder: Path, ending: ExitStack) -> tuple[Any, Settings]:
        _, service, sessions, _ = FALLEN[name][0]
        made = service()
        stack = ending.enter_context(standing(folder, *(made if isinstance(made, tuple) else (made,))))
        return stack, Settings(
            service=ServiceSettings(app="a:b"), stack=StackSettings(instances=2), sessions=sessions
        )

    return case


def misled(**said: Any) -> Callable[[Path, ExitStack], tuple[Any, Settings]]:
    """A real stack that does not do what the check is told that it does."""

    def case(folder: Path, ending: ExitStack) -> tuple[Any, Settings]:
        stack, settings = stacks.failing(folder, ending)
        stacks.with_baseline(folder, 38)
        return stack, stacks.said(settings, **said)

    return case


# How to make each check fail, by its name: a check that cannot fail is none.
FAILING: dict[str, Callable[[Path, ExitStack], tuple[Any, Settings]]] = {
    "baseline established": without_baseline,
    "percentiles known": without_baseline,
    "slow queries found": without_a_probe,
    "session fixation refused": fallen("session fixation refused"),
    "session ids unguessable": fallen("session ids unguessable"),
    "session replay refused": fallen("session replay refused"),
    "no session resurrection": fallen("no session resurrection"),
    "no lost session update": fallen("no lost session update"),
    "oversize session refused": fallen("oversize session refused"),
    "session cookie attributes": fallen("session cookie attributes"),
    "session ids stay hidden": fallen("session ids stay hidden"),
    "no affinity needed": fallen("no affinity needed"),
    "sessions survive a kill": stacks.one_takes_all,
    "no files on local disk": misled(),
    "round robin is even": misled(),
    "slow instance gets less": misled(method="least_conn"),
    "backup only when needed": misled(backups=1),
    "kill loses no request": misled(tries=3),
    "no POST carried out twice": misled(tries=3),
    "rolling replacement clean": misled(tries=3),
    "goodput under overload": misled(),
    "reads reach replicas": databases.careless("GET /primary/notes"),
    "own writes are seen": databases.careless(),
    "reads never go back": databases.careless(),
    "replica loss fails no read": databases.careless(),
    "acknowledged write survives": databases.careless("GET /primary/notes"),
    "pools keep their budget": databases.careless("GET /held/notes"),
    "nothing stays checked out": databases.careless("GET /kept/notes"),
}


@pytest.fixture(scope="module", autouse=True)
def shared_stacks() -> Iterator[None]:
    yield
    databases.end()


def test_every_check_has_a_case_in_which_it_fails() -> None:
    assert [found.name for found in CHECKS] == list(FAILING)


@pytest.mark.parametrize("found", CHECKS, ids=lambda found: found.name)
def test_every_check_can_fail(found: Check, tmp_path: Path) -> None:
    with ExitStack() as ending:
        stack, settings = FAILING[found.name](tmp_path, ending)
        (outcome,) = run([found], stack, settings)
    assert outcome.finding.verdict is Verdict.FAIL
    assert not outcome.finding.claim.startswith("raised"), "it broke, which is not the same as failing"
    assert outcome.finding.check == found.name
    if found.pattern == "database":
        assert outcome.finding.numbers, "it was declared wrongly, and nothing was looked at"


def test_patterns_are_folders() -> None:
    import tenfold

    (root,) = tenfold.__path__
    assert {found.pattern for found in CHECKS} <= {
        path.name for path in Path(root).iterdir() if path.is_dir()
    }
    assert sys.modules["tenfold.verify"]
