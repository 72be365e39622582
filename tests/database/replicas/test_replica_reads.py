"""Read your writes and monotonic reads, on a real primary with two replicas of which one is held back."""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import text

from tenfold.database import DatabaseRouter, FreshnessLimits, HealthLimits
from tenfold.database.replicas.checkout import Checkout
from tenfold.database.replicas.sessions import ReadSession
from tenfold.positions import format_position
from tests.database.conftest import Servers, in_threads
from tests.support.waiting import eventually

MakeRouter = Callable[..., DatabaseRouter]

BUMP = text("update counters set value = value + 1 where id = :id returning value")
LOOK = text("select value, inet_server_port() from counters where id = :id")


def pairs(writer: DatabaseRouter, reader: DatabaseRouter, *, row: int, count: int, carry: bool) -> Counter:
    """Write through one instance, read through another, as a visitor's two requests would.

    Returns how many reads were stale, and how many each server answered, by port.
    """
    found: Counter = Counter()
    for _ in range(count):
        with writer.consistency_context():
            with writer.write() as session:
                written = session.execute(BUMP, {"id": row}).scalar()
            token = writer.token()
        with reader.consistency_context(token if carry else None), reader.read() as session:
            value, port = session.execute(LOOK, {"id": row}).one()
        found[port] += 1
        found["stale"] += value < written
    return found


def soak(servers: Servers, make_router: MakeRouter, *, workers: int, count: int, carry: bool) -> Counter:
    routers = [make_router(servers.urls), make_router(servers.urls)]

    def work(number: int) -> Counter:
        writer, reader = routers[number % 2], routers[(number + 1) % 2]
        return pairs(writer, reader, row=number, count=count, carry=carry)

    return sum(in_threads(workers, work), Counter())


@pytest.mark.guarantee(
    "visitors read their own writes, over instances and requests",
    pattern="replicas",
    under="a replica held back",
)
def test_visitors_read_their_own_writes(servers: Servers, make_router: MakeRouter) -> None:
    with servers.hold_back(servers.replicas[0], 500):
        found = soak(servers, make_router, workers=4, count=100, carry=True)
    assert found["stale"] == 0
    assert found.total() == 400
    assert found[servers.replicas[1].port] > 200  # replicas serve, and not the primary for the fear of it


@pytest.mark.control("visitors read their own writes, over instances and requests")
def test_the_control_without_the_token_reads_are_stale(servers: Servers, make_router: MakeRouter) -> None:
    with servers.hold_back(servers.replicas[0], 500):
        found = soak(servers, make_router, workers=4, count=40, carry=False)
    assert found["stale"] > 0


@pytest.mark.guarantee("visitors read their own writes, over instances and requests")
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_hundred_thousand_visitors_read_their_own_writes(servers: Servers, make_router: MakeRouter) -> None:
    with servers.hold_back(servers.replicas[0], 2000):
        found = soak(servers, make_router, workers=20, count=5000, carry=True)
        control = soak(servers, make_router, workers=4, count=250, carry=False)
    assert found["stale"] == 0
    assert control["stale"] > 0


def went_back(servers: Servers, make_router: MakeRouter, *, monotonic: bool, reads: int) -> int:
    """The number of reads, alternating between two instances, that were older than the one before."""
    limits = FreshnessLimits(monotonic=monotonic, wait_s=0.2)
    routers = itertools.cycle(
        [make_router(servers.urls, freshness=limits, choice="random") for _ in range(2)]
    )
    done = threading.Event()

    def write() -> None:
        writer = make_router(servers.urls, freshness=FreshnessLimits(monotonic=False))
        while not done.is_set():
            with writer.write() as session:
                session.execute(BUMP, {"id": 50})

    writing = threading.Thread(target=write)
    writing.start()
    try:
        backwards, before, token = 0, 0, None
        for router in itertools.islice(routers, reads):
            with router.consistency_context(token):
                with router.read() as session:
                    value = session.execute(LOOK, {"id": 50}).scalar()
                token = router.token()
            backwards += value < before
            before = value
        return backwards
    finally:
        done.set()
        writing.join()


@pytest.mark.guarantee("reads never go back in time", pattern="replicas", under="replicas of different lag")
def test_reads_are_monotonic(servers: Servers, make_router: MakeRouter) -> None:
    with servers.hold_back(servers.replicas[0], 60):
        assert went_back(servers, make_router, monotonic=True, reads=150) == 0


@pytest.mark.control("reads never go back in time")
def test_the_control_without_monotonic_reads_they_go_back(servers: Servers, make_router: MakeRouter) -> None:
    with servers.hold_back(servers.replicas[0], 60):
        # Replicas are drawn at random, and on a busy machine one may be left out for a while.
        assert any(went_back(servers, make_router, monotonic=False, reads=150) for _ in range(5))


def snapshots(
    servers: Servers, router: DatabaseRouter, *, count: int, isolation: str | None = "REPEATABLE READ"
) -> Counter:
    """Write, then read twice in one snapshot; count missed writes and changed reads."""
    found: Counter = Counter()
    with servers.hold_back(servers.replicas[0], 500):
        for _ in range(count):
            # Room on the page: pruning it during the snapshot would make replay wait for the snapshot's end.
            servers.execute(servers.primary, "vacuum counters")
            servers.wait_for_replicas()
            with router.consistency_context():
                with router.write() as session:
                    written = session.execute(BUMP, {"id": 60}).scalar()
                with router.read(isolation=isolation) as session:
                    first = session.execute(LOOK, {"id": 60}).scalar()
                    with router.write() as other:
                        other.execute(BUMP, {"id": 60})
                    servers.wait_for_replicas()
                    found["moved"] += session.execute(LOOK, {"id": 60}).scalar() != first
                found["stale"] += first < written
    return found


@pytest.mark.guarantee(
    "a snapshot is checked before it is taken", pattern="replicas", under="REPEATABLE READ"
)
def test_freshness_is_checked_before_the_snapshot(servers: Servers, make_router: MakeRouter) -> None:
    router = make_router(servers.urls)
    assert snapshots(servers, router, count=3) == {"stale": 0, "moved": 0}
    for isolation, shown in (("REPEATABLE READ", "repeatable read"), (None, "read committed")):
        with router.read(isolation=isolation) as session:
            assert session.execute(text("show transaction_isolation")).scalar() == shown


@pytest.mark.control("a snapshot is checked before it is taken")
def test_the_control_snapshot_before_the_check_lacks_the_write(
    servers: Servers, make_router: MakeRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    primary, replicas = servers.urls
    router = make_router((primary, replicas[:1]))

    def taken(session: ReadSession) -> Checkout:
        """As the router's, the other way round: the transaction begins, then the replica is checked."""
        checkout = router._acquire_for_report(False, frozenset(), False)
        checkout.connection.execution_options(isolation_level=session._source.isolation or "READ COMMITTED")
        token = router._tracker.token()
        assert token is not None
        reached = f"select pg_last_wal_replay_lsn() >= '{format_position(token.position)}'"
        eventually(lambda: checkout.connection.exec_driver_sql(reached).scalar())
        return checkout

    monkeypatch.setattr(ReadSession, "_acquire", taken)
    assert snapshots(servers, router, count=2) == {"stale": 2, "moved": 0}


@pytest.mark.control("a snapshot is checked before it is taken")
def test_the_control_without_a_snapshot_repeated_reads_differ(
    servers: Servers, make_router: MakeRouter
) -> None:
    assert snapshots(servers, make_router(servers.urls), count=2, isolation=None) == {"stale": 0, "moved": 2}


def test_reads_reach_every_replica_and_not_the_primary(servers: Servers, make_router: MakeRouter) -> None:
    router = make_router(servers.urls)

    def work(number: int) -> Counter:
        found: Counter[Any] = Counter()
        for _ in range(50):
            with router.read() as session:
                found[session.execute(LOOK, {"id": number}).one()[1]] += 1
        return found

    found = sum(in_threads(4, work), Counter())
    assert set(found) == {replica.port for replica in servers.replicas}
    assert min(found.values()) > 20


def test_thread_without_a_context_reads_its_own_writes(servers: Servers, make_router: MakeRouter) -> None:
    router = make_router(servers.urls)
    with servers.hold_back(servers.replicas[0], 300):

        def work(_: int) -> None:
            for _ in range(20):
                with router.write() as session:
                    written = session.execute(BUMP, {"id": 70}).scalar()
                with router.read() as session:
                    assert session.execute(LOOK, {"id": 70}).scalar() == written

        in_threads(1, work)


def test_late_replica_gets_no_reads_until_it_has_caught_up(servers: Servers, make_router: MakeRouter) -> None:
    router = make_router(servers.urls, health=HealthLimits(max_lag_s=0.5, sample_s=0.05))
    late = f"127.0.0.1:{servers.replicas[0].port}/app"

    def bump() -> None:
        with router.write() as session:
            session.execute(BUMP, {"id": 80})

    def lags() -> bool:
        bump()
        return not router.servers()[late]["serving"]

    with servers.hold_back(servers.replicas[0], 3000):
        eventually(lags)
        for _ in range(20):
            with router.consistency_context(), router.read() as session:
                assert session.execute(LOOK, {"id": 80}).one()[1] != servers.replicas[0].port
    eventually(lambda: router.servers()[late]["serving"])
