"""The whole stack: what it provides, its errors, and that it leaves nothing behind."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest

from tenfold import types
from tenfold.edge import public
from tenfold.edge.settings import EdgeSettings
from tenfold.errors import DependencyError, SettingsError, StackError
from tenfold.stack import Stack
from tenfold.stack.ports import free_port, is_free
from tests.stack.conftest import HERE, lives, settings_for, small, stacks
from tests.support.waiting import eventually


def get(url: str, **headers: str) -> dict:
    request = urllib.request.Request(url, headers=headers)
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.load(answer)


def kinds(stack: Stack) -> list[str]:
    return [server.kind for server in stack.servers]


def test_stack_satisfies_the_stack_protocol(running: Stack) -> None:
    expected: types.Stack = running
    assert expected.app_folder == HERE
    assert kinds(running).index("primary") < kinds(running).index("replica") < kinds(running).index("app")
    assert kinds(running)[-1] == "nginx"
    for server in running.servers:
        assert server.pids(), server.name
        assert server.log.is_file()
        assert running.probe_address.parent in server.log.parents
    assert len(str(running.probe_address)) < 100


def test_app_gets_server_addresses_in_its_environment(running: Stack) -> None:
    told = get(f"{running.url}/environment")
    assert told["DATABASE_URL"] == running.database_url
    assert len(told["DATABASE_REPLICA_URLS"].split(",")) == 2
    assert told["REDIS_URL"].startswith("redis://:")
    assert told["GREETING"] == "to plain at 127.0.0.1"
    with psycopg.connect(told["DATABASE_URL"]) as connection:
        assert connection.execute("select current_user, current_database()").fetchone() == ("plain", "plain")
        connection.execute("create table owned (id int)")  # the public schema is the owner's
        connection.rollback()
        assert connection.execute("select rolsuper from pg_roles where rolname = user").fetchone() == (False,)
        for name in ("fsync", "synchronous_commit", "full_page_writes"):
            assert connection.execute("select current_setting(%s)", [name]).fetchone() == ("on",)


def is_replayed(replica: psycopg.Connection) -> bool:
    return replica.execute("select to_regclass('streamed') is not null").fetchone()[0]


def test_replicas_stream_and_refuse_writes(running: Stack) -> None:
    replicas = get(f"{running.url}/environment")["DATABASE_REPLICA_URLS"].split(",")
    with psycopg.connect(running.database_url, autocommit=True) as primary:
        primary.execute("create table streamed as select 7 as n")
        for url in replicas:
            with psycopg.connect(url, autocommit=True) as replica:
                eventually(lambda connection=replica: is_replayed(connection))
                assert replica.execute("select n from streamed").fetchone() == (7,)
                with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
                    replica.execute("delete from streamed")
        primary.execute("drop table streamed")
    eventually(lambda: running.replication_lag_bytes() == {"replica_1": 0, "replica_2": 0})


@pytest.mark.control("passwords differ at each start and are not shown")
def test_servers_refuse_wrong_or_missing_passwords(running: Stack) -> None:
    replicas = get(f"{running.url}/environment")["DATABASE_REPLICA_URLS"].split(",")
    for url in [running.database_url, *replicas]:
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            psycopg.connect(url.replace("plain:", "plain:x", 1))
    redis = next(server for server in running.servers if server.kind == "redis")
    with socket.create_connection(("127.0.0.1", redis.port)) as connection:
        connection.sendall(b"PING\r\n")
        assert connection.recv(100).startswith(b"-NOAUTH")


def listening(pids: Iterable[int]) -> set[tuple[str, int]]:
    """Return address and port of every listening socket of these processes."""
    found = [used for pid in pids for used in psutil.Process(pid).net_connections("inet")]
    return {(used.laddr.ip, used.laddr.port) for used in found if used.status == psutil.CONN_LISTEN}


@pytest.mark.guarantee("nothing listens beyond loopback", pattern="stack")
def test_servers_listen_on_loopback_only(running: Stack) -> None:
    seen = listening(pid for server in running.servers for pid in server.pids())
    assert {address for address, _ in seen} == {"127.0.0.1"}
    assert {server.port for server in running.servers} <= {port for _, port in seen}


@pytest.mark.control("nothing listens beyond loopback")
def test_the_control_a_listener_on_another_address_is_found() -> None:
    with socket.create_server(("127.0.0.2", 0)) as elsewhere:
        assert elsewhere.getsockname() in listening([os.getpid()])


@pytest.mark.guarantee(
    "`/metrics` answers this machine only",
    pattern="evidence",
    under="a visitor through nginx",
    control="the same test: the same visitor gets every other page",
)
def test_nginx_serves_metrics_to_loopback_only(running: Stack) -> None:
    """A client from 127.0.0.2 is not allowed. The control: it gets every other page."""
    answers = {}
    for path in ("/metrics", "/"):
        client = http.client.HTTPConnection("127.0.0.1", port_of(running), source_address=("127.0.0.2", 0))
        client.request("GET", path)
        answers[path] = client.getresponse().status
        client.close()
    assert answers == {"/metrics": 403, "/": 200}
    assert get(f"{running.url}/metrics")["pid"]


def port_of(stack: Stack) -> int:
    return int(stack.url.rpartition(":")[2])


def test_nginx_logs_json_and_overwrites_forwarded_headers(running: Stack) -> None:
    headers = get(f"{running.url}/headers?secret=1", **{"X-Forwarded-For": "6.6.6.6", "X-Real-IP": "6.6.6.6"})
    assert headers["x-forwarded-for"] == headers["x-real-ip"] == "127.0.0.1"

    def find_entry() -> Any:
        lines = map(json.loads, running.access_log.read_text().splitlines())
        return next((line for line in lines if line["id"] == headers["x-request-id"]), None)

    entry = eventually(find_entry)
    assert (entry["method"], entry["path"], entry["status"]) == ("GET", "/headers", 200)
    assert entry["upstream_addr"] in {server.address for server in running.servers if server.kind == "app"}
    assert float(entry["upstream_response_time"]) >= 0
    assert "secret" not in running.access_log.read_text()


def test_both_instances_get_requests(running: Stack) -> None:
    assert len({get(running.url)["pid"] for _ in range(20)}) == 2


@pytest.mark.guarantee(
    "nothing is left running, listening or on disk", pattern="stack", under="the end of a `with`"
)
def test_stop_leaves_no_process_port_or_folder() -> None:
    stack = Stack(settings_for(replicas=1))
    with stack:
        pids = [pid for server in stack.servers for pid in server.pids()]
        ports = [server.port for server in stack.servers]
        folder = stack.probe_address.parent
        assert len(pids) > 8
        assert not any(is_free(port) for port in ports)
        assert folder in stacks()
        passwords = [secret for server in stack.servers for secret in server.secrets()]
    assert not [pid for pid in pids if lives(pid)]
    assert all(is_free(port) for port in ports)
    assert folder not in stacks()
    assert len(set(passwords)) == 3
    stack.stop()  # stopping twice does nothing


@pytest.mark.guarantee(
    "passwords differ at each start and are not shown",
    pattern="stack",
    under="`tenfold up`, a failing preparation",
)
def test_each_start_generates_new_passwords() -> None:
    secrets = []
    stack = Stack(small())
    for _ in range(2):
        with stack:
            secrets += [secret for server in stack.servers for secret in server.secrets()]
    assert len(set(secrets)) == len(secrets) == 2


@pytest.mark.control("nothing is left running, listening or on disk", "going by pids alone would miss it")
def test_worker_that_outlives_the_granian_main_process_is_stopped() -> None:
    with Stack(small()) as stack:
        app = next(server for server in stack.servers if server.kind == "app")
        main, worker = app.pids()[0], get(app.url)["pid"]
        assert worker != main
        psutil.Process(main).kill()
        eventually(lambda: main not in app.pids())
        assert get(app.url)["pid"] == worker  # it goes on serving; the main pid alone would miss it
        assert stack.ended_servers() == []
    assert not lives(worker)


def test_instance_without_worker_is_reported_as_ended() -> None:
    with Stack(small()) as stack:
        app = next(server for server in stack.servers if server.kind == "app")
        psutil.Process(app.pids()[-1]).kill()
        eventually(lambda: stack.ended_servers() == [app])
        with pytest.raises(urllib.error.HTTPError, match="502"):
            get(stack.url)


@pytest.mark.guarantee(
    "a failed start ends what was started and quotes the server",
    pattern="stack",
    under="a server that cannot start",
    control="the same test starts it unharmed first",
)
def test_failed_server_stops_the_others_and_is_quoted(tmp_path: Path) -> None:
    broken = tmp_path / "redis-server"
    broken.write_text("#!/bin/sh\necho 'bad luck today'\nexit 7\n")
    broken.chmod(0o755)
    tmp_path.chmod(0o755)
    before = stacks()
    with pytest.raises((StackError, DependencyError)) as caught:
        Stack(settings_for(redis_server=_runnable_by_all(broken))).start()
    assert "redis ended before it was ready (exit status 7); its last lines:\n  bad luck today" in str(
        caught.value
    )
    assert stacks() == before
    assert strays() == []


def strays() -> list[psutil.Process]:
    """Return processes that work in the folder of a stack that no longer exists."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            cwd = Path(process.cwd())
            if cwd.is_relative_to(tempfile.gettempdir()) and not any(map(cwd.is_relative_to, stacks())):
                found.append(process)
    return [process for process in found if lives(process.pid)]


def _runnable_by_all(program: Path) -> Path:
    """Return a copy that another user can run: pytest's folders are closed."""
    folder = Path(tempfile.mkdtemp(prefix="p-"))
    folder.chmod(0o755)
    return Path(shutil.copy(program, folder))


def test_failing_ready_path_is_named_in_the_error() -> None:
    with pytest.raises(StackError, match=r"app was not ready within 1.5 s: GET /broken answers 503"):
        Stack(small(service={"ready_path": "/broken"}, start_timeout_s=1.5)).start()


@pytest.mark.parametrize(
    ("app", "error", "said"),
    [
        (
            "nosuchshop.app:app",
            SettingsError,
            "cannot import nosuchshop.app: No module named 'nosuchshop'; it was looked for in",
        ),
        ("plain:ap", StackError, "cannot import plain: module 'plain' has no attribute 'ap'"),
        (
            "lacking:app",
            StackError,
            "cannot import lacking: No module named 'no_such_library' (lacking.py:3)",
        ),
        ("crooked:app", StackError, "cannot import crooked: SyntaxError"),
        ("plain:not_an_app", StackError, "plain:not_an_app is a str, not an ASGI or WSGI app"),
    ],
)
def test_app_that_does_not_load_is_one_sentence(app: str, error: type, said: str, crooked: None) -> None:
    with pytest.raises(error) as caught:
        Stack(small(app)).start()
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def crooked() -> Iterator[None]:
    """A file with a syntax error, hidden from formatters."""
    file = HERE / "crooked.py"
    file.write_text("def app(:\n")
    yield
    file.unlink()


def test_app_factory() -> None:
    with Stack(small("plain:make", service={"factory": True})) as stack:
        assert get(stack.url)["pid"]


def test_without_nginx_the_first_instance_is_the_front_door() -> None:
    port = free_port()
    with Stack(small(nginx=False, port=port)) as stack:
        assert stack.url == f"http://127.0.0.1:{port}"
        assert stack.access_log is None
        assert get(stack.url)["pid"]


def test_without_an_app_only_data_servers_run() -> None:
    with Stack(small("")) as stack:
        assert kinds(stack) == ["redis"]
        with pytest.raises(StackError, match="no app"):
            _ = stack.url


@pytest.mark.parametrize("nginx", [True, False])
def test_taken_port_is_named_in_the_error(nginx: bool) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(StackError, match=f"port {port} is taken .* \\(--port 0"):
            Stack(small(port=port, nginx=nginx)).start()


def test_prepare_runs_before_the_app_and_is_replayed_by_replicas() -> None:
    service = {"prepare": "preparing:fill"}
    with Stack(settings_for(service=service, replicas=1)) as stack:
        url = stack.environment["DATABASE_REPLICA_URLS"]
        with psycopg.connect(url) as replica:
            assert replica.execute("select count(*), max(n) from filled").fetchone() == (1000, 1000)


def test_prepare_may_be_a_command(tmp_path: Path) -> None:
    command = f"sh -c 'printf %s \"$REDIS_URL\" > {tmp_path}/told'"
    with Stack(small(service={"prepare": command})) as stack:
        assert (tmp_path / "told").read_text() == stack.environment["REDIS_URL"]


@pytest.mark.guarantee("passwords differ at each start and are not shown")
@pytest.mark.parametrize(
    ("prepare", "said"),
    [
        ("preparing:fail", "service.prepare: preparing:fail failed with ValueError: no data today"),
        ("preparing:nothing", "cannot import preparing: module 'preparing' has no attribute 'nothing'"),
        ("sh -c 'echo $REDIS_URL; exit 3'", "prepare failed (exit status 3); its last lines:\n  redis://:…@"),
    ],
)
def test_failing_prepare_is_quoted_without_secrets(prepare: str, said: str) -> None:
    with pytest.raises(StackError) as caught:
        Stack(small(service={"prepare": prepare})).start()
    assert said in str(caught.value)


@pytest.mark.guarantee("an interrupted start leaves nothing", pattern="stack", under="Ctrl-C, once or twice")
def test_interrupted_start_leaves_nothing_running(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(line: str) -> None:
        if line.startswith("redis"):
            signal.raise_signal(signal.SIGINT)

    before = stacks()
    with pytest.raises(KeyboardInterrupt):
        Stack(settings_for(), log=interrupt).start()
    assert stacks() == before


@pytest.mark.control("an interrupted start leaves nothing")
def test_the_control_interrupted_start_without_stop_leaves_servers_running(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupt(line: str) -> None:
        if line.startswith("redis"):
            signal.raise_signal(signal.SIGINT)

    before = stacks()
    stack = Stack(settings_for(), log=interrupt)
    try:
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(stack, "stop", lambda: None)
            stack.start()
        assert stacks() != before
    finally:
        stack.stop()
    assert stacks() == before


def test_forked_child_does_not_stop_the_stack_of_its_parent(running: Stack) -> None:
    if (child := os.fork()) == 0:
        running.stop()
        os._exit(0)
    os.waitpid(child, 0)
    assert get(running.url)["pid"]


def test_nginx_without_njs_is_refused_for_an_edge(tmp_path: Path) -> None:
    program = tmp_path / "nginx"
    program.write_text("#!/bin/sh\necho 'nginx version: nginx/1.31.3' >&2\n")
    program.chmod(0o755)
    settings = settings_for("plain:app", nginx_binary=program)
    settings = settings.model_copy(update={"edge": EdgeSettings(rules={"/": public(ttl=1)})})
    with pytest.raises(DependencyError, match=r"has no njs built in"), Stack(settings):
        pass
