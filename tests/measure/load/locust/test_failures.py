"""Every failure is one sentence and leaves no process running."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from tenfold.errors import MeasurementError, ScenarioError, TargetError, TenfoldError
from tenfold.measure.load.generator import Generator
from tenfold.measure.settings import MeasureSettings
from tenfold.measure.trial import Block, TrialRequest
from tests.support.waiting import eventually

Make = Callable[..., Generator]
Ask = Callable[..., TrialRequest]
Write = Callable[[str], Path]

GOOD = """
class Visitor(FastHttpUser):
    @task
    def one(self):
        self.client.get("/fast")
"""
LOGIN = """
class Visitor(FastHttpUser):
    def on_start(self):
        self.token = self.client.post("/login").json()["token"]
    @task
    def one(self):
        self.client.get("/fast")
"""


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def enter(path: Path, url: str, **options: Any) -> TenfoldError:
    """Return the error that entering a generator raises; its process must be gone."""
    one = Generator(path, url, settings=MeasureSettings(), **options)
    with pytest.raises(TenfoldError) as caught, one:
        pytest.fail("it started")
    assert "\n" not in str(caught.value)
    assert not alive(one.pid)
    return caught.value


@pytest.mark.control("locustfiles run unmodified")
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def broken(:\n", "locustfile.py:3: invalid syntax"),
        ("import nothing_of_that_name\n", "locustfile.py:3: ModuleNotFoundError"),
        ("\nboom = 1 / 0\n", "locustfile.py:4: ZeroDivisionError"),
        ("import sys\nsys.exit(3)\n", "locustfile.py:4: SystemExit: 3"),
        ("x = 1\n", "has no user class"),
    ],
)
def test_locustfile_that_does_not_load_is_refused(
    scenario: Write, service: Any, text: str, said: str
) -> None:
    error = enter(scenario(text), service.url)
    assert isinstance(error, ScenarioError)
    assert said in str(error)


def test_misspelt_file_name_suggests_the_nearest(scenario: Write, service: Any) -> None:
    folder = scenario(GOOD).parent
    error = enter(Path("locustfil.py"), service.url, cwd=folder)
    assert str(error) == "no file locustfil.py; did you mean locustfile.py?"
    assert "give the path" in str(enter(Path("zzz.py"), service.url, cwd=folder))


def test_target_without_listener_is_refused(scenario: Write) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        error = enter(scenario(GOOD), f"http://127.0.0.1:{taken.getsockname()[1]}")
    assert isinstance(error, TargetError)
    assert "start the service" in str(error)


def test_target_on_another_machine_is_refused_unless_owned(scenario: Write) -> None:
    error = enter(scenario(GOOD), "http://192.0.2.1:9")
    assert isinstance(error, TargetError)
    assert "--i-own-this-target" in str(error)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (LOGIN, "POST /login answered 401"),
        (LOGIN.replace('.json()["token"]', ""), "POST /login answered 401"),  # goes on without a token
        (
            LOGIN.replace('self.token = self.client.post("/login")', 'raise RuntimeError("no account")#'),
            "RuntimeError: no account (locustfile.py:6)",
        ),
        (
            GOOD.replace(
                "@task", 'def __init__(self, *args):\n        raise RuntimeError("no user")\n    @task'
            ),
            "no user could be made: RuntimeError: no user",
        ),
    ],
)
def test_login_that_fails_for_all_users_quotes_the_answer(
    generator: Make, service: Any, text: str, said: str
) -> None:
    service.login_status = 401
    one = generator(text)
    with pytest.raises(ScenarioError) as caught:
        one.start_users(200)
    assert said in str(caught.value)
    assert service.seen["/login"] <= 20, "it goes on although every login fails"


def test_login_that_fails_in_the_service_is_not_blamed_on_the_locustfile(
    generator: Make, service: Any
) -> None:
    service.login_status = 500
    with pytest.raises(ScenarioError, match="answered 500; the service fails there: look at its log"):
        generator(LOGIN).start_users(200)


@pytest.mark.parametrize("closed", [False, True])
def test_trial_without_logged_in_user_is_refused(
    generator: Make, request_for: Ask, service: Any, closed: bool
) -> None:
    service.login_status = 403
    one = generator(LOGIN)
    with pytest.raises(ScenarioError, match="POST /login answered 403"):
        if closed:
            one.run_closed_loop(users=3, spawn_rate=10, duration_s=0.5)
        else:
            one.run(request_for())


def test_login_that_fails_for_some_users_is_no_error(generator: Make, request_for: Ask) -> None:
    one = generator(
        """
        import itertools
        turn = itertools.count()
        class Visitor(FastHttpUser):
            def on_start(self):
                if next(turn) % 2:
                    raise RuntimeError("not me")
            @task
            def one(self):
                self.client.get("/fast")
        """
    )
    assert one.start_users(6) == 6
    trial = one.run(request_for(duration_s=0.5))
    assert trial.good > 0
    # Shown once, with their reason.
    assert trial.notes["logins failed"] >= 5
    (message,) = trial.errors
    assert message.startswith("login: RuntimeError: not me") and trial.errors[message] >= 5
    again = one.run(request_for(rate=5.0, duration_s=0.5))
    assert not again.errors and "logins failed" not in again.notes


def test_logins_that_block_end_with_their_time(generator: Make, request_for: Ask, service: Any) -> None:
    """One user got through; every later login hangs."""
    one = generator(
        """
        import itertools, time
        turn = itertools.count()
        class Visitor(FastHttpUser):
            def on_start(self):
                if next(turn):
                    time.sleep(600)
            @task
            def one(self):
                self.client.get("/fast")
        """
    )
    began = time.monotonic()
    assert one.start_users(6, timeout_s=1.5) == 1
    trial = one.run(request_for(rate=120.0, duration_s=0.5, login_s=0.5))
    assert trial.offered > 0
    assert time.monotonic() - began < 10


@pytest.mark.guarantee("the generator exits with its parent, and its own death is reported")
def test_killed_generator_is_reported(generator: Make, request_for: Ask) -> None:
    one = generator("import sys\nprint('famous last words', file=sys.stderr, flush=True)\n" + GOOD)
    one.start_users(2)

    def kill(block: Block) -> None:
        os.kill(one.pid, signal.SIGKILL)

    started = time.monotonic()
    with pytest.raises(MeasurementError, match=r"SIGKILL.*famous last words"):
        one.run(request_for(duration_s=30.0), kill)
    assert time.monotonic() - started < 10
    with pytest.raises(MeasurementError):
        one.run(request_for())


def test_locustfile_that_exits_the_process_is_reported(generator: Make, request_for: Ask) -> None:
    one = generator(GOOD.replace('self.client.get("/fast")', "__import__('os')._exit(7)"))
    one.start_users(1)
    with pytest.raises(MeasurementError, match="exit code 7"):
        one.run(request_for())


def test_locustfile_that_stops_the_test_is_reported(generator: Make, request_for: Ask) -> None:
    one = generator(GOOD.replace('self.client.get("/fast")', "self.environment.runner.quit()"))
    one.start_users(2)
    started = time.monotonic()
    one.run(request_for(duration_s=20.0))
    assert time.monotonic() - started < 10
    with pytest.raises(ScenarioError, match="stopped the test"):
        one.run(request_for())


def test_close_kills_the_process_group(generator: Make) -> None:
    one = generator("import subprocess\nchild = subprocess.Popen(['sleep', '600'])\n" + GOOD)
    group = one.pid
    one.start_users(2)
    one.__exit__(None, None, None)
    assert not alive(group)
    with pytest.raises(ProcessLookupError):
        eventually(lambda: bool(os.killpg(group, 0)), within_s=5.0)
    one.__exit__(None, None, None)
    with pytest.raises(MeasurementError, match="with block"):
        one.start_users(1)


@pytest.mark.guarantee(
    "the generator exits with its parent, and its own death is reported",
    pattern="measure",
    under="kill -9 of either",
)
@pytest.mark.parametrize("busy", ["", "while True: pass"])
def test_generator_exits_when_its_parent_is_killed(scenario: Write, service: Any, busy: str) -> None:
    """Also when the locustfile never yields to another greenlet."""
    path = scenario(GOOD.replace('self.client.get("/fast")', busy) if busy else GOOD)
    parent, pid, _ = measuring(path, service.url)
    assert alive(pid)
    if not busy:
        eventually(lambda: service.seen["/fast"] > 3)
    else:
        time.sleep(0.3)
    parent.kill()
    parent.wait()
    eventually(lambda: not alive(pid))


@pytest.mark.control("the generator exits with its parent, and its own death is reported")
def test_the_control_generator_lives_while_the_parents_socket_is_open(scenario: Write, service: Any) -> None:
    parent, pid, heir = measuring(scenario(GOOD), service.url, heir=True)
    try:
        eventually(lambda: service.seen["/fast"] > 3)
        parent.kill()
        parent.wait()
        answered = service.seen["/fast"]
        eventually(lambda: service.seen["/fast"] > answered + 20)  # it goes on
        assert alive(pid)
    finally:
        os.kill(heir, signal.SIGKILL)
    eventually(lambda: not alive(pid))


def measuring(path: Path, url: str, *, heir: bool = False) -> tuple[subprocess.Popen[bytes], int, int]:
    """Start a process that runs a trial; return it, its generator's pid and that of an heir of its socket."""
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            dedent(f"""
            import subprocess
            from pathlib import Path
            from tenfold.measure.load.generator import Generator
            from tenfold.measure.settings import MeasureSettings
            from tenfold.measure.trial import TrialRequest
            with Generator(Path({str(path)!r}), {url!r}, settings=MeasureSettings()) as one:
                one.start_users(1)
                end = one._process._connection._socket.fileno()
                heir = {heir} and subprocess.Popen(["sleep", "60"], pass_fds=[end], stdout=subprocess.DEVNULL)
                print(one.pid, heir.pid if heir else 0, flush=True)
                one.run(TrialRequest(rate=50.0, duration_s=60.0, purpose="search", seed=1))
            """),
        ],
        stdout=subprocess.PIPE,
    )
    assert parent.stdout is not None
    with parent.stdout:
        pid, heir_pid = map(int, parent.stdout.readline().split())
    return parent, pid, heir_pid


def test_ctrl_c_ends_the_trial_and_returns_its_blocks(generator: Make, request_for: Ask) -> None:
    one = generator(GOOD)
    one.start_users(3)

    def interrupt_soon(block: Block) -> None:
        if block.start_s == 0.0:
            threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()

    started = time.monotonic()
    trial = one.run(request_for(duration_s=30.0), interrupt_soon)
    assert time.monotonic() - started < 8
    assert trial.interrupted
    assert 0.8 < trial.seconds < 5
    assert trial.good > 0
    assert trial.endpoints
    # The generator has its own session and was not hit.
    assert not one.run(request_for(duration_s=0.5)).interrupted


def test_ctrl_c_with_a_stopped_generator_returns_the_blocks(
    generator: Make, request_for: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tenfold.measure.load.generator.INTERRUPT_S", 0.2)
    one = generator(GOOD)
    one.start_users(3)

    def freeze(block: Block) -> None:
        os.kill(one.pid, signal.SIGSTOP)
        raise KeyboardInterrupt

    trial = one.run(request_for(duration_s=30.0), freeze)
    assert trial.interrupted
    assert len(trial.blocks) == 1
    assert trial.seconds == 0.5
    eventually(lambda: not alive(one.pid))


def test_exception_in_on_block_kills_the_generator(generator: Make, request_for: Ask) -> None:
    one = generator(GOOD)
    one.start_users(1)

    def boom(block: Block) -> None:
        raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        one.run(request_for(duration_s=30.0), boom)
    eventually(lambda: not alive(one.pid))


def test_measuring_process_loads_neither_gevent_nor_locust() -> None:
    code = """
    import sys
    import tenfold.measure.load.generator
    loaded = {"gevent", "locust", "requests"} & set(sys.modules)
    sys.exit(str(loaded) if loaded else 0)
    """
    subprocess.run([sys.executable, "-c", dedent(code)], check=True)
