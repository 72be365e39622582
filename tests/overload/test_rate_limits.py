"""Rate limits hold in any window; on a real Valkey and Redis also under concurrency."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from redis.asyncio import Redis

from tenfold.errors import RateStoreError, SettingsError
from tenfold.metrics import exposition
from tenfold.overload.gcra import MemoryRates, Rate, RateStore, decide
from tenfold.overload.ratelimiter import RateLimiter
from tenfold.overload.redis import RedisRates
from tenfold.stack.ports import free_port
from tests.support.waiting import eventually

# ------------------------------------------------------------------ the decision

steps = st.lists(
    st.tuples(st.floats(0, 3, allow_nan=False), st.integers(1, 3)), min_size=1, max_size=60
)  # seconds after the one before, and its cost


@pytest.mark.guarantee(
    "never more than burst + rate × t",
    pattern="overload",
    under="any pattern; many processes at once on Redis",
)
@given(asked=steps, rate=st.floats(0.1, 50), burst=st.integers(1, 10))
def test_any_window_admits_at_most_burst_plus_rate(
    asked: list[tuple[float, int]], rate: float, burst: int
) -> None:
    now, tat, allowed = 1e9, None, []
    for pause, cost in asked:
        now += pause / rate
        decision = decide(tat, now, rate=rate, burst=burst, cost=cost)
        if decision.allowed:
            tat = decision.tat_s
            allowed.append((now, cost))
    for first in range(len(allowed)):
        for last in range(first, len(allowed)):
            used = sum(cost for _, cost in allowed[first : last + 1])
            assert used <= burst + rate * (allowed[last][0] - allowed[first][0]) + 1e-3


@given(asked=steps, rate=st.floats(0.1, 50), burst=st.integers(3, 10))
def test_retry_after_is_exact(asked: list[tuple[float, int]], rate: float, burst: int) -> None:
    now, tat = 1000.0, None
    for pause, cost in asked:
        now += pause / rate / 4
        decision = decide(tat, now, rate=rate, burst=burst, cost=cost)
        if decision.allowed:
            assert decision.retry_after_s == 0
            tat = decision.tat_s
        else:
            wait = decision.retry_after_s
            assert decide(tat, now + wait + 1e-9, rate=rate, burst=burst, cost=cost).allowed
            assert not decide(tat, now + 0.9 * wait, rate=rate, burst=burst, cost=cost).allowed
        assert 0 <= decision.remaining <= burst


@pytest.mark.parametrize(
    ("tat", "cost", "expected"),  # at 100 s, 2 a second, 4 at once
    [
        (None, 1, (True, 0.0, 3, 0.5)),
        (99.0, 1, (True, 0.0, 3, 0.5)),
        (101.5, 1, (True, 0.0, 0, 2.0)),
        (102.0, 1, (False, 0.5, 0, 2.0)),
        (101.0, 3, (False, 0.5, 2, 1.0)),
        (None, 4, (True, 0.0, 0, 2.0)),
        (None, 5, (False, float("inf"), 4, 0.0)),
        (102.0, 0, (True, 0.0, 0, 2.0)),
    ],
)
def test_decisions(tat: float | None, cost: int, expected: tuple[bool, float, int, float]) -> None:
    decision = decide(tat, 100.0, rate=2, burst=4, cost=cost)
    assert (decision.allowed, decision.retry_after_s, decision.remaining, decision.reset_s) == expected


@pytest.mark.parametrize(("rate", "burst"), [(0, 1), (-1, 1), (float("inf"), 1), (1, 0)])
def test_invalid_rates_are_refused(rate: float, burst: int) -> None:
    with pytest.raises(ValueError, match="above 0"):
        Rate(rate, burst)


# ------------------------------------------------------------------ stores


def test_memory_rates_bound_their_keys() -> None:
    async def test() -> None:
        now = 0.0
        store = MemoryRates(max_keys=10, clock=lambda: now)
        for number in range(100):
            assert (await store.take(str(number), Rate(1, 1))).allowed
            assert len(store._tats) <= 10
        assert not (await store.take("99", Rate(1, 1))).allowed  # the newest are kept
        now = 2.0
        assert (await store.take("99", Rate(1, 1))).allowed

    asyncio.run(test())


def accepts_connections(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


@pytest.fixture(scope="session")
def redis_url(redis_program: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    port = free_port()
    command = [redis_program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    folder = tmp_path_factory.mktemp("redis")
    server = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL)
    eventually(lambda: accepts_connections(port), within_s=10)
    yield f"redis://127.0.0.1:{port}"
    server.kill()
    server.wait()


class ReadThenWrite:
    """The mistake: Redis keeps the moment, Python decides."""

    def __init__(self, client: Redis) -> None:
        self.client = client

    async def take(self, key: str, rate: Rate, cost: int = 1) -> Any:
        kept = await self.client.get(key)
        decision = decide(
            float(kept) if kept else None, time.time(), rate=rate.rate, burst=rate.burst, cost=cost
        )
        if decision.allowed:
            await self.client.set(key, repr(decision.tat_s))
        return decision


async def admitted(store: RateStore, key: str, *, at_once: int) -> int:
    decisions = await asyncio.gather(*[store.take(key, Rate(0.01, 10)) for _ in range(at_once)])
    return sum(decision.allowed for decision in decisions)


@pytest.mark.guarantee("never more than burst + rate × t")
def test_concurrent_requests_never_exceed_the_burst(redis_url: str) -> None:
    async def test() -> None:
        stores = [RedisRates(redis_url, timeout_s=10) for _ in range(4)]
        counts = await asyncio.gather(*[admitted(store, "at once", at_once=50) for store in stores])
        assert sum(counts) == 10
        for store in stores:
            await store.aclose()

    asyncio.run(test())


@pytest.mark.control("never more than burst + rate × t")
def test_the_control_read_then_write_exceeds_the_burst(redis_url: str) -> None:
    async def test() -> None:
        async with Redis.from_url(redis_url) as client:
            assert await admitted(ReadThenWrite(client), "control", at_once=50) > 10

    asyncio.run(test())


@pytest.mark.parametrize("rate", [Rate(3, 1), Rate(1000 / 7, 5), Rate(0.001, 2), Rate(5e5, 3)])
def test_redis_agrees_with_the_pure_function(redis_url: str, rate: Rate) -> None:
    """Also where a unit is not a whole number of microseconds."""

    async def test() -> None:
        store = RedisRates(redis_url, timeout_s=10)
        async with Redis.from_url(redis_url) as client:
            await client.flushall()
            first = await store.take("key", rate)
            assert first.allowed
            assert first.remaining == rate.burst - 1
            assert first.reset_s == pytest.approx(1 / rate.rate, abs=2e-6)
            lives_ms = await client.pttl("tenfold:rate:key")
            assert lives_ms != -1  # without expiry
            assert lives_ms <= 1000 / rate.rate + 1
            too_much = await store.take("other", rate, rate.burst + 1)
            assert (too_much.allowed, too_much.retry_after_s) == (False, float("inf"))
            assert await client.exists("tenfold:rate:other") == 0
            assert (await store.take("other", rate, rate.burst)).allowed
        await store.aclose()

    asyncio.run(test())


def test_rate_holds_by_the_clock_of_redis(redis_url: str) -> None:
    async def test() -> None:
        store = RedisRates(redis_url, timeout_s=10)
        rate, started, allowed = Rate(200, 5), time.monotonic(), 0
        while time.monotonic() - started < 0.5:
            allowed += (await store.take("steady", rate)).allowed
        seconds = time.monotonic() - started
        assert 5 <= allowed <= 5 + 200 * seconds + 1
        await store.aclose()

    asyncio.run(test())


@pytest.mark.guarantee("rate limits without Redis fail open or closed, as configured")
def test_silent_redis_costs_at_most_the_timeout() -> None:
    async def test() -> None:
        async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read()
            writer.close()

        server = await asyncio.start_server(silent, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        store = RedisRates(f"redis://127.0.0.1:{port}", timeout_s=0.05)
        started = time.monotonic()
        with pytest.raises(RateStoreError, match="Redis does not count"):
            await store.take("key", Rate(1, 1))
        assert time.monotonic() - started < 5
        await store.aclose()
        server.close()

    asyncio.run(test())


# ------------------------------------------------------------------ the middleware


async def app(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"x-own", b"1")]})
    await send({"type": "http.response.body", "body": b"ok"})


async def ask(limiter: RateLimiter, user: str = "ann", path: str = "/") -> tuple[int, dict[bytes, bytes]]:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    await limiter({"type": "http", "path": path, "user": user}, None, send)  # type: ignore[arg-type]
    return sent[0]["status"], dict(sent[0]["headers"])


class RecordingStore(MemoryRates):
    def __init__(self) -> None:
        super().__init__()
        self.keys: list[str] = []

    async def take(self, key: str, rate: Rate, cost: int = 1) -> Any:
        self.keys.append(key)
        return await super().take(key, rate, cost)


class UnavailableStore:
    asked = 0

    async def take(self, key: str, rate: Rate, cost: int = 1) -> Any:
        self.asked += 1
        raise RateStoreError("gone")


def limiter(store: Any, **options: Any) -> RateLimiter:
    options = {"rate": Rate(0.1, 2), "key": lambda scope: scope["user"] or None, **options}
    return RateLimiter(app, store, **options)


def test_requests_beyond_the_rate_get_429_with_retry_after() -> None:
    async def test() -> None:
        store = RecordingStore()
        limited = limiter(store, name="api", secret=b"pepper")
        status, headers = await ask(limited)
        assert (status, headers[b"x-own"]) == (200, b"1")
        assert headers[b"ratelimit-policy"] == b'"api";q=2;w=20'
        assert headers[b"ratelimit"] == b'"api";r=1;t=10'
        assert (await ask(limited))[0] == 200
        status, headers = await ask(limited)
        assert status == 429
        assert 1 <= int(headers[b"retry-after"]) <= 10
        assert headers[b"ratelimit"].startswith(b'"api";r=0;t=')
        assert (await ask(limited, "bob"))[0] == 200
        for _ in range(5):
            assert (await ask(limited, ""))[0] == 200  # no key, no limit
            assert (await ask(limited, path="/health/live"))[0] == 200
        assert all("ann" not in key and key.startswith("api:") for key in store.keys)

    asyncio.run(test())


@pytest.mark.guarantee(
    "rate limits without Redis fail open or closed, as configured",
    pattern="overload",
    under="Redis gone, or silent",
    control="the same test: `open` beside `closed`",
)
@pytest.mark.parametrize(("policy", "expected"), [("open", 200), ("closed", 503)])
def test_unavailable_store_fails_open_or_closed_as_configured(policy: str, expected: int) -> None:
    async def test() -> None:
        store = UnavailableStore()
        limited = limiter(store, when_down=policy, pause_s=60)
        for _ in range(5):
            status, headers = await ask(limited)
            assert status == expected
            assert (b"retry-after" in headers) == (expected == 503)
        assert store.asked == 1  # then the breaker is open

    asyncio.run(test())


def test_shadow_mode_refuses_nothing() -> None:
    async def test() -> None:
        registry = CollectorRegistry()
        limited = limiter(MemoryRates(), shadow=True, metrics=True, registry=registry)
        assert [(await ask(limited))[0] for _ in range(5)] == [200] * 5
        assert limited.refused_count == 3
        assert (
            'tenfold_rate_limited_total{mode="shadow",policy="default"} 3.0'
            in exposition(registry=registry).decode()
        )

    asyncio.run(test())


def test_limit_name_cannot_inject_headers() -> None:
    with pytest.raises(SettingsError, match="no name of a rate limit"):
        limiter(MemoryRates(), name='a";q=1\r\nx: y')


def test_lua_script_is_part_of_the_package() -> None:
    assert (Path(RedisRates.__init__.__code__.co_filename).parent / "gcra.lua").is_file()


@pytest.mark.guarantee(
    "rate limits work in any event loop", pattern="overload", under="a loop for each request"
)
@pytest.mark.parametrize("as_client", [False, True])
def test_each_request_may_have_an_event_loop_of_its_own(redis_url: str, as_client: bool) -> None:
    store = RedisRates(Redis.from_url(redis_url) if as_client else redis_url, timeout_s=10)
    decisions = [asyncio.run(store.take(f"loops {as_client}", Rate(0.001, 10))) for _ in range(6)]
    assert [decision.remaining for decision in decisions] == [9, 8, 7, 6, 5, 4]


@pytest.mark.guarantee("rate limits work in any event loop")
def test_several_event_loops_at_once_share_one_count(redis_url: str) -> None:
    store = RedisRates(redis_url, timeout_s=10, connections=2)
    with ThreadPoolExecutor(3) as threads:
        found = threads.map(lambda _: asyncio.run(admitted(store, "threads", at_once=20)), range(3))
    assert sum(found) == 10


@pytest.mark.control("rate limits work in any event loop")
def test_the_control_client_of_a_running_loop_is_refused_by_policy(redis_url: str) -> None:
    store = RedisRates(Redis.from_url(redis_url), timeout_s=10)

    async def test() -> None:
        await store.take("mine", Rate(1, 10))
        with pytest.raises(RateStoreError, match="another event loop: give RedisRates a URL"):
            await asyncio.to_thread(lambda: asyncio.run(store.take("mine", Rate(1, 10))))

    asyncio.run(test())
