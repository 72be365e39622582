"""Redis is down, slow, full, restarted or out of reach: callers get values, and nothing old for long."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis as redis_py
from prometheus_client import CollectorRegistry

from tenfold.caching import QueryCache
from tenfold.caching.core import PendingInvalidations
from tenfold.caching.entry import Tag
from tests.support import tcp_proxy
from tests.support.servers import Proxy, RedisServer
from tests.support.waiting import eventually


class Source:
    """Data that change, and a cached function that returns them."""

    def __init__(self, cache: QueryCache, **options: Any) -> None:
        self.cache, self.value, self.loads = cache, 0, 0

        @cache.query(**{"ttl": 60, "tags": ["source"], "name": "source", **options})
        def read(number: int = 0) -> list[int]:
            self.loads += 1
            return [self.value]

        self.read = read

    def is_in_memory(self) -> bool:
        return bool(self.read() and self.cache.explain(self.read)["in_memory"])


@pytest.fixture
def make_own(own_redis: RedisServer) -> Iterator[Callable[..., QueryCache]]:
    """Caches over a Redis that the test breaks."""
    made: list[QueryCache] = []

    def make(url: str | None = None, **options: Any) -> QueryCache:
        made.append(QueryCache(url or own_redis.url, **{"registry": CollectorRegistry(), **options}))
        return made[-1]

    yield make
    for cache in made:
        cache.close()


@pytest.mark.guarantee(
    "a cached function returns a value, never an error of the cache",
    pattern="caching",
    under="Redis is killed and started again",
)
def test_redis_down_is_a_load(own_redis: RedisServer, make_own: Callable[..., QueryCache]) -> None:
    source = Source(make_own(memory_bytes=0))
    source.read()
    own_redis.kill()
    source.value = 1
    assert [source.read() for _ in range(10)] == [[1]] * 10
    assert source.cache.stats()["source"]["error"] == 10
    own_redis.start()

    def is_cached() -> bool:
        loads = source.loads
        return source.read() == [1] and source.loads == loads

    eventually(is_cached)


def test_redis_down_is_a_load_in_asyncio(own_redis: RedisServer, make_own: Callable[..., QueryCache]) -> None:
    cache = make_own(memory_bytes=0)

    @cache.query(ttl=60, tags=["source"])
    async def read(number: int) -> int:
        return number

    async def main() -> list[int]:
        try:
            found = [await read(1)]
            own_redis.kill()
            cache.invalidate("source")
            await cache.ainvalidate("source")
            return [*found, *await asyncio.gather(*(read(number) for number in range(50)))]
        finally:
            await cache.aclose()

    assert asyncio.run(main()) == [1, *range(50)]


def test_paused_redis_is_a_load(own_redis: RedisServer, make_own: Callable[..., QueryCache]) -> None:
    source = Source(make_own(memory_bytes=0))
    source.read()
    own_redis.signal(signal.SIGSTOP)
    try:
        assert [source.read() for _ in range(10)] == [[0]] * 10
        assert source.cache.stats()["source"]["error"] == 10
    finally:
        own_redis.signal(signal.SIGCONT)


def test_loads_past_a_dead_redis_are_limited(
    own_redis: RedisServer, make_own: Callable[..., QueryCache]
) -> None:
    cache = make_own(memory_bytes=0, direct_loads=3)
    running, peak, lock = 0, 0, threading.Lock()
    release = threading.Event()

    @cache.query(ttl=60)
    def read(number: int) -> int:
        nonlocal running, peak
        with lock:
            running += 1
            peak = max(peak, running)
        release.wait(0.05)
        with lock:
            running -= 1
        return number

    own_redis.kill()
    threads = [threading.Thread(target=read, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert 0 < peak <= 3


@pytest.mark.guarantee(
    "an instance that is cut off from Redis serves from its memory for a second at most",
    pattern="caching",
    under="replies of Redis are held back while another instance invalidates",
)
def test_memory_is_not_served_without_a_subscription(
    own_redis: RedisServer, make_own: Callable[..., QueryCache]
) -> None:
    source, stale = run_cut_off(own_redis, make_own, max_stale_s=None)
    assert stale == 0, source.cache.stats()


@pytest.mark.control(
    "an instance that is cut off from Redis serves from its memory for a second at most",
    "the subscription is taken to be alive however long it is silent",
)
def test_the_control_memory_without_confirmation_stays_stale(
    own_redis: RedisServer, make_own: Callable[..., QueryCache]
) -> None:
    _, stale = run_cut_off(own_redis, make_own, max_stale_s=3600.0)
    assert stale > 0


def run_cut_off(
    own_redis: RedisServer, make_own: Callable[..., QueryCache], *, max_stale_s: float | None
) -> tuple[Source, int]:
    """Cut an instance off, invalidate elsewhere; count the old values that it serves after 1.3 s."""

    async def main() -> tuple[Source, int]:
        async with Proxy(own_redis.port) as proxy:
            url = own_redis.url.replace(str(own_redis.port), str(proxy.port))
            other = Source(make_own())
            source = await asyncio.to_thread(lambda: Source(make_own(url)))
            if max_stale_s is not None:
                source.cache._core.memory._max_stale_s = max_stale_s
            await asyncio.to_thread(lambda: eventually(source.is_in_memory))
            if max_stale_s is not None:  # and its listener does not give up
                source.cache._core.memory.forget_confirmation = lambda: None  # type: ignore[method-assign]
            proxy.flowing.clear()
            source.value = 1
            await asyncio.to_thread(other.cache.invalidate, "source")
            await asyncio.sleep(1.3)
            values = [await asyncio.to_thread(source.read) for _ in range(20)]
            proxy.flowing.set()
            await asyncio.to_thread(source.cache.close)
            return source, values.count([0])

    return asyncio.run(main())


@pytest.mark.guarantee(
    "no invalidation is missed in memory", pattern="caching", under="the subscription's connection is cut"
)
def test_memory_is_flushed_when_the_subscription_was_lost(
    own_redis: RedisServer, make_own: Callable[..., QueryCache]
) -> None:
    assert stale_after_cuts(own_redis, Source(make_own()), Source(make_own()), cuts=8) == 0


@pytest.mark.control("no invalidation is missed in memory", "nothing is flushed at a new subscription")
def test_the_control_without_a_flush_it_is_missed(
    own_redis: RedisServer, make_own: Callable[..., QueryCache]
) -> None:
    source = Source(make_own())
    memory = source.cache._core.memory
    memory.flush = memory.forget_confirmation = lambda: None  # type: ignore[method-assign]
    assert stale_after_cuts(own_redis, source, Source(make_own()), cuts=8) > 0


def stale_after_cuts(own_redis: RedisServer, source: Source, other: Source, *, cuts: int) -> int:
    """Cut the subscription and invalidate elsewhere; count the times that the old value stays."""
    stale = 0
    for number in range(cuts):
        eventually(source.is_in_memory)
        own_redis.command("CLIENT", "KILL", "TYPE", "pubsub")
        source.value = other.value = number + 1
        other.cache.invalidate("source")
        try:
            eventually(lambda: source.read() == [source.value], within_s=1.5)
        except AssertionError:
            stale += 1
            source.cache.invalidate("source")
    return stale


def test_restarted_redis_is_an_empty_cache(
    own_redis: RedisServer, make_own: Callable[..., QueryCache]
) -> None:
    source = Source(make_own())
    eventually(source.is_in_memory)
    own_redis.kill()
    source.value = 1
    own_redis.start()
    eventually(lambda: source.read() == [1])
    eventually(source.is_in_memory)
    assert source.read() == [1]


def test_full_redis_takes_invalidations(own_redis: RedisServer, make_own: Callable[..., QueryCache]) -> None:
    source = Source(make_own())
    source.read()
    client = redis_py.Redis.from_url(own_redis.url)
    client.config_set("maxmemory", 1)
    source.value = 1
    assert source.read() == [0], "reads work"
    source.cache.invalidate("source")
    assert [source.read() for _ in range(3)] == [[1]] * 3
    assert "invalidate" not in source.cache.stats()
    client.config_set("maxmemory", 0)
    eventually(source.is_in_memory)
    client.close()


def test_invalidation_that_redis_did_not_take_is_counted(
    own_redis: RedisServer, make_own: Callable[..., QueryCache], caplog: pytest.LogCaptureFixture
) -> None:
    source = Source(make_own())
    source.read()
    own_redis.kill()
    source.cache.invalidate("source")
    assert source.cache.stats()["invalidate"] == {"delayed": 1}
    assert "Redis did not take the invalidation of source: it is repeated" in caplog.text


@pytest.fixture
def way(own_redis: RedisServer) -> Iterator[tcp_proxy.Proxy]:
    way = tcp_proxy.Proxy(own_redis.port)
    yield way
    way.close()


def through(way: tcp_proxy.Proxy, server: RedisServer) -> str:
    return server.url.replace(str(server.port), str(way.port))


@pytest.mark.guarantee(
    "an invalidation that Redis did not take is repeated once it does",
    pattern="caching",
    under="the way to Redis was shut during a commit",
)
@pytest.mark.parametrize("memory_bytes", [0, 1_000_000])
def test_untaken_invalidation_is_repeated(
    own_redis: RedisServer, way: tcp_proxy.Proxy, make_own: Callable[..., QueryCache], memory_bytes: int
) -> None:
    writer = Source(make_own(through(way, own_redis), memory_bytes=memory_bytes))
    reader = Source(make_own(memory_bytes=0))
    writer.read(), reader.read()
    with way.shut():
        writer.value = reader.value = 1
        writer.cache.invalidate("source")
        assert writer.read() == [1]
    assert [writer.read() for _ in range(3)] == [[1]] * 3, "never the old value in the process that wrote"
    eventually(lambda: writer.read() == [1] and {"memory", "redis"} & writer.cache.stats()["source"].keys())
    eventually(lambda: reader.read() == [1])


@pytest.mark.control("an invalidation that Redis did not take is repeated once it does", "it is forgotten")
def test_the_control_a_forgotten_invalidation_leaves_the_old_value(
    own_redis: RedisServer,
    way: tcp_proxy.Proxy,
    make_own: Callable[..., QueryCache],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    writer = Source(make_own(through(way, own_redis), memory_bytes=0))
    reader = Source(make_own(memory_bytes=0))
    writer.read(), reader.read()
    monkeypatch.setattr(writer.cache._core.pending, "add", lambda _: None)
    with way.shut():
        writer.value = reader.value = 1
        writer.cache.invalidate("source")
    with pytest.raises(AssertionError):
        eventually(lambda: reader.read() == [1], within_s=1.5)


def test_pending_invalidation_that_comes_again_meanwhile_stays() -> None:
    pending = PendingInvalidations()
    pending.add({"a": Tag(b"1"), "b": Tag(b"1")})
    sent = pending.snapshot()
    pending.add({"a": Tag(b"2")})
    pending.remove(sent)
    assert pending.snapshot().keys() == {"a"}


def test_many_untaken_invalidations_are_bounded(
    own_redis: RedisServer, way: tcp_proxy.Proxy, make_own: Callable[..., QueryCache]
) -> None:
    source = Source(make_own(through(way, own_redis), memory_bytes=0), tags=["source:{number}"])
    source.read(1)
    with way.shut():
        source.value = 1
        source.cache.invalidate(*(f"source:{number}" for number in range(20_000)))
    assert len(source.cache._core.pending) == 1
    eventually(lambda: "redis" in source.cache.stats()["source"] or not source.read(1))
    assert source.read(1) == [1]


def test_entries_of_another_format_are_misses(
    own_redis: RedisServer, make_own: Callable[..., QueryCache]
) -> None:
    source = Source(make_own(memory_bytes=0))
    source.read()
    client = redis_py.Redis.from_url(own_redis.url)
    for kind in ("v", "t"):
        for key in client.scan_iter(f"tenfold:cache:{kind}:*"):
            client.set(key, b"\xff\x00 of another program")
    source.value = 1
    assert [source.read(), source.read()] == [[1], [1]]
    client.close()


def test_evicted_tag_is_an_invalidation(own_redis: RedisServer, make_own: Callable[..., QueryCache]) -> None:
    source = Source(make_own(memory_bytes=0))
    source.read()
    client = redis_py.Redis.from_url(own_redis.url)
    assert client.delete(*client.scan_iter("tenfold:cache:t:*")) == 2
    source.value = 1
    assert source.read() == [1]
    client.close()


def test_cache_leaves_no_thread_and_no_connection(
    own_redis: RedisServer, make_own: Callable[..., QueryCache]
) -> None:
    before = set(threading.enumerate())
    source = Source(make_own())
    eventually(source.is_in_memory)
    source.cache.close()
    assert set(threading.enumerate()) == before
    client = redis_py.Redis.from_url(own_redis.url)
    eventually(lambda: len(client.client_list()) == 1)
    client.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_fork_has_a_subscription_of_its_own(
    own_redis: RedisServer, make_own: Callable[..., QueryCache]
) -> None:
    source = Source(make_own())
    eventually(source.is_in_memory)
    reader, writer = os.pipe()
    if (pid := os.fork()) == 0:
        outcome = b"failed"
        try:
            source.read()
            eventually(source.is_in_memory)
            source.value = 1
            source.cache.invalidate("source")
            outcome = b"ok" if source.read() == [1] else b"stale"
        finally:
            os.write(writer, outcome)
            os._exit(0)
    os.close(writer)
    assert os.read(reader, 10) == b"ok"
    os.waitpid(pid, 0)
    os.close(reader)
    eventually(lambda: source.read() == [1], within_s=5)  # the child's value
