"""Many misses at once: one load, in all processes together; and what happens when the one who loads ends."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis

from tenfold.caching import QueryCache
from tests.caching.support.naive import naive_cache
from tests.support.servers import RedisServer
from tests.support.waiting import eventually


class Process:
    def __init__(self, url: str, callers: int, load_s: float, kind: str) -> None:
        command = [
            sys.executable,
            "-m",
            "tests.caching.support.stampede",
            url,
            str(callers),
            str(load_s),
            kind,
        ]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def line(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline().strip()

    def go(self) -> None:
        assert self.process.stdin
        self.process.stdin.write("go\n")
        self.process.stdin.flush()

    def result(self) -> dict[str, int]:
        while (line := self.line()) == "loading":
            pass
        found: dict[str, int] = json.loads(line)
        assert self.process.wait(20) == 0
        return found


@pytest.fixture
def start(own_redis: RedisServer) -> Iterator[Callable[..., Process]]:
    started: list[Process] = []

    def start(callers: int, *, load_s: float, kind: str = "threads") -> Process:
        started.append(Process(own_redis.url, callers, load_s, kind))
        return started[-1]

    yield start
    for each in started:
        each.process.kill()
        each.process.wait(10)
        for stream in (each.process.stdin, each.process.stdout):
            assert stream
            stream.close()


@pytest.mark.guarantee(
    "a value that many callers miss at once is loaded once",
    pattern="caching",
    under="1,000 callers in four processes",
)
@pytest.mark.parametrize("kind", ["threads", "async"])
def test_misses_of_several_processes_are_one_load(start: Callable[..., Process], kind: str) -> None:
    processes = [start(250 if kind == "async" else 50, load_s=0.3, kind=kind) for _ in range(4)]
    for each in processes:
        assert each.line() == "ready"
    for each in processes:
        each.go()
    found = [each.result() for each in processes]
    assert sum(each["loads"] for each in found) == 1
    assert sum(each["values"] for each in found) == (1000 if kind == "async" else 200)
    assert not any(each["wrong"] for each in found)


@pytest.mark.control("a value that many callers miss at once is loaded once", "the naive decorator")
def test_the_control_all_of_them_load(redis_server: RedisServer) -> None:
    client = redis.Redis.from_url(redis_server.url)
    client.delete("query:read:(7,):{}")
    barrier, loads = threading.Barrier(20), []

    @naive_cache(client)
    def read(number: int) -> int:
        loads.append(number)
        barrier.wait(20)  # which ends only because all of them load
        return number

    threads = [threading.Thread(target=read, args=(7,)) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(loads) == 20
    client.close()


def test_another_process_loads_when_the_first_is_killed(start: Callable[..., Process]) -> None:
    first, second = start(1, load_s=60), start(20, load_s=0.05)
    assert first.line() == second.line() == "ready"
    first.go()
    assert first.line() == "loading"
    second.go()
    first.process.kill()
    assert second.result() == {"loads": 1, "values": 20, "wrong": 0}


def test_cancelled_load_is_handed_over(make_cache: Callable[..., QueryCache]) -> None:
    cache = make_cache()
    loads = 0

    async def main() -> list[Any]:
        began = asyncio.Event()

        @cache.query(ttl=60, tags=["t"])
        async def read() -> int:
            nonlocal loads
            loads += 1
            began.set()
            await asyncio.sleep(0.2 if loads > 1 else 60)
            return loads

        leader = asyncio.create_task(read())
        await began.wait()
        followers = [asyncio.create_task(read()) for _ in range(20)]
        await asyncio.sleep(0)
        leader.cancel()
        found = await asyncio.gather(*followers, leader, return_exceptions=True)
        await cache.aclose()
        return found

    *values, cancelled = asyncio.run(main())
    assert values == [2] * 20 and isinstance(cancelled, asyncio.CancelledError) and loads == 2


def test_cancelled_follower_cancels_nobody(make_cache: Callable[..., QueryCache]) -> None:
    cache = make_cache()

    async def main() -> list[Any]:
        @cache.query(ttl=60)
        async def read() -> int:
            await asyncio.sleep(0.2)
            return 1

        tasks = [asyncio.create_task(read()) for _ in range(3)]
        await asyncio.sleep(0.05)
        tasks[1].cancel()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        await cache.aclose()
        return found

    first, second, third = asyncio.run(main())
    assert (first, third) == (1, 1) and isinstance(second, asyncio.CancelledError)


def test_failed_load_fails_for_its_caller_only(make_cache: Callable[..., QueryCache]) -> None:
    cache = make_cache()
    began, may_fail = threading.Event(), threading.Event()
    outcomes: list[str] = []

    @cache.query(ttl=60)
    def read() -> int:
        if not began.is_set():
            began.set()
            may_fail.wait(20)
            raise RuntimeError("of the first")
        return 1

    def call() -> None:
        try:
            outcomes.append(str(read()))
        except RuntimeError as error:
            outcomes.append(str(error))

    threads = [threading.Thread(target=call) for _ in range(5)]
    threads[0].start()
    assert began.wait(20)
    for thread in threads[1:]:
        thread.start()
    eventually(lambda: len(cache._core.flights._under_way) == 1)
    may_fail.set()
    for thread in threads:
        thread.join(20)
    assert sorted(outcomes) == ["1", "1", "1", "1", "of the first"]


def test_threads_and_event_loops_share_a_load() -> None:
    cache = QueryCache(metrics=False)
    loads = 0
    release = threading.Event()

    def load() -> int:
        nonlocal loads
        loads += 1
        release.wait(20)
        return loads

    found: list[int] = []
    threads = [threading.Thread(target=lambda: found.append(cache.get_or_load("k", load))) for _ in range(3)]
    for thread in threads:
        thread.start()
    eventually(lambda: loads == 1)

    async def main() -> int:
        async def load_async() -> int:
            return await asyncio.to_thread(load)

        waiting = asyncio.ensure_future(cache.get_or_load("k", load_async))
        await asyncio.sleep(0.05)
        release.set()
        return await waiting

    assert asyncio.run(main()) == 1
    for thread in threads:
        thread.join(20)
    assert (found, loads) == ([1, 1, 1], 1)
