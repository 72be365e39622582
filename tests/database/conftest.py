"""A real primary with two streaming replicas, and the failures that tests cause."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tenfold.database import DatabaseRouter
from tenfold.settings import Settings, StackSettings
from tenfold.stack import Stack, programs
from tests.support.waiting import eventually

KEY = "0123456789abcdef-0123456789abcdef"


@contextmanager
def own_folder() -> Iterator[None]:
    """Give stacks a temporary folder of their own, so that they do not see others."""
    made = Path(tempfile.mkdtemp(prefix="tenfold-t-", dir="/tmp"))
    made.chmod(0o755)  # the tests may run as root, PostgreSQL does not
    before, tempfile.tempdir = tempfile.tempdir, str(made)
    try:
        yield
    finally:
        tempfile.tempdir = before


class Servers:
    """The database servers of a stack, and the failures that can be caused."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.primary, *self.replicas = (
            next(server for server in stack.servers if server.name == name)
            for name in ("primary", "replica 1", "replica 2")
        )

    @property
    def urls(self) -> tuple[str, list[str]]:
        return self.primary.url, [replica.url for replica in self.replicas]

    def execute(self, server: Any, *statements: str) -> None:
        """Run statements as the superuser."""
        with psycopg.connect(server.admin_url, autocommit=True) as connection:
            for statement in statements:
                connection.execute(statement)

    @contextmanager
    def with_setting(self, server: Any, setting: str, value: str) -> Iterator[None]:
        """Change a setting until the end of the block."""

        def reload(statement: str) -> None:
            former = server.fetch(f"show {setting}")
            self.execute(server, statement, "select pg_reload_conf()")
            eventually(lambda: server.fetch(f"show {setting}") != former)

        reload(f"alter system set {setting} = '{value}'")
        try:
            yield
        finally:
            reload(f"alter system reset {setting}")

    def signal(self, server: Any, number: int) -> None:
        for pid in server.pids():
            os.kill(pid, number)

    def kill(self, server: Any) -> None:
        self.signal(server, signal.SIGKILL)
        eventually(lambda: not server.pids())

    @contextmanager
    def outage(self, *servers: Any) -> Iterator[None]:
        """Kill servers with kill -9; restart them at the end of the block."""
        for server in servers:
            self.kill(server)
        try:
            yield
        finally:
            for server in servers:
                self.stack.restart(server)
            self.wait_for_replicas()

    @contextmanager
    def pause(self, server: Any) -> Iterator[None]:
        self.signal(server, signal.SIGSTOP)
        try:
            yield
        finally:
            self.signal(server, signal.SIGCONT)

    @contextmanager
    def hold_back(self, server: Any, delay_ms: int) -> Iterator[None]:
        """Delay each commit on the replica until the end of the block."""
        self._delay(server, delay_ms)
        try:
            yield
        finally:
            self._delay(server, 0)
            self.wait_for_replicas()

    def _delay(self, server: Any, delay_ms: int) -> None:
        self.execute(
            server, f"alter system set recovery_min_apply_delay = {delay_ms}", "select pg_reload_conf()"
        )
        wanted = {"0": "0"}.get(str(delay_ms), f"{delay_ms}ms" if delay_ms % 1000 else f"{delay_ms // 1000}s")
        eventually(lambda: server.fetch("show recovery_min_apply_delay")[0][0] == wanted)

    def wait_for_replicas(self) -> None:
        position = self.primary.fetch("select pg_current_wal_flush_lsn()")[0][0]
        for replica in self.replicas:
            if replica.pids():
                eventually(
                    lambda replica=replica: replica.fetch(f"select pg_last_wal_replay_lsn() >= '{position}'")[
                        0
                    ][0]
                )


@contextmanager
def start_servers() -> Iterator[Servers]:
    stack = Stack(Settings(stack=StackSettings(redis=False, nginx=False, replicas=2)))
    with own_folder():
        folder = Path(tempfile.gettempdir())
        stack.start()
    try:
        servers = Servers(stack)
        with psycopg.connect(servers.primary.url, autocommit=True) as connection:
            connection.execute("create table counters (id int primary key, value int not null)")
            connection.execute("insert into counters select n, 0 from generate_series(0, 99) n")
        for replica in servers.replicas:  # to a primary that was restarted, in less than the usual 5 s
            servers.execute(
                replica, "alter system set wal_retrieve_retry_interval = '100ms'", "select pg_reload_conf()"
            )
        servers.wait_for_replicas()
        yield servers
    finally:
        stack.stop()
        shutil.rmtree(folder)


@pytest.fixture(scope="package")
def postgresql() -> None:
    """Skip without PostgreSQL; fail in CI."""
    if not programs.find_postgresql(Settings()):
        missing = "PostgreSQL is missing: pip install 'tenfold[stack]'"
        pytest.fail(missing) if os.environ.get("CI") == "true" else pytest.skip(missing)


@pytest.fixture(scope="package")
def servers(postgresql: None) -> Iterator[Servers]:
    """Servers for tests that leave them as they were."""
    with start_servers() as servers:
        yield servers


@pytest.fixture
def disposable_servers(postgresql: None) -> Iterator[Servers]:
    """Servers for tests that end some of them for good."""
    with start_servers() as servers:
        yield servers


@pytest.fixture
def make_router() -> Iterator[Callable[..., DatabaseRouter]]:
    """A factory of routers over ``(primary_url, replica_urls)``, closed afterwards."""
    with ExitStack() as exits:

        def make(urls: tuple[str, list[str]], **options: Any) -> DatabaseRouter:
            router = DatabaseRouter(*urls, **{"keys": KEY, **options})
            exits.callback(router.close)
            return router

        yield make


def in_threads(count: int, work: Callable[[int], Any]) -> list[Any]:
    """Run ``work(n)`` in a thread for each n; raise the first error."""
    results: list[Any] = [None] * count
    errors: list[BaseException] = []

    def run(number: int) -> None:
        try:
            results[number] = work(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(100)
    if errors:
        raise errors[0]
    return results
