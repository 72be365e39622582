"""Replicas and primaries that are killed, paused and promoted during reads and writes."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import DBAPIError

from tenfold.database import DatabaseRouter
from tenfold.errors import NoReplicaError
from tests.database.conftest import Servers
from tests.database.support.readers import LOOK, Readers
from tests.support.waiting import eventually

MakeRouter = Callable[..., DatabaseRouter]

BUMP = text("update counters set value = value + 1 where id = :id returning value")


@pytest.mark.guarantee(
    "no read fails where a healthy server remains",
    pattern="replicas",
    under="kill -9 of a replica, of all, of the primary",
)
def test_no_read_fails_when_replicas_are_killed(servers: Servers, make_router: MakeRouter) -> None:
    one, two = servers.replicas
    with Readers(make_router(servers.urls)).reading() as readers:
        with servers.outage(one):
            assert one.port not in readers.more()
            with servers.outage(two):
                assert readers.more() == {servers.primary.port}
        for replica in servers.replicas:  # they come back by themselves
            eventually(lambda replica=replica: replica.port in readers.more(20))
    assert readers.errors == []


@pytest.mark.guarantee("no read fails where a healthy server remains")
def test_no_async_read_fails_when_a_replica_is_killed(servers: Servers, make_router: MakeRouter) -> None:
    router = make_router(servers.urls)
    one = servers.replicas[0]

    async def read(stop: asyncio.Event) -> int:
        answered = 0
        with router.consistency_context():
            while not stop.is_set():
                async with router.read() as session:
                    (await session.execute(LOOK, {"id": 0})).one()
                answered += 1
        return answered

    def kill_and_restart() -> None:
        with servers.outage(one):
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


@pytest.mark.control("no read fails where a healthy server remains")
def test_the_control_a_plain_engine_fails_when_its_replica_is_killed(servers: Servers) -> None:
    one = servers.replicas[0]
    engine = create_engine(one.url.replace("postgresql:", "postgresql+psycopg:"))
    with engine.connect() as connection:
        connection.execute(LOOK, {"id": 0})
        with servers.outage(one), pytest.raises(DBAPIError):
            connection.execute(LOOK, {"id": 0})
    engine.dispose()


@pytest.mark.guarantee("no read fails where a healthy server remains")
def test_no_read_fails_when_the_primary_is_killed(servers: Servers, make_router: MakeRouter) -> None:
    router = make_router(servers.urls)
    with router.write() as session:
        session.execute(BUMP, {"id": 0})
    servers.wait_for_replicas()
    with Readers(router).reading() as readers, servers.outage(servers.primary):
        assert readers.more() <= {replica.port for replica in servers.replicas}
        with pytest.raises(DBAPIError), router.write() as session:
            session.execute(BUMP, {"id": 0})
    assert readers.errors == []


@pytest.mark.guarantee(
    "a read that could only be stale is refused",
    pattern="replicas",
    under="the primary dead, replicas behind",
    control="the same test, a visitor who wrote nothing",
)
def test_read_that_only_the_dead_primary_could_serve_is_refused(
    servers: Servers, make_router: MakeRouter
) -> None:
    router = make_router(servers.urls)

    def resume() -> None:
        for replica in servers.replicas:
            servers.execute(replica, "select pg_wal_replay_resume()")

    for replica in servers.replicas:
        servers.execute(replica, "select pg_wal_replay_pause()")
    try:
        with router.consistency_context():
            with router.write() as session:
                written = session.execute(BUMP, {"id": 1}).scalar()
            token = router.token()
        with servers.outage(servers.primary):
            with router.consistency_context(token), pytest.raises(NoReplicaError), router.read() as session:
                session.execute(LOOK, {"id": 1})
            with router.consistency_context(), router.read() as session:  # a visitor who wrote nothing
                assert session.execute(LOOK, {"id": 1}).scalar() == written - 1
            resume()
    finally:
        resume()


def writes_around_kills(servers: Servers, router: DatabaseRouter, *, kills: int) -> tuple[int, int]:
    """The numbers of writes acknowledged while the primary was killed and restarted, and of those kept."""
    before_all = servers.primary.fetch("select value from counters where id = 2")[0][0]
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

    def more() -> None:
        before = acknowledged
        eventually(lambda: acknowledged > before + 20)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(kills):
            more()
            with servers.outage(servers.primary):
                pass
        more()
    finally:
        done.set()
        writer.join()
    return acknowledged, servers.primary.fetch("select value from counters where id = 2")[0][0] - before_all


@pytest.mark.guarantee(
    "an acknowledged write survives the primary's restart", pattern="replicas", under="kill -9 of the primary"
)
def test_no_acknowledged_write_is_lost_when_the_primary_restarts(
    servers: Servers, make_router: MakeRouter
) -> None:
    acknowledged, there = writes_around_kills(servers, make_router(servers.urls), kills=2)
    assert acknowledged <= there <= acknowledged + 2  # a commit whose answer was lost, at each kill


@pytest.mark.control("an acknowledged write survives the primary's restart")
def test_the_control_asynchronous_commit_loses_acknowledged_writes(
    servers: Servers, make_router: MakeRouter
) -> None:
    relaxed = {"engine": {"connect_args": {"options": "-c synchronous_commit=off"}}}
    # By default the log is written within 0.6 s of such a commit; so the kill comes before, for sure.
    with servers.with_setting(servers.primary, "wal_writer_delay", "10s"):
        acknowledged, there = writes_around_kills(
            servers, make_router(servers.urls, options=relaxed), kills=1
        )
    assert there < acknowledged


def several_hosts(servers: Servers) -> str:
    """A URL of two hosts, the primary and the first replica."""
    one = servers.primary
    return one.url.replace(one.address, f"{one.address},{servers.replicas[0].address}")


@pytest.mark.guarantee(
    "after a promotion writes go on; with `synchronous_commit = remote_apply` nothing acknowledged is lost",
    pattern="replicas",
    under="the primary killed, a replica promoted",
)
def test_promotion_keeps_writes_that_a_replica_had_to_apply(
    disposable_servers: Servers, make_router: MakeRouter
) -> None:
    one, two = disposable_servers.replicas
    router = make_router((several_hosts(disposable_servers), [one.url, two.url]))
    disposable_servers.execute(
        disposable_servers.primary,
        "alter system set synchronous_standby_names = 'replica_1'",
        "alter system set synchronous_commit = 'remote_apply'",
        "select pg_reload_conf()",
    )
    eventually(lambda: disposable_servers.primary.fetch("show synchronous_standby_names")[0][0])
    with router.consistency_context():
        for _ in range(20):
            with router.write() as session:
                session.execute(BUMP, {"id": 0})
        old = router.token()
    with router.read() as session:
        session.execute(LOOK, {"id": 0})

    disposable_servers.kill(disposable_servers.primary)
    disposable_servers.execute(one, "select pg_promote()")
    follow = one.admin_url.replace("postgresql://", "").split("@")[0].split(":")
    disposable_servers.execute(
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
        """Read with the old timeline's token until it has been replaced."""
        with router.consistency_context(old) as seen:
            with router.read() as session:
                assert session.execute(LOOK, {"id": 0}).scalar() >= 20
            return seen.token.timeline == 2

    eventually(renewed)

    def served_by_the_follower() -> bool:
        with router.consistency_context():
            with router.write() as session:
                written = session.execute(BUMP, {"id": 0}).scalar()
            with router.read() as session:
                value, port = session.execute(LOOK, {"id": 0}).one()
        assert value == written
        return port == two.port

    eventually(served_by_the_follower)


@pytest.mark.control(
    "after a promotion writes go on; with `synchronous_commit = remote_apply` nothing acknowledged is lost",
    "asynchronous, and a write is lost",
)
@pytest.mark.guarantee(
    "a replica of another timeline serves no visitor who wrote on this one",
    pattern="replicas",
    under="a promotion that a replica did not follow",
    control="the same test: its position is the greater one",
)
def test_replica_on_the_old_timeline_serves_no_writer_of_the_new(
    disposable_servers: Servers, make_router: MakeRouter
) -> None:
    """It replayed more of the old log than the promoted one had: its position is greater, its data older."""
    one, two = disposable_servers.replicas
    router = make_router((several_hosts(disposable_servers), [two.url]))
    disposable_servers.execute(one, "alter system set primary_conninfo = ''", "select pg_reload_conf()")
    eventually(lambda: one.fetch("select count(*) from pg_stat_wal_receiver")[0][0] == 0)
    with router.write() as session:  # only the other one gets this
        session.execute(text("create table ballast as select n from generate_series(1, 100000) n"))
    eventually(lambda: two.fetch("select to_regclass('ballast') is not null")[0][0])
    disposable_servers.kill(disposable_servers.primary)
    disposable_servers.execute(one, "select pg_promote()")
    eventually(lambda: not one.fetch("select pg_is_in_recovery()")[0][0])
    with router.consistency_context():
        with router.write() as session:
            session.execute(BUMP, {"id": 0})
        further = two.fetch("select pg_last_wal_replay_lsn()")[0][0]
        assert one.fetch(f"select pg_current_wal_lsn() < '{further}'")[0][0]
        with router.read() as session:
            assert session.execute(LOOK, {"id": 0}).one() == (1, one.port)
            # What an asynchronous replica had not received is lost with its primary, acknowledged or not.
            assert session.execute(text("select to_regclass('ballast')")).scalar() is None
