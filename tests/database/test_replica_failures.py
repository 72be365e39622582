"""Replicas and primaries that are killed, paused and promoted while somebody reads and writes."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import DBAPIError

from tenfold.database import DatabaseRouter, HealthLimits
from tenfold.errors import NoReplicaError
from tests.database.conftest import Servers, eventually
from tests.database.proxy import Proxy

Route = Callable[..., DatabaseRouter]

BUMP = text("update counters set value = value + 1 where id = :id returning value")
LOOK = text("select value, inet_server_port() from counters where id = :id")


class Readers:
    """Visitors who read without pause, each remembering what they saw."""

    def __init__(self, router: DatabaseRouter, count: int = 3) -> None:
        self.router = router
        self.errors: list[Exception] = []
        self.answered = 0
        self.ports: set[int] = set()
        self._done = threading.Event()
        self._threads = [threading.Thread(target=self._read, args=(n,)) for n in range(count)]

    def _read(self, row: int) -> None:
        token = None
        while not self._done.is_set():
            try:
                with self.router.seen(token):
                    with self.router.read() as session:
                        self.ports.add(session.execute(LOOK, {"id": row}).one()[1])
                    token = self.router.token()
                self.answered += 1
            except Exception as error:
                self.errors.append(error)

    @contextmanager
    def reading(self) -> Iterator[Readers]:
        for thread in self._threads:
            thread.start()
        try:
            self.more(50)
            yield self
        finally:
            self._done.set()
            for thread in self._threads:
                thread.join(30)

    def more(self, count: int = 100) -> set[int]:
        """Await so many answers more; the ports that gave them, the ones under way before excluded."""
        before = self.answered
        eventually(lambda: self.answered > before + len(self._threads))
        self.ports = set()
        eventually(lambda: self.answered > before + count)
        return self.ports


def test_no_read_fails_when_replicas_are_killed(servers: Servers, route: Route) -> None:
    one, two = servers.replicas
    with Readers(route(servers.urls)).reading() as readers:
        with servers.killed(one):
            assert one.port not in readers.more()
            with servers.killed(two):
                assert readers.more() == {servers.primary.port}
        for replica in servers.replicas:  # they come back by themselves
            eventually(lambda replica=replica: replica.port in readers.more(20))
    assert readers.errors == []


def test_no_read_in_asyncio_fails_either(servers: Servers, route: Route) -> None:
    router = route(servers.urls)
    one = servers.replicas[0]

    async def read(stop: asyncio.Event) -> int:
        answered = 0
        with router.seen():
            while not stop.is_set():
                async with router.read() as session:
                    (await session.execute(LOOK, {"id": 0})).one()
                answered += 1
        return answered

    def kill_and_restart() -> None:
        with servers.killed(one):
            time.sleep(0.05)

    async def scenario() -> list[int]:
        stop = asyncio.Event()
        readers = [asyncio.create_task(read(stop)) for _ in range(3)]
        await asyncio.to_thread(kill_and_restart)
        stop.set()
        answered = await asyncio.gather(*readers)
        await router.aclose()
        return answered

    assert min(asyncio.run(scenario())) > 10


def test_the_control_a_plain_engine_fails_when_its_replica_is_killed(servers: Servers) -> None:
    one = servers.replicas[0]
    engine = create_engine(one.url.replace("postgresql:", "postgresql+psycopg:"))
    with engine.connect() as connection:
        connection.execute(LOOK, {"id": 0})
        with servers.killed(one), pytest.raises(DBAPIError):
            connection.execute(LOOK, {"id": 0})
    engine.dispose()


def test_no_read_fails_when_the_primary_is_killed(servers: Servers, route: Route) -> None:
    router = route(servers.urls)
    with router.write() as session:
        session.execute(BUMP, {"id": 0})
    servers.caught_up()
    with Readers(router).reading() as readers, servers.killed(servers.primary):
        assert readers.more() <= {replica.port for replica in servers.replicas}
        with pytest.raises(DBAPIError), router.write() as session:
            session.execute(BUMP, {"id": 0})
    assert readers.errors == []


def test_a_read_that_only_the_dead_primary_could_answer_is_refused(servers: Servers, route: Route) -> None:
    router = route(servers.urls)

    def resume() -> None:
        for replica in servers.replicas:
            servers.tell(replica, "select pg_wal_replay_resume()")

    for replica in servers.replicas:
        servers.tell(replica, "select pg_wal_replay_pause()")
    try:
        with router.seen():
            with router.write() as session:
                written = session.execute(BUMP, {"id": 1}).scalar()
            token = router.token()
        with servers.killed(servers.primary):
            with router.seen(token), pytest.raises(NoReplicaError), router.read() as session:
                session.execute(LOOK, {"id": 1})
            with router.seen(), router.read() as session:  # a visitor who wrote nothing
                assert session.execute(LOOK, {"id": 1}).scalar() == written - 1
            resume()
    finally:
        resume()


def test_no_read_fails_when_a_replica_hangs(servers: Servers, route: Route) -> None:
    router = route(servers.urls, health=HealthLimits(sample_s=0.05, hang_s=0.6))
    hung = servers.replicas[0]
    with Readers(router).reading() as readers:
        with servers.paused(hung):
            eventually(lambda: not router.servers()[f"127.0.0.1:{hung.port}/app"]["serving"])
            readers.more(20)
            assert hung.port not in readers.more()
        eventually(lambda: hung.port in readers.more(20))  # it comes back by itself
    assert readers.errors == []


def test_no_read_fails_when_the_line_to_a_replica_stalls(servers: Servers, route: Route) -> None:
    one, two = servers.replicas
    proxy = Proxy(one.port)
    stalled = one.url.replace(str(one.port), str(proxy.port))
    router = route((servers.primary.url, [stalled, two.url]), health=HealthLimits(sample_s=0.05, hang_s=0.6))
    try:
        with Readers(router).reading() as readers:
            eventually(lambda: one.port in readers.more(20))
            proxy.flows.clear()
            eventually(lambda: not router.servers()[f"127.0.0.1:{proxy.port}/app"]["serving"])
            readers.more(20)
            assert one.port not in readers.more()
            proxy.flows.set()
            eventually(lambda: one.port in readers.more(20))
        assert readers.errors == []
    finally:
        proxy.close()


def test_who_gives_up_leaves_no_connection_behind(servers: Servers, route: Route) -> None:
    """Cancelled at any moment: while connecting, asking, waiting for a replica, reading or committing."""
    router = route(servers.urls, primary_reads=3, options={"engine": {"pool_size": 3, "max_overflow": 0}})
    chance = random.Random(7)

    async def visit(row: int) -> None:
        with router.seen():
            async with router.write() as session:
                await session.execute(BUMP, {"id": row})
            async with router.read() as session:
                await session.execute(LOOK, {"id": row})

    async def scenario() -> list[tuple[int, int]]:
        for _ in range(40):
            tasks = [asyncio.create_task(visit(20 + n)) for n in range(6)]
            await asyncio.sleep(chance.random() * 0.02)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        every = [router._primary, router._primary_reads, *router._replicas]
        found = [
            (server.load.in_flight, engine.pool.checkedout())
            for server in every
            for engine in server.engines()
        ]
        await asyncio.gather(*(visit(20 + n) for n in range(6)))  # and it goes on
        await router.aclose()
        return found

    with servers.held_back(servers.replicas[0], 10):
        assert set(asyncio.run(scenario())) == {(0, 0)}


def test_a_read_that_a_replica_had_to_cancel_runs_again_elsewhere(servers: Servers, route: Route) -> None:
    """A standby ends statements that stand in the way of replay: here a lock, after no grace at all."""
    one, two = servers.replicas
    servers.tell(servers.primary, "drop table if exists shown", "create table shown as select 1 as n")
    servers.tell(servers.primary, "grant all on shown to public")
    servers.caught_up()
    delay = "alter system set max_standby_streaming_delay = '{}'"
    servers.tell(one, delay.format("0"), "select pg_reload_conf()")
    eventually(lambda: one.ask("show max_standby_streaming_delay") == [("0",)])
    router = route(servers.urls, choice="round-robin")
    found: list[int] = []

    def read() -> None:
        with router.read() as session:
            slow = text("select inet_server_port(), pg_sleep(0.3), n from shown")
            found.append(session.execute(slow).scalar())

    reader = threading.Thread(target=read)
    try:
        reader.start()
        eventually(lambda: one.ask("select 1 from pg_stat_activity where wait_event = 'PgSleep'"))
        servers.tell(servers.primary, "alter table shown add column m int")
        reader.join(20)
    finally:
        servers.tell(one, delay.format("30s"), "select pg_reload_conf()")
    assert found == [two.port]


def test_no_acknowledged_write_is_lost_when_the_primary_restarts(servers: Servers, route: Route) -> None:
    router = route(servers.urls)
    before_all = servers.primary.ask("select value from counters where id = 2")[0][0]
    acknowledged, done = 0, threading.Event()

    def write() -> None:
        nonlocal acknowledged
        while not done.is_set():
            try:
                with router.write() as session:
                    session.execute(BUMP, {"id": 2})
                acknowledged += 1
            except Exception:
                time.sleep(0.01)  # it is down: nothing was promised

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(2):
            before = acknowledged
            eventually(lambda before=before: acknowledged > before + 20)
            with servers.killed(servers.primary):
                pass
        before = acknowledged
        eventually(lambda: acknowledged > before + 20)
    finally:
        done.set()
        writer.join()
    counted = servers.primary.ask("select value from counters where id = 2")[0][0] - before_all
    assert acknowledged <= counted <= acknowledged + 2  # a commit whose answer was lost, at each kill


def several_hosts(servers: Servers) -> str:
    """A URL for whichever of the primary and the first replica takes writes."""
    one = servers.primary
    return one.url.replace(one.address, f"{one.address},{servers.replicas[0].address}")


def test_after_a_promotion_writes_go_on_and_nothing_is_lost_that_a_replica_had_to_apply(
    doomed: Servers, route: Route
) -> None:
    one, two = doomed.replicas
    router = route((several_hosts(doomed), [one.url, two.url]))
    doomed.tell(
        doomed.primary,
        "alter system set synchronous_standby_names = 'replica_1'",
        "alter system set synchronous_commit = 'remote_apply'",
        "select pg_reload_conf()",
    )
    eventually(lambda: doomed.primary.ask("show synchronous_standby_names")[0][0])
    with router.seen():
        for _ in range(20):
            with router.write() as session:
                session.execute(BUMP, {"id": 0})
        old = router.token()
    with router.read() as session:
        session.execute(LOOK, {"id": 0})

    doomed.kill(doomed.primary)
    doomed.tell(one, "select pg_promote()")
    follow = one.admin_url.replace("postgresql://", "").split("@")[0].split(":")
    doomed.tell(
        two,
        "alter system set primary_slot_name = ''",
        f"alter system set primary_conninfo = 'host=127.0.0.1 port={one.port} user={follow[0]} "
        f"password={follow[1]} application_name=replica_2'",
        "select pg_reload_conf()",
    )

    def writes() -> bool:
        try:
            with router.write() as session:
                session.execute(BUMP, {"id": 0})
            return True
        except Exception:
            return False

    eventually(writes)

    def renewed() -> bool:
        """The old timeline's token: a server that is still there may answer, then the new primary does."""
        with router.seen(old) as seen:
            with router.read() as session:
                assert session.execute(LOOK, {"id": 0}).scalar() >= 20
            return seen.token.timeline == 2

    eventually(renewed)

    def served_by_the_follower() -> bool:
        with router.seen():
            with router.write() as session:
                written = session.execute(BUMP, {"id": 0}).scalar()
            with router.read() as session:
                value, port = session.execute(LOOK, {"id": 0}).one()
        assert value == written
        return port == two.port

    eventually(served_by_the_follower)


def test_a_replica_left_on_the_old_timeline_serves_nobody_who_wrote_on_the_new(
    doomed: Servers, route: Route
) -> None:
    """It replayed more of the old log than the promoted one had: its position is greater, its data older."""
    one, two = doomed.replicas
    router = route((several_hosts(doomed), [two.url]))
    doomed.tell(one, "alter system set primary_conninfo = ''", "select pg_reload_conf()")
    eventually(lambda: one.ask("select count(*) from pg_stat_wal_receiver")[0][0] == 0)
    with router.write() as session:  # only the other one gets this
        session.execute(text("create table ballast as select n from generate_series(1, 100000) n"))
    eventually(lambda: two.ask("select to_regclass('ballast') is not null")[0][0])
    doomed.kill(doomed.primary)
    doomed.tell(one, "select pg_promote()")
    eventually(lambda: not one.ask("select pg_is_in_recovery()")[0][0])
    with router.seen():
        with router.write() as session:
            session.execute(BUMP, {"id": 0})
        further = two.ask("select pg_last_wal_replay_lsn()")[0][0]
        assert one.ask(f"select pg_current_wal_lsn() < '{further}'")[0][0]
        with router.read() as session:
            assert session.execute(LOOK, {"id": 0}).one() == (1, one.port)
            # What an asynchronous replica had not received is lost with its primary, acknowledged or not.
            assert session.execute(text("select to_regclass('ballast')")).scalar() is None
