"""Sessions in a real Redis, shared by instances, at the promised number of round trips."""

from __future__ import annotations

import asyncio
import signal
from typing import Any

import pytest

from tenfold.sessions import RedisStore, ServerSessions, Session
from tenfold.sessions.backend import StoredSession
from tests.sessions.support.client import Client
from tests.sessions.support.service import service
from tests.support.servers import RedisServer
from tests.support.waiting import succeeds_eventually


async def _show(client: Client) -> Any:
    response = await client.aget("/show")
    assert response.status == 200
    return response.json["data"]


def with_store(server: RedisServer, run: Any, **options: Any) -> Any:
    async def inside() -> Any:
        store = RedisStore(server.url, **options)
        try:
            return await run(store)
        finally:
            await store.aclose()

    return asyncio.run(inside())


@pytest.mark.guarantee(
    "a read costs one GET, a request without session access nothing",
    pattern="sessions",
    control="the same tests' write",
)
def test_read_costs_one_get_and_write_one_script_more(redis_server: RedisServer) -> None:
    async def run(store: RedisStore) -> dict[str, dict[str, int]]:
        client = Client(service(store=store))
        await client.aget("/nested")
        await client.aget("/nested")  # the script is known to the server from here on
        redis_server.command("CONFIG", "RESETSTAT")
        for _ in range(10):
            await client.aget("/show")
            await client.aget("/untouched")
        reads = redis_server.calls()
        redis_server.command("CONFIG", "RESETSTAT")
        await client.aget("/nested")
        return {"reads": reads, "write": redis_server.calls()}

    counts = with_store(redis_server, run, timeout_s=5)
    assert counts["reads"] == {"get": 10}
    # Commands within the script are counted as well.
    assert counts["write"] == {"get": 2, "evalsha": 1, "set": 1}


def test_concurrent_requests_to_two_instances_lose_no_update(redis_server: RedisServer) -> None:
    async def run(store: RedisStore) -> dict[str, Any]:
        instances = [ServerSessions(store), ServerSessions(RedisStore(redis_server.url, timeout_s=5))]
        first = Session(instances[0])
        first["n"] = 0
        await first.save()

        async def request(number: int) -> None:
            sessions = instances[number % 2]
            stored = await sessions.load(first.pending_token or "")
            assert isinstance(stored, StoredSession)
            session = Session(sessions, stored)
            session.change("n", lambda n: n + 1)
            session[f"own{number}"] = number
            await session.save()

        await asyncio.gather(*(request(number) for number in range(20)))
        stored = await instances[0].load(first.pending_token or "")
        assert isinstance(stored, StoredSession)
        await instances[1].aclose()
        return dict(Session(instances[0], stored))

    stored = with_store(redis_server, run, timeout_s=5)
    assert stored["n"] == 20
    assert sum(key.startswith("own") for key in stored) == 20


@pytest.mark.guarantee("an unavailable store is never a 500, and an anonymous fallback writes nothing")
def test_paused_or_killed_redis_is_a_503_until_it_recovers(own_redis: RedisServer) -> None:
    async def run(store: RedisStore) -> list[Any]:
        client = Client(service(store=store))
        await client.aget("/put?a=1")
        own_redis.signal(signal.SIGSTOP)
        hanging = [(await client.aget("/show")).status, (await client.aget("/put?a=2")).status]
        own_redis.signal(signal.SIGCONT)
        recovered = await succeeds_eventually(lambda: _show(client), despite=AssertionError)
        own_redis.kill()
        return [hanging, recovered, (await client.aget("/show")).status]

    assert with_store(own_redis, run, timeout_s=0.1) == [[503, 503], {"a": "1"}, 503]
