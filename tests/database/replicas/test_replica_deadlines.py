"""Deadlines of the router's reads: ended on the server, and not repeated on another one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from unittest import mock

import psycopg
import pytest
from sqlalchemy import text

from tenfold.database import DatabaseRouter, HealthLimits, pool_options
from tenfold.database.pools.pool import PoolDeadlineError
from tenfold.database.pools.statement_timeout import enforce_deadlines
from tenfold.database.replicas.checkout import Checkout
from tenfold.deadlines import deadline
from tenfold.errors import DeadlineExceededError
from tests.database.conftest import Servers
from tests.support.waiting import eventually

MakeRouter = Callable[..., DatabaseRouter]
SLEEP = text("select pg_sleep(5) /* a read that takes long */")
SHOWN = text("show statement_timeout")
BUMP = text("update counters set value = value + 1 where id = 90")


def sleeping(servers: Servers) -> int:
    """The number of backends of all servers that run the test's sleep."""
    query = (
        "select count(*) from pg_stat_activity where state = 'active'"
        " and query like '%a read that takes long%' and pid <> pg_backend_pid()"
    )
    found = 0
    for server in (servers.primary, *servers.replicas):
        with psycopg.connect(server.admin_url) as connection:
            found += connection.execute(query).fetchone()[0]  # type: ignore[index]
    return found


class Reader:
    """Reads through a router, in threads or in tasks."""

    def __init__(self, router: DatabaseRouter, asynchronous: bool) -> None:
        self.router, self.asynchronous = router, asynchronous
        self._loop = asyncio.new_event_loop() if asynchronous else None

    def __call__(self, statement: Any, within_s: float | None = None) -> Any:
        if within_s is None:
            return self._read(statement)
        with deadline(within_s):
            return self._read(statement)

    def _read(self, statement: Any) -> Any:
        if self._loop:
            return self._loop.run_until_complete(self._scalar(statement))
        with self.router.read() as session:
            return session.execute(statement).scalar()

    async def _scalar(self, statement: Any) -> Any:
        async with self.router.read() as session:
            return (await session.execute(statement)).scalar()

    def close(self) -> None:
        if self._loop:
            self._loop.run_until_complete(self.router.aclose())
            self._loop.close()


ENFORCED = pytest.mark.parametrize("monitored", [False, True])
BOTH = pytest.mark.parametrize("asynchronous", [False, True])


@pytest.fixture
def reader(servers: Servers, make_router: MakeRouter) -> Iterator[Callable[..., Reader]]:
    made: list[Reader] = []

    def make(*, asynchronous: bool = False, monitored: bool | None = False) -> Reader:
        """One server, one connection; deadlines by the pool, by enforce_deadlines (False), or none (None)."""
        options: dict[str, Any] = {"pool_size": 1, "max_overflow": 0}
        engine = options if monitored else (lambda _: options)
        router = make_router((servers.primary.url, []), options={"engine": engine})
        if monitored is False:
            router.configure_engines(enforce_deadlines)
        made.append(Reader(router, asynchronous))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.mark.guarantee(
    "so in AUTOCOMMIT, where a router reads; the next reader has all the time again",
    pattern="overload",
    under="`pg_sleep(5)` under 0.2 s, sync and async, by `enforce_deadlines` and by the pool; a "
    "cancellation half way; levels that change",
)
@BOTH
@ENFORCED
def test_deadline_ends_a_read_on_the_server(
    servers: Servers, reader: Callable[..., Reader], asynchronous: bool, monitored: bool
) -> None:
    read = reader(asynchronous=asynchronous, monitored=monitored)
    started = time.monotonic()
    with pytest.raises(DeadlineExceededError, match="PostgreSQL ended a statement"):
        read(SLEEP, 0.2)
    assert time.monotonic() - started < 4
    assert sleeping(servers) == 0
    assert read(SHOWN) == "0"  # the next reader has all the time again
    with pytest.raises(DeadlineExceededError):
        read(SLEEP, 0.2)


@pytest.mark.control("so in AUTOCOMMIT, where a router reads; the next reader has all the time again")
@BOTH
def test_the_control_without_enforced_deadlines_the_read_goes_on(
    servers: Servers, reader: Callable[..., Reader], asynchronous: bool
) -> None:
    read = reader(asynchronous=asynchronous, monitored=None)
    assert read(SHOWN, 0.2) == "0"
    assert read(text("select 1 from pg_sleep(0.3)"), 0.05) == 1  # far beyond the deadline


@pytest.mark.guarantee(
    "a read that its deadline ended is not repeated on another server, and its server not marked lost",
    pattern="overload",
    under="`pg_sleep(5)` under 0.2 s, with two replicas; a question about the position",
    control="the last read of the second of these tests",
)
@BOTH
@ENFORCED
def test_expired_read_is_not_repeated_and_counts_as_no_failure(
    servers: Servers, make_router: MakeRouter, asynchronous: bool, monitored: bool
) -> None:
    router = make_router(servers.urls, options={} if monitored else {"engine": lambda _: {}})
    if not monitored:
        router.configure_engines(enforce_deadlines)
    read = Reader(router, asynchronous)
    before = {server: executed(server) for server in (servers.primary, *servers.replicas)}
    with mock.patch("tenfold.database.replicas.servers.ServerHealth.record_failure") as failed:
        for _ in range(4):
            with pytest.raises(DeadlineExceededError):
                read(SLEEP, 0.5)
    failed.assert_not_called()
    eventually(lambda: sum(executed(server) - count for server, count in before.items()) == 4)
    assert {state["in_flight"] for state in router.servers().values()} == {0}
    read.close()


def executed(server: Any) -> int:
    """The number of statements that a server ended by timeout, according to its log."""
    return sum(
        "canceling statement due to statement timeout" in line
        for line in server.log.read_text(errors="replace").splitlines()
    )


@pytest.mark.guarantee(
    "a read that its deadline ended is not repeated on another server, and its server not marked lost"
)
def test_position_query_that_exceeds_the_deadline_does_not_mark_the_server_lost(
    servers: Servers, make_router: MakeRouter
) -> None:
    router = make_router(servers.urls, health=HealthLimits(sample_s=0))
    router.configure_engines(enforce_deadlines)
    row = "tenfold.database.replicas.checkout.Checkout._fetch_row"
    with router.consistency_context():
        with router.write() as session:
            session.execute(BUMP)
        ended = mock.patch(row, side_effect=psycopg.errors.QueryCanceled)
        with mock.patch("tenfold.database.replicas.servers.ServerHealth.record_failure") as failed, ended:
            with deadline(0), pytest.raises(DeadlineExceededError), router.read() as session:
                session.execute(SHOWN)
            failed.assert_not_called()
            # The control: ended by another cause while there is time. The server is not known to be fine.
            with deadline(60), router.read() as session:
                session.execute(SHOWN)
            failed.assert_called()
    assert {state["in_flight"] for state in router.servers().values()} == {0}


@pytest.mark.guarantee("so in AUTOCOMMIT, where a router reads; the next reader has all the time again")
def test_position_query_does_not_inherit_the_last_readers_timeout(
    reader: Callable[..., Reader],
) -> None:
    read = reader()
    assert read(SHOWN, 0.5) == "563ms"
    checkout = Checkout.acquire(read.router._primary_reads, asynchronous=False)
    try:
        assert checkout._fetch_row("show statement_timeout") == ("0",)  # asked before anything begins
    finally:
        checkout.release()


@pytest.mark.guarantee(
    "a read that its deadline ended is not repeated on another server, and its server not marked lost"
)
def test_deadline_in_a_pool_queue_tries_no_other_server(servers: Servers, make_router: MakeRouter) -> None:
    options = partial(pool_options, metrics=False, pool_size=1, max_overflow=0, timeout_s=20)
    router = make_router(servers.urls, options={"engine": options}, primary_reads=1)
    with router.read() as one, router.read() as other:
        one.execute(SHOWN)
        other.execute(SHOWN)
        with deadline(0.1), pytest.raises(PoolDeadlineError), router.read() as session:
            session.execute(SHOWN)


def test_reports_have_no_timeout_but_the_deadline(servers: Servers, make_router: MakeRouter) -> None:
    router = make_router(servers.urls, options={"engine": lambda _: {}})
    router.configure_engines(enforce_deadlines)
    with router.analytics() as session:
        assert session.scalar(SHOWN) == "0"
    with deadline(5), router.analytics() as session:
        assert session.scalar(SHOWN) == "5624ms"


def test_deadline_ends_a_read_in_a_snapshot(servers: Servers, make_router: MakeRouter) -> None:
    router = make_router(servers.urls, options={"engine": lambda _: {}})
    router.configure_engines(enforce_deadlines)
    late = pytest.raises(DeadlineExceededError)
    with late, deadline(0.2), router.read(isolation="REPEATABLE READ") as session:
        session.execute(SLEEP)
    with router.read(isolation="REPEATABLE READ") as session:
        assert session.scalar(SHOWN) == "0"
    assert eventually(lambda: sleeping(servers) == 0)
