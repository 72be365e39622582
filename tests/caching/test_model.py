"""Caches against a dictionary: random commits, rollbacks, losses of Redis, restarts of processes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from sqlalchemy import create_engine, text
from sqlalchemy.engine import Engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import StaticPool

from tenfold.caching import QueryCache
from tests.support.servers import RedisServer

KEYS = 3
WITHIN_S = 1.5  # in which another process' memory hears of a change


class Caches(RuleBasedStateMachine):
    """Two processes' caches, one of them without memory, over rows whose values are known."""

    server: RedisServer
    engine: Engine
    breaks: Callable[[QueryCache], object] = staticmethod(lambda *_: None)

    @initialize()
    def start(self) -> None:
        self.client = redis.Redis.from_url(self.server.url)
        self.client.flushall()
        self.values = dict.fromkeys(range(KEYS), 0)
        with Session(self.engine) as session:
            session.execute(text("update items set value = 0"))
            session.commit()
        self.caches: list[QueryCache] = []
        self.reads: list[Callable[[int], int]] = []
        for memory_bytes in (0, 100_000):
            self.add_cache(memory_bytes)

    def add_cache(self, memory_bytes: int) -> None:
        cache = QueryCache(self.server.url, metrics=False, memory_bytes=memory_bytes, timeout_s=1.0)
        type(self).breaks(cache)

        @cache.query(ttl=60, tags=["item:{key}"], name="read")
        def read(key: int) -> int:
            with Session(self.engine) as session:
                return int(
                    session.execute(text("select value from items where id = :id"), {"id": key}).scalar_one()
                )

        self.caches.append(cache)
        self.reads.append(read)

    def write(self, cache: QueryCache, key: int, *, ends: Callable[[Session], object]) -> None:
        with Session(self.engine) as session:
            session.execute(text("update items set value = value + 1 where id = :id"), {"id": key})
            cache.invalidate(f"item:{key}", session=session)
            ends(session)

    @rule(place=st.integers(0, 1), key=st.integers(0, KEYS - 1))
    def commit(self, place: int, key: int) -> None:
        self.write(self.caches[place], key, ends=Session.commit)
        self.values[key] += 1

    @rule(place=st.integers(0, 1), key=st.integers(0, KEYS - 1))
    def roll_back(self, place: int, key: int) -> None:
        self.write(self.caches[place], key, ends=Session.rollback)

    @rule(place=st.integers(0, 1), key=st.integers(0, KEYS - 1))
    def commit_after_rollback(self, place: int, key: int) -> None:
        with Session(self.engine) as session:
            for end in (session.rollback, session.commit):
                session.execute(text("update items set value = value + 1 where id = :id"), {"id": key})
                self.caches[place].invalidate(f"item:{key}", session=session)
                end()
        self.values[key] += 1

    @rule(place=st.integers(0, 1), key=st.integers(0, KEYS - 1))
    def read(self, place: int, key: int) -> None:
        self.reads[place](key)

    @rule()
    def flush_redis(self) -> None:
        self.client.flushall()

    @rule(kind=st.sampled_from(["v", "t"]))
    def evict(self, kind: str) -> None:
        if keys := sorted(self.client.scan_iter(f"tenfold:cache:{kind}:*")):
            self.client.delete(keys[0])

    @rule()
    def cut_subscriptions(self) -> None:
        self.client.client_kill_filter(_type="pubsub")

    @rule(key=st.integers(0, KEYS - 1))
    def pause_redis_during_a_commit(self, key: int) -> None:
        self.client.client_pause(150)
        self.write(self.caches[0], key, ends=Session.commit)
        self.values[key] += 1
        self.client.client_unpause()

    @rule(place=st.integers(0, 1))
    def restart_process(self, place: int) -> None:
        memory_bytes = 100_000 * place
        self.caches.pop(place).close()
        self.reads.pop(place)
        self.add_cache(memory_bytes)
        if place == 0:
            self.caches.reverse()
            self.reads.reverse()

    @invariant()
    def every_reader_gets_what_was_committed(self) -> None:
        for read in getattr(self, "reads", ()):
            for key, value in self.values.items():
                until = time.monotonic() + WITHIN_S
                while (found := read(key)) != value:
                    assert time.monotonic() < until, f"{found} in place of {value}"
                    time.sleep(0.01)

    def teardown(self) -> None:
        for cache in getattr(self, "caches", ()):
            cache.close()
        if hasattr(self, "client"):
            self.client.close()


@pytest.fixture
def machine(own_redis: RedisServer) -> Iterator[type[Caches]]:
    engine = create_engine("sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False})
    with engine.begin() as connection:
        connection.execute(text("create table items (id int primary key, value int)"))
        for key in range(KEYS):
            connection.execute(text("insert into items values (:id, 0)"), {"id": key})
    yield type("CachesHere", (Caches,), {"server": own_redis, "engine": engine})
    engine.dispose()


def profile(examples: int, **options: Any) -> settings:
    return settings(
        max_examples=examples, stateful_step_count=20, deadline=None, database=None,
        suppress_health_check=list(HealthCheck), **options,
    )  # fmt: skip


@pytest.mark.guarantee(
    "what was committed is what is read",
    pattern="caching",
    under="random commits, rollbacks, evictions, flushes, cut subscriptions and restarts",
)
def test_caches_agree_with_a_dictionary(machine: type[Caches]) -> None:
    run_state_machine_as_test(machine, settings=profile(8))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_caches_agree_with_a_dictionary_for_long(machine: type[Caches]) -> None:
    run_state_machine_as_test(machine, settings=profile(300))


@pytest.mark.control("what was committed is what is read", "invalidations are dropped")
def test_the_control_lost_invalidations_are_found(machine: type[Caches]) -> None:
    def drop(cache: QueryCache) -> None:
        cache.renew_committed = lambda *_: None  # type: ignore[method-assign]

    machine.breaks = staticmethod(drop)  # type: ignore[assignment]
    with pytest.raises(AssertionError, match="in place of"):
        run_state_machine_as_test(machine, settings=profile(30, phases=[Phase.generate]))
