"""Metrics of a router: reads by outcome, lag of replicas, pools."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from sqlalchemy import text
from sqlalchemy.pool import NullPool

from tenfold.database import DatabaseRouter, FreshnessLimits
from tenfold.database.pools.pool import MonitoredPool, pool_options
from tenfold.database.replicas.read_counters import READ_OUTCOMES, ReadCounters
from tenfold.metrics import exposition
from tests.database.conftest import Servers
from tests.support.waiting import eventually

MakeRouter = Callable[..., DatabaseRouter]
BUMP = text("update counters set value = value + 1 where id = 70")
LOOK = text("select value from counters where id = 70")


def look(router: DatabaseRouter) -> None:
    with router.read() as session:
        session.execute(LOOK)


def write(router: DatabaseRouter) -> None:
    with router.write() as session:
        session.execute(BUMP)


def test_reads_are_counted_by_outcome(servers: Servers, make_router: MakeRouter) -> None:
    primary, replicas = servers.urls
    limits = FreshnessLimits(wait_s=2.0, monotonic=False)
    router = make_router((primary, replicas[:1]), freshness=limits)
    look(router)
    assert router.read_counts() == {"no_token": 1}
    with router.consistency_context():
        write(router)
        servers.wait_for_replicas()
        look(router)
        look(router)
    assert router.read_counts() == {"no_token": 1, "asked_replica": 1, "known_fresh": 1}
    with router.consistency_context(), servers.hold_back(servers.replicas[0], 200):
        write(router)
        look(router)
    assert router.read_counts()["waited_for_replica"] == 1
    with router.consistency_context(), servers.outage(servers.replicas[0]):
        look(router)
    found = router.read_counts()
    assert found["primary"] == 1
    assert found.keys() == READ_OUTCOMES.keys()


def value(registry: CollectorRegistry, name: str, **labels: str) -> float:
    return registry.get_sample_value(name, labels) or 0.0


def test_read_and_lag_metrics_are_exported(servers: Servers, make_router: MakeRouter) -> None:
    registry = CollectorRegistry()
    primary, replicas = servers.urls
    router = make_router((primary, replicas[:1]), registry=registry, freshness=FreshnessLimits(wait_s=0))
    (name,) = router.servers()
    for _ in range(3):
        look(router)
    eventually(lambda: value(registry, "tenfold_reads_total", server=name, outcome="no_token") == 3)
    eventually(lambda: value(registry, "tenfold_replica_serving", server=name) == 1)
    with router.consistency_context(), servers.hold_back(servers.replicas[0], 5000):
        write(router)
        look(router)
        eventually(lambda: value(registry, "tenfold_replica_lag_seconds", server=name) > 0)
        assert value(registry, "tenfold_replica_lag_bytes", server=name) > 0
    eventually(lambda: value(registry, "tenfold_replica_lag_bytes", server=name) == 0)
    written = exposition(registry=registry).decode()
    assert 'outcome="primary"' in written
    for use in ("read", "write"):
        assert f' {use}"' in written, "each use of a server is a pool of its own name"
    assert servers.primary.password not in written


def test_without_metrics_nothing_is_exported(servers: Servers, make_router: MakeRouter) -> None:
    registry = CollectorRegistry()
    router = make_router(servers.urls, registry=registry, metrics=False)
    look(router)
    assert exposition(registry=registry) == b""
    assert router.read_counts() == {"no_token": 1}


def pools(router: DatabaseRouter) -> list[Any]:
    """The pools of the engines for writes and for reads, after their first use."""
    write(router)
    look(router)
    return [
        engine.pool
        for server in (router._primary, *router._replicas)
        for engine in list(server._engines.values())
    ]


def test_engines_have_monitored_pools_unless_another_was_chosen(
    servers: Servers, make_router: MakeRouter
) -> None:
    primary, replicas = servers.urls

    def made(engine: Any) -> list[Any]:
        router = make_router((primary, replicas[:1]), options={"engine": engine})
        return pools(router)

    writes, reads = made({"pool_size": 3, "pool_timeout": 2})
    assert isinstance(writes, MonitoredPool) and isinstance(reads, MonitoredPool)
    assert (reads.size(), reads._max_overflow, reads._timeout) == (3, 10, 2)
    assert reads.monitor.options.max_waiting == 130
    assert writes.monitor.options.name.endswith(" write")
    assert reads.monitor.options.name.endswith(" read")
    named = made(lambda url: pool_options(url, metrics=False))
    assert [pool.monitor.options.name[-5:] for pool in named] == ["write", " read"]
    named = made(lambda url: pool_options(url, name="mine", metrics=False))
    assert [pool.monitor.options.name for pool in named] == ["mine", "mine"]
    assert not any(isinstance(pool, MonitoredPool) for pool in made(lambda _: {}))
    assert [type(pool) for pool in made({"poolclass": NullPool})] == [NullPool, NullPool]


def test_counters_are_exact_across_threads() -> None:
    counters = ReadCounters()

    def add() -> None:
        for _ in range(5000):
            counters.increment("known_fresh", "db")

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counters.counts() == {("known_fresh", "db"): 20_000}


@pytest.fixture(autouse=True)
def row(servers: Servers) -> None:
    servers.execute(servers.primary, "insert into counters values (70, 0) on conflict do nothing")
    servers.wait_for_replicas()
