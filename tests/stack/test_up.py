"""tenfold up: its output, its errors, and that it leaves nothing running."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tenfold.cli.log_follower import LogTail, format_request
from tenfold.settings import Settings
from tenfold.stack.programs import find_redis
from tests.stack.conftest import lives, python, stacks
from tests.support.waiting import eventually

DRIVER = """
import sys, typer
from tenfold.cli.up import up
from tenfold.errors import TenfoldError
app = typer.Typer(pretty_exceptions_enable=False)
app.command()(up)
try:
    app(standalone_mode=False)
except TenfoldError as error:
    print(f"tenfold: {error}", file=sys.stderr)
    sys.exit(2)
"""


@contextmanager
def start_up(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    process = python("-c", DRIVER, *arguments)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.communicate(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()


def read_until(process: subprocess.Popen[str], text: str) -> str:
    said = ""
    while text not in said:
        line = process.stdout.readline()
        assert line, f"{said}\n{process.stderr.read()}"
        said += line
    return said


def test_up_lists_servers_follows_logs_and_hides_passwords(tmp_path: Path) -> None:
    before = stacks()
    with start_up("plain:app", "--port", "0", "--instances", "2", "--replicas", "1") as process:
        said = read_until(process, "Ctrl-C stops everything")
        url = re.search(r"^nginx +(http://127\.0\.0\.1:\d+) +→ 2 instances$", said, re.M)[1]
        pids = re.search(r"^app 1, 2 +pid (\d+), (\d+) +granian$", said, re.M).groups()
        assert re.search(r"^primary +postgresql://…:\d+/plain +1 replica, \d+ bytes behind$", said, re.M)
        redis = find_redis(Settings())
        assert re.search(rf"^redis +redis://…:\d+ +{redis.name} {redis.version}$", said, re.M)
        assert f"Metrics: {url}/metrics (loopback only)" in said
        assert all(len(line) <= 80 for line in said.splitlines())
        (folder,) = set(stacks()) - set(before)
        secrets = re.findall(r":([0-9a-f]{32})@", (folder / "environment").read_text())
        assert len(set(secrets)) == 2

        told = json.load(urllib.request.urlopen(f"{url}/environment"))
        assert secrets[0] in told["DATABASE_URL"]  # the control: a password looks like this
        said += read_until(process, "GET /environment 200")
        with (folder / "logs" / "app-1.log").open("a") as log:
            log.write(f"connecting to {told['DATABASE_URL']}\x1b[2J\n")
        said += read_until(process, "connecting to postgresql://plain:…@127.0.0.1")
        assert "\x1b" not in said
        assert not [secret for secret in secrets if secret in said]

        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=20)
        assert (process.returncode, errors) == (0, "")
        assert "nothing is left running" in rest
        assert not [pid for pid in pids if lives(int(pid))]
        assert stacks() == before


def test_json_output_is_one_object() -> None:
    with start_up("plain:app", "--port", "0", "--json") as process:
        told = json.loads(process.stdout.readline())
        assert {server["kind"] for server in told["servers"]} == {"app", "nginx", "primary", "redis"}
        assert all(lives(pid) for server in told["servers"] for pid in server["pids"])
        assert urllib.request.urlopen(told["url"]).status == 200
        exported = Path(told["environment"]).read_text()
        secrets = re.findall(r":([0-9a-f]{32})@", exported)
        assert not [secret for secret in secrets if secret in json.dumps(told)]
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=20) == ("", "")
        assert process.returncode == 0


@pytest.mark.guarantee("an interrupted start leaves nothing")
@pytest.mark.parametrize("pause_s", [0.0, 0.1])
def test_repeated_ctrl_c_leaves_nothing_running(pause_s: float) -> None:
    before = stacks()
    with start_up("plain:app", "--port", "0", "--json") as process:
        pids = [pid for server in json.loads(process.stdout.readline())["servers"] for pid in server["pids"]]
        for _ in range(3):
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
            time.sleep(pause_s)  # varies the moment of the second press
        process.wait(timeout=20)
        assert not [pid for pid in pids if lives(pid)]
        assert stacks() == before


def test_ctrl_c_during_start_leaves_nothing_running() -> None:
    before = stacks()
    with start_up("plain:app", "--port", "0", "--replicas", "2") as process:
        (folder,) = eventually(lambda: set(stacks()) - set(before))
        eventually((folder / "logs" / "primary.log").exists)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)
        assert process.returncode == 0
        assert stacks() == before


def test_dead_instance_is_reported_and_dead_nginx_ends_the_stack() -> None:
    before = stacks()
    with start_up("plain:app", "--port", "0", "--json", "--instances", "2") as process:
        told = json.loads(process.stdout.readline())
        pids = {server["name"]: server["pids"] for server in told["servers"]}
        for pid in pids["app 1"]:
            psutil.Process(pid).kill()
        line = process.stderr.readline()
        assert line.startswith("tenfold: app 1 ended (killed by SIGKILL); its last lines:")
        assert urllib.request.urlopen(told["url"]).status == 200
        for pid in pids["nginx"]:
            psutil.Process(pid).kill()
        _, errors = process.communicate(timeout=20)
        assert "tenfold: the front door is gone: nginx ended (killed by SIGKILL)" in errors
        assert process.returncode == 2
        assert stacks() == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "tenfold: no app is given: tenfold up package.module:app"),
        (("plain",), "tenfold: service.app: 'plain' should look like"),
        (("shop.app:app",), "tenfold: cannot import shop.app: No module named 'shop'"),
        (("lacking:app",), "tenfold: cannot import lacking: No module named 'no_such_library'"),
    ],
)
def test_invalid_app_is_one_sentence(arguments: tuple[str, ...], said: str) -> None:
    with start_up(*arguments) as process:
        out, errors = process.communicate(timeout=30)
        assert process.returncode == 2
        assert errors.startswith(said)
        assert errors.count("\n") == 1
        assert out == ""


def test_tail_returns_whole_lines_and_skips_the_excess(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("old\n")
    tail = LogTail(path)
    with path.open("a") as log:
        log.write("one\ntw")
        log.flush()
        assert tail.read_new() == ["one"]
        log.write("o\n" + "x\n" * 500)
        log.flush()
        assert tail.read_new() == ["(401 lines left out)", *["x"] * 100]
        assert tail.read_new() == []


def test_access_log_line_that_is_not_json_is_shown_unchanged() -> None:
    assert format_request("oops", {}) == "oops"
    assert format_request("{}", {}) == "{}"
