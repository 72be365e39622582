"""Replacing, killing and restarting servers under load: no failed request, and no POST that runs twice."""

from __future__ import annotations

import shutil
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tenfold.balancing.settings import BalancingSettings
from tenfold.errors import ReplacementError, StackError
from tenfold.stack import Stack
from tests.stack.conftest import settings_for, small
from tests.stack.support.crowd import Crowd, crowd, executions
from tests.support.waiting import eventually


@pytest.fixture(scope="module")
def record(temporary: Path) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="r-"))
    yield folder / "record"
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def stack(record: Path) -> Iterator[Stack]:
    service = {"environment": {"RECORD": str(record)}, "ready_path": "/ready"}
    settings = small("counting:app", service=service, redis=False, instances=3, start_timeout_s=4)
    balancing = BalancingSettings(drain_timeout_s=20, fail_timeout_s=1)
    with Stack(settings.model_copy(update={"balancing": balancing})) as stack:
        yield stack


@pytest.fixture(autouse=True)
def all_up(stack: Stack, record: Path) -> None:
    """Each test begins with all instances running, marked as up in nginx, and an empty record."""
    for server in stack.servers:
        if not server.pids():
            stack.restart(server)
    answered: set[str] = set()
    workers = {str(server.pids()[-1]) for server in apps(stack)}

    def all_answer() -> bool:
        with suppress(urllib.error.HTTPError):
            answered.add(get(stack.url))
        return workers <= answered

    eventually(all_answer)
    record.write_text("")


def apps(stack: Stack) -> list:
    return [server for server in stack.servers if server.kind == "app"]


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=5) as answer:
        return answer.read().decode()


def port(stack: Stack) -> int:
    return int(stack.url.rpartition(":")[2])


def wait_for_answers(seen: Crowd, *, more: int = 60) -> None:
    target = seen.answered + more
    eventually(lambda: seen.answered >= target)


@pytest.mark.guarantee(
    "a rolling replacement fails no request, POST included, and repeats none",
    pattern="balancing",
    under="clients on kept connections, all the while",
)
def test_rolling_replacement_fails_no_request_and_repeats_none(stack: Stack, record: Path) -> None:
    before = [server.pids() for server in apps(stack)]
    with crowd(port(stack)) as seen:
        wait_for_answers(seen)
        for server in apps(stack):
            done = stack.replace(server)
            assert done.drained
            wait_for_answers(seen)
    assert seen.failed == {}
    assert executions(record) == dict.fromkeys(seen.sent, 1)
    assert not {pid for pids in before for pid in pids} & {
        pid for server in apps(stack) for pid in server.pids()
    }
    assert {
        str(server.pids()[-1]) for server in apps(stack)
    } <= seen.pids.keys()  # all three get requests again


@pytest.mark.control("a rolling replacement fails no request, POST included, and repeats none")
def test_the_control_requests_fail_without_draining(stack: Stack, record: Path) -> None:
    with crowd(port(stack)) as seen:
        for server in apps(stack) * 5:  # until a POST was in flight on an instance that was stopped
            if seen.failed:
                break
            wait_for_answers(seen)
            server.stop(grace_s=0)
            stack.restart(server)
    assert seen.failed


@pytest.mark.guarantee(
    "no idempotent request fails, no other runs twice",
    pattern="balancing",
    under="kill -9 of an instance under load",
)
def test_killed_instance_fails_no_idempotent_request_and_repeats_no_post(stack: Stack, record: Path) -> None:
    with crowd(port(stack)) as seen:
        for server in apps(stack)[:2]:
            wait_for_answers(seen)
            for pid in server.pids():
                psutil.Process(pid).kill()
            wait_for_answers(seen)
    assert {method for method, _ in seen.failed} <= {"POST"}
    # Each failed once and was not retried: unanswered ones may have run, answered ones have.
    counts = executions(record)
    assert max(counts.values()) == 1
    assert set(seen.sent) - counts.keys() <= seen.failed_posts


@pytest.mark.guarantee(
    "a new instance that does not come up gets no requests",
    pattern="balancing",
    under="a release that never gets ready",
    control="the same test lets it in once it is whole",
)
def test_instance_that_does_not_become_ready_gets_no_requests(stack: Stack, record: Path) -> None:
    server = apps(stack)[1]
    broken = record.with_name("broken")
    with crowd(port(stack)) as seen:
        broken.touch()
        try:
            with pytest.raises(
                ReplacementError, match=r"app 2 stays out of the balancer: app 2 was not ready"
            ):
                stack.replace(server)
        finally:
            broken.unlink()
        wait_for_answers(seen)
        assert not server.pids()
        stack.restart(server)
        eventually(lambda: str(server.pids()[-1]) in seen.pids)
    assert seen.failed == {}


def test_restart_brings_a_killed_server_back_on_the_same_port(stack: Stack) -> None:
    for server in (apps(stack)[0], stack.servers[-1]):
        url = server.url
        for pid in server.pids():
            psutil.Process(pid).kill()
        eventually(lambda server=server: server in stack.ended_servers())
        stack.restart(server)
        assert server.url == url
        assert stack.ended_servers() == []
        assert get(stack.url)


def kept_rows(url: str) -> list[tuple]:
    import psycopg

    with psycopg.connect(url) as connection:
        there = connection.execute("select to_regclass('kept') is not null").fetchone()[0]
        return connection.execute("select n from kept").fetchall() if there else []


def test_killed_databases_restart_with_their_data() -> None:
    import psycopg

    with Stack(settings_for("", replicas=1)) as stack:
        with psycopg.connect(stack.database_url, autocommit=True) as connection:
            connection.execute("create table kept as select 7 as n")
        for server in stack.servers:
            for pid in server.pids()[:1]:
                psutil.Process(pid).kill()
            stack.restart(server)
            if server.kind == "primary":
                assert kept_rows(server.url) == [
                    (7,)
                ]  # ready means ready, despite the killed server's pid file
        for server in stack.servers:
            if server.kind in ("primary", "replica"):
                eventually(lambda url=server.url: kept_rows(url) == [(7,)])


def test_replace_refuses_what_cannot_be_replaced(stack: Stack) -> None:
    with pytest.raises(StackError, match="nginx cannot be replaced: only app instances"):
        stack.replace(stack.servers[-1])
    first, *others = apps(stack)
    for other in others:
        other.stop()
    with pytest.raises(StackError, match="app 1 cannot be replaced: no other instance"):
        stack.replace(first)
    with pytest.raises(StackError, match="redis is not a server of this stack"), Stack(small("")) as other:
        stack.restart(other.servers[0])
