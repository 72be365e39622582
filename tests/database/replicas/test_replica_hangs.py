"""Hung replicas, replay conflicts and cancelled reads."""

from __future__ import annotations

import asyncio
import random
import threading
import time
import types
from collections.abc import Callable, Coroutine, Generator, Iterator
from typing import Any

import pytest
from sqlalchemy import TextClause, create_engine, event, text
from sqlalchemy.exc import DBAPIError

from tenfold.database import DatabaseRouter, HealthLimits, pool_options
from tenfold.database.drivers import sqlstate
from tenfold.database.replicas import read_routing
from tenfold.database.replicas.checkout import Checkout
from tenfold.database.replicas.servers import DatabaseServer
from tests.database.conftest import Servers
from tests.database.support.readers import LOOK, Readers
from tests.support.tcp_proxy import Proxy
from tests.support.waiting import eventually

MakeRouter = Callable[..., DatabaseRouter]

BUMP = text("update counters set value = value + 1 where id = :id returning value")
SAMPLED, UNSAMPLED = HealthLimits(sample_s=0.05, hang_s=0.6), HealthLimits(sample_s=0)


@pytest.fixture
def line(servers: Servers) -> Iterator[Proxy]:
    """A proxy in front of the first replica."""
    made = Proxy(servers.replicas[0].port)
    yield made
    made.close()


def over(line: Proxy, servers: Servers) -> tuple[str, list[str]]:
    one, two = servers.replicas
    return servers.primary.url, [one.url.replace(str(one.port), str(line.port)), two.url]


@pytest.mark.guarantee(
    "no read fails when a replica hangs", pattern="replicas", under="SIGSTOP of a replica, a line that stalls"
)
def test_no_read_fails_when_a_replica_hangs(servers: Servers, make_router: MakeRouter) -> None:
    router = make_router(servers.urls, health=SAMPLED)
    hung = servers.replicas[0]
    with Readers(router).reading() as readers:
        with servers.pause(hung):
            assert readers.left_waiting(within_s=20) == 0
            eventually(lambda: not router.servers()[f"127.0.0.1:{hung.port}/app"]["serving"])
            readers.more(20)
            assert hung.port not in readers.more()
        eventually(lambda: hung.port in readers.more(20))  # it comes back by itself
    assert readers.errors == []


@pytest.mark.guarantee("no read fails when a replica hangs")
def test_no_read_fails_when_the_line_to_a_replica_stalls(
    servers: Servers, make_router: MakeRouter, line: Proxy
) -> None:
    one = servers.replicas[0]
    router = make_router(over(line, servers), health=SAMPLED)
    with Readers(router).reading() as readers:
        eventually(lambda: one.port in readers.more(20))
        with line.stalled():
            assert readers.left_waiting(within_s=20) == 0
            eventually(lambda: not router.servers()[f"127.0.0.1:{line.port}/app"]["serving"])
            readers.more(20)
            assert one.port not in readers.more()
        eventually(lambda: one.port in readers.more(20))
    assert readers.errors == []


@pytest.mark.guarantee("no read fails when a replica hangs")
@pytest.mark.parametrize(
    "pool",
    [
        pytest.param({}, id="its connections have yet to be opened"),
        pytest.param({"pool_size": 1, "max_overflow": 0}, id="and readers queue for them"),
    ],
)
def test_read_that_opens_a_connection_to_a_replica_that_hangs_goes_elsewhere(
    servers: Servers, make_router: MakeRouter, pool: dict[str, int]
) -> None:
    hung = servers.replicas[0]
    options = {"engine": lambda url: pool_options(url, metrics=False, **pool)}  # 10 s for opening one
    router = make_router(servers.urls, health=HealthLimits(), choice="round-robin", options=options)
    with Readers(router, count=20).reading() as readers:
        eventually(lambda: hung.port in readers.more(20))
        with servers.pause(hung):
            for engine in router._replicas[0]._engines.values():
                engine.dispose()
            assert readers.left_waiting(within_s=10) == 0
    assert readers.errors == []


def left_in_queue(servers: Servers, make_router: MakeRouter, *, within_s: float) -> int:
    """Send reads at once while a replica hangs that takes one connection; count those without answer."""
    options = {"engine": lambda url: pool_options(url, metrics=False, pool_size=1, max_overflow=0)}
    router = make_router(servers.urls, health=SAMPLED, choice="round-robin", options=options)

    def read() -> None:
        with router.read() as session:
            session.execute(LOOK, {"id": 1})

    threads = [threading.Thread(target=read) for _ in range(12)]
    with servers.pause(servers.replicas[0]):
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + within_s
        for thread in threads:
            thread.join(max(deadline - time.monotonic(), 0.0))
        waiting = sum(thread.is_alive() for thread in threads)
    for thread in threads:
        thread.join()
    return waiting


@pytest.mark.guarantee("no read fails when a replica hangs")
def test_reads_that_queue_for_a_replica_that_hangs_wait_for_one_attempt(
    servers: Servers, make_router: MakeRouter
) -> None:
    assert left_in_queue(servers, make_router, within_s=4.5) == 0


@pytest.mark.control("no read fails when a replica hangs", "readers in a queue try the hung server in turn")
def test_the_control_readers_in_a_queue_wait_for_each_other(
    servers: Servers, make_router: MakeRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DatabaseServer, "_refuse_to_connect", lambda *_: None)
    assert left_in_queue(servers, make_router, within_s=4.5) > 0


def test_replica_gets_two_seconds_for_a_connection_and_its_own_url_wins(
    servers: Servers, make_router: MakeRouter
) -> None:
    options = {"engine": lambda url: pool_options(url, metrics=False)}
    seen: dict[int, float] = {}

    def note(engine: Any) -> None:
        @event.listens_for(engine, "do_connect")
        def connect(dialect: Any, record: Any, args: Any, kwargs: dict[str, Any]) -> None:
            seen[int(kwargs["port"])] = float(kwargs["connect_timeout"])

    primary, replicas = servers.urls
    one, two = replicas
    router = make_router((primary, [one, f"{two}?connect_timeout=7"]), choice="round-robin", options=options)
    router.configure_engines(note)
    for _ in range(4):
        with router.read() as session:
            session.execute(text("select 1"))
    with router.write() as session:
        session.execute(text("select 1"))
    ports = [servers.replicas[0].port, servers.replicas[1].port, servers.primary.port]
    assert [seen[port] for port in ports] == [2, 7, 10]


@pytest.mark.control("no read fails when a replica hangs")
def test_the_control_without_samples_readers_hang_with_their_replica(
    servers: Servers, make_router: MakeRouter
) -> None:
    router = make_router(servers.urls, health=UNSAMPLED, choice="round-robin")
    with Readers(router).reading() as readers, servers.pause(servers.replicas[0]):
        assert readers.left_waiting(within_s=2) > 0


@pytest.mark.control("no read fails when a replica hangs")
def test_the_control_without_samples_readers_hang_with_the_line(
    servers: Servers, make_router: MakeRouter, line: Proxy
) -> None:
    router = make_router(over(line, servers), health=UNSAMPLED, choice="round-robin")
    with Readers(router).reading() as readers, line.stalled():
        assert readers.left_waiting(within_s=2) > 0


# ------------------------------------------------------------------ in the way of replay


def in_the_way(servers: Servers, read: Callable[[TextClause], Any]) -> Any:
    """The result or the error of a read that the first replica has to cancel.

    A standby ends statements that stand in the way of replay: here a lock, after no grace at all.
    """
    one = servers.replicas[0]
    servers.execute(servers.primary, "drop table if exists shown", "create table shown as select 1 as n")
    servers.execute(servers.primary, "grant all on shown to public")
    servers.wait_for_replicas()
    sleep = f"pg_sleep(case inet_server_port() when {one.port} then 30 else 0 end)"
    found: list[Any] = []

    def reading() -> None:
        try:
            found.append(read(text(f"select inet_server_port(), {sleep}, n from shown")))
        except DBAPIError as error:
            found.append(error)

    reader = threading.Thread(target=reading)
    with servers.with_setting(one, "max_standby_streaming_delay", "0"):
        reader.start()
        eventually(lambda: one.fetch("select 1 from pg_stat_activity where wait_event = 'PgSleep'"))
        servers.execute(servers.primary, "alter table shown add column m int")
        reader.join(20)
    return found[0]


@pytest.mark.guarantee(
    "no read fails when a replica cancels it for the sake of replay",
    pattern="replicas",
    under="a standby that cancels a read in the way of replay",
)
def test_read_cancelled_by_a_replay_conflict_runs_again_elsewhere(
    servers: Servers, make_router: MakeRouter
) -> None:
    router = make_router(servers.urls, choice="round-robin")

    def read(statement: TextClause) -> Any:
        with router.read() as session:
            return session.execute(statement).scalar()

    assert in_the_way(servers, read) == servers.replicas[1].port


@pytest.mark.control("no read fails when a replica cancels it for the sake of replay")
def test_the_control_plain_engine_fails_on_a_replay_conflict(servers: Servers) -> None:
    engine = create_engine(servers.replicas[0].url.replace("postgresql:", "postgresql+psycopg:"))

    def read(statement: TextClause) -> Any:
        with engine.connect() as connection:
            return connection.execute(statement).scalar()

    failed = in_the_way(servers, read)
    engine.dispose()
    assert isinstance(failed, DBAPIError)
    assert sqlstate(failed.orig) == "40001"


# ------------------------------------------------------------------ giving up


@types.coroutine
def given_up(work: Coroutine[Any, Any, None], at: int) -> Generator[Any, Any, bool]:
    """Cancel a task when it waits for the ``at``-th time; return whether it got that far."""
    waits = 0
    try:
        awaited = work.send(None)
        while True:
            waits += 1
            if waits == at and (task := asyncio.current_task()):
                task.cancel()
            try:
                answer = yield awaited
            except BaseException as error:
                awaited = work.throw(error)
            else:
                awaited = work.send(answer)
    except StopIteration:
        return waits >= at


async def left_behind(router: DatabaseRouter) -> set[tuple[int, int]]:
    """Reads in flight and checked-out connections after cancellations; {(0, 0)} when none leaked.

    First at each moment that there is: while connecting, asking, waiting for a replica, reading, committing.
    Then by chance, and more of them than a pool has connections for.
    """
    every = [router._primary, router._primary_reads, *router._replicas]

    def counted() -> set[tuple[int, int]]:
        engines = [(server, engine) for server in every for engine in list(server._engines.values())]
        return {(server.load.in_flight, engine.pool.checkedout()) for server, engine in engines}

    async def one(row: int, at: int) -> bool:
        return await given_up(visit(router, row), at)

    at, got_there = 0, True
    while got_there and counted() <= {(0, 0)}:
        at += 1
        tasks = [asyncio.create_task(one(20 + n, at)) for n in range(3)]
        await asyncio.wait(tasks)
        got_there = any(task.cancelled() or task.result() for task in tasks)
    chance = random.Random(7)
    for _ in range(40):
        if not counted() <= {(0, 0)}:
            break
        tasks = [asyncio.create_task(visit(router, 20 + n)) for n in range(6)]
        await asyncio.sleep(chance.random() * 0.02)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return counted()


async def visit(router: DatabaseRouter, row: int) -> None:
    with router.consistency_context():
        async with router.write() as session:
            await session.execute(BUMP, {"id": row})
        async with router.read() as session:
            await session.execute(LOOK, {"id": row})


def narrow(servers: Servers, make_router: MakeRouter) -> DatabaseRouter:
    return make_router(servers.urls, primary_reads=3, options={"engine": {"pool_size": 3, "max_overflow": 0}})


@pytest.mark.guarantee(
    "cancelled reads leak no connection", pattern="replicas", under="cancellation at any moment"
)
def test_cancelled_reads_leak_no_connection(servers: Servers, make_router: MakeRouter) -> None:
    router = narrow(servers, make_router)

    async def scenario() -> set[tuple[int, int]]:
        found = await left_behind(router)
        await asyncio.gather(*(visit(router, 20 + n) for n in range(6)))  # and it goes on
        await router.aclose()
        return found

    with servers.hold_back(servers.replicas[0], 10):
        assert asyncio.run(scenario()) == {(0, 0)}


@pytest.mark.control("cancelled reads leak no connection")
def test_the_control_routing_that_ignores_cancellation_leaks(
    servers: Servers, make_router: MakeRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read_routing, "_freshness", Checkout.freshness_for)
    router = narrow(servers, make_router)

    async def scenario() -> set[tuple[int, int]]:
        found = await left_behind(router)
        await router.aclose()
        return found

    with servers.hold_back(servers.replicas[0], 10):
        assert asyncio.run(scenario()) != {(0, 0)}
