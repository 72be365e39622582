"""`tenfold measure` from the command line against real and failing services; no process is left."""

from __future__ import annotations

import http.server
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

MARK = "TENFOLD_TESTS_MARK"  # in the environment of what these tests start
LOCUSTFILE = """
from locust import FastHttpUser, task

class Visitor(FastHttpUser):
    @task
    def visit(self):
        self.client.get("/page")
"""
LOGIN = """
from locust import FastHttpUser, task

class Visitor(FastHttpUser):
    def on_start(self):
        self.client.post("/login")

    @task
    def visit(self):
        self.client.get("/page")
"""

PAST_LOCUST = """
import urllib.request
from locust import FastHttpUser, task

class Visitor(FastHttpUser):
    @task
    def visit(self):
        urllib.request.urlopen(self.host + "/page").read()
"""


class Service(http.server.ThreadingHTTPServer):
    """Answers /page with ``status`` after ``seconds``, one at a time, and refuses every login."""

    daemon_threads = True

    def __init__(self, *, status: int = 200, seconds: float = 0.0, per_minute: float = math.inf) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.left = per_minute  # a test is over before the next minute
        self.status, self.seconds, self.turn = status, seconds, threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Service

    def do_GET(self) -> None:
        with self.server.turn:
            time.sleep(self.server.seconds)
            self.server.left -= 1
        self.answer(429 if self.server.left < 0 else self.server.status)

    def do_POST(self) -> None:
        self.answer(401)

    def answer(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args: object) -> None:
        """Nothing."""


@pytest.fixture
def service(request: pytest.FixtureRequest) -> Iterator[Service]:
    server = Service(**getattr(request, "param", {}))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "locustfile.py").write_text(LOCUSTFILE)
    return tmp_path


def tenfold(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    mark = uuid.uuid4().hex
    done = subprocess.run(
        [sys.executable, "-m", "tenfold", "measure", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=110,
        env={**os.environ, MARK: mark},
    )
    assert marked(mark) == []
    return done


def marked(mark: str) -> list[psutil.Process]:
    """Return the living processes that inherited the mark, whatever their parent is."""
    return [process for process in psutil.process_iter() if environment(process).get(MARK) == mark]


def environment(process: psutil.Process) -> dict[str, str]:
    try:
        found: dict[str, str] = process.environ()
    except (psutil.Error, OSError):
        return {}
    return found


def test_the_control_orphan_process_is_found() -> None:
    mark, sleep = uuid.uuid4().hex, "import time; time.sleep(60)"
    parent = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', '{sleep}'])"
    try:
        subprocess.run([sys.executable, "-c", parent], env={**os.environ, MARK: mark}, check=True)
        (orphan,) = marked(mark)
        assert orphan.parent() != psutil.Process()
    finally:
        for left in marked(mark):
            left.kill()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "nothing to measure: give a URL"),
        (("http://127.0.0.1:1",), "refuses connections; start the service"),
        (("http://192.0.2.1:80",), "--i-own-this-target"),
        (("ftp://127.0.0.1",), "no URL"),
        (("http://127.0.0.1:1", "--scenario", "locustfil.py"), "did you mean"),
        (("http://127.0.0.1:1", "--against", "none"), "no baseline none"),
        (("http://127.0.0.1:1", "--budget-s", "1"), "10"),
        (("http://127.0.0.1:1", "--save", "../x"), "is not a name for a baseline"),
    ],
)
def test_impossible_measurement_is_one_sentence(
    folder: Path, arguments: tuple[str, ...], sentence: str
) -> None:
    done = tenfold(folder, *arguments)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and sentence in done.stderr, done.stderr
    assert not (folder / ".tenfold").exists()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("from locust import FastHttpUser\nclass V(FastHttpUser)\n", "locustfile.py:2"),
        ("import nosuchmodule\n", "nosuchmodule"),
        ("x = 1\n", "no user class"),
        (LOGIN, "answered 401"),
        (PAST_LOCUST, "(task Visitor.visit), so that nothing can be concluded; send with self.client"),
    ],
)
def test_broken_scenario_is_one_sentence(folder: Path, service: Service, text: str, sentence: str) -> None:
    (folder / "locustfile.py").write_text(text)
    done = tenfold(folder, service.url)
    assert done.returncode == 2
    assert sentence in done.stderr.splitlines()[-1], done.stderr


@pytest.mark.parametrize("service", [{"status": 500}], indirect=True)
def test_failing_service_has_no_capacity(folder: Path, service: Service) -> None:
    done = tenfold(folder, service.url, "--budget-s", "10", "--json")
    assert done.returncode == 1
    capacity = json.loads(done.stdout)["capacity"]
    assert capacity["outcome"] == "below" and capacity["low"] is None
    assert "GET /page answered 500" in capacity["reason"]


@pytest.mark.parametrize("service", [{"status": 503}], indirect=True)
def test_refusing_service_has_no_capacity(folder: Path, service: Service) -> None:
    done = tenfold(folder, service.url, "--budget-s", "10", "--json")
    assert done.returncode == 1
    found = json.loads(done.stdout)
    assert found["refused_share"] == 1.0 and found["capacity"]["outcome"] == "below"
    assert found["latency_ms"] is None and found["samples"] == 0, "a refusal has no latency"


def test_logins_that_block_count_against_the_budget(folder: Path, service: Service) -> None:
    text = LOGIN.replace('self.client.post("/login")', "next(turn) and time.sleep(600)")
    (folder / "locustfile.py").write_text("import itertools, time\nturn = itertools.count()\n" + text)
    began = time.monotonic()
    done = tenfold(folder, service.url, "--budget-s", "10", "--json")
    capacity = json.loads(done.stdout)["capacity"]
    assert capacity["seconds"] <= 10 + 5, "logins, and the wait before a trial, are in it"
    assert time.monotonic() - began < 45, "every trial waited for logins, beyond the budget"


@pytest.mark.parametrize("service", [{"seconds": 0.005, "per_minute": 40}], indirect=True)
def test_rate_limit_is_no_capacity(folder: Path, service: Service) -> None:
    done = tenfold(folder, service.url, "--budget-s", "14", "--min-rps", "8", "--json")
    found = json.loads(done.stdout)
    assert done.returncode == 1, done.stdout
    assert found["bottlenecks"][0]["kind"] == "Rate limit"
    assert found["latency_ms"] is None or found["latency_ms"]["p50"] >= 5
    assert found["samples"] <= 40


@pytest.mark.parametrize("service", [{"seconds": 0.02}], indirect=True)
def test_measurement_is_saved_compared_and_checked_against_min_rps(folder: Path, service: Service) -> None:
    """20 ms, one at a time: at most 50/s can be answered, however fast the machine is."""
    (folder / "tenfold.toml").write_text("[measure]\noverload_s = 2\n")
    first = tenfold(folder, service.url, "--budget-s", "20", "--save", "before", "--json")
    found = json.loads(first.stdout)
    assert first.returncode == 0, first.stderr
    assert 0 < found["capacity"]["low"] < 50 and found["capacity"]["low"] <= found["capacity"]["high"]
    assert found["latency_ms"]["p50"] >= 20 and found["error_share"] == 0
    assert found["overload"]["kept"] > 0 and not found["inside"] and found["not_measured"]
    second = tenfold(folder, service.url, "--budget-s", "20", "--against", "before", "--min-rps", "500")
    assert second.returncode != 0, "no such rate"
    assert "Compared" in second.stdout and "before" in second.stdout
    assert "Capacity" in second.stdout and (folder / ".tenfold" / "report.html").is_file()


@pytest.mark.parametrize("service", [{"seconds": 0.3}], indirect=True)
def test_objective_missed_at_one_request_at_a_time_exits_with_1(folder: Path, service: Service) -> None:
    done = tenfold(folder, service.url, "--budget-s", "12")
    assert done.returncode == 1
    assert "misses its objective even at one request at a time" in done.stdout
    assert "Traceback" not in done.stderr


def test_closed_loop_reports_no_capacity(folder: Path, service: Service) -> None:
    done = tenfold(folder, service.url, "--closed", "--users", "3", "--duration-s", "2", "--json")
    found = json.loads(done.stdout)
    assert done.returncode == 0 and found["mode"] == "closed" and found["capacity"] is None
    assert found["samples"] > 0 and "closed loop" in found["notices"][0]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_prints_the_report_so_far(folder: Path, service: Service, number: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "tenfold", "measure", service.url],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stderr is not None and process.stdout is not None
    for line in process.stderr:
        if "doubling" in line:
            break
    os.killpg(process.pid, number)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 2, "there is no result"
    assert "interrupted" in out and "Report:" in out
    assert json.loads((folder / ".tenfold" / "report.json").read_text())["interrupted"]
