"""Replies of Redis that are lost, or that arrive after their request was cancelled."""

from __future__ import annotations

import asyncio
import hashlib
import random
from typing import Any

import pytest
from redis.asyncio import Redis

from tenfold.errors import SessionStoreError
from tenfold.redis_pool import RedisPool
from tenfold.sessions.stores.redis import RedisStore
from tenfold.sessions.stores.store import StoredPayload
from tests.sessions.support.calls import NEVER_OPENS, error_text, succeeds_eventually
from tests.support.servers import Proxy, RedisServer


async def _write_while_replies_are_lost(server: RedisServer, *, has_write_ids: bool) -> list[Any]:
    """Each write is executed, its reply is lost with the connection, and so it is repeated."""
    async with Proxy(server.port) as proxy:
        url = server.url.replace(f":{server.port}", f":{proxy.port}")
        store = RedisStore(url, timeout_s=5, breaker=NEVER_OPENS)
        if not has_write_ids:
            store._replace.text = store._replace.text.replace(b"value:sub(1, 21) ==", b"false ==")
            store._replace.digest = hashlib.sha1(store._replace.text).hexdigest()
        await store.replace("unknown", b"", version=1, ttl_s=60)  # Redis knows the script
        handle, results = random.randbytes(8).hex(), []
        for write in (
            lambda: store.create(handle, b"1", ttl_s=60),
            lambda: store.replace(handle, b"2", version=1, ttl_s=60),
            lambda: store.revoke(handle, ttl_s=60),
        ):
            proxy.cut_next_reply = True
            results.append(await write())
            assert not proxy.cut_next_reply
            results.append(await store.read(handle))
        await store.aclose()
        return results


@pytest.mark.guarantee(
    "a repeated write does not conflict with itself",
    pattern="stores",
    under="the reply is lost with its connection",
)
def test_repeated_write_whose_reply_was_lost_succeeds(redis_server: RedisServer) -> None:
    results = asyncio.run(_write_while_replies_are_lost(redis_server, has_write_ids=True))
    assert results == [True, StoredPayload(1, b"1"), True, StoredPayload(2, b"2"), None, None]


@pytest.mark.control("a repeated write does not conflict with itself")
def test_the_control_without_write_ids_a_repeated_write_conflicts_with_itself(
    redis_server: RedisServer,
) -> None:
    results = asyncio.run(_write_while_replies_are_lost(redis_server, has_write_ids=False))
    assert results[2] == StoredPayload(2, b"2")


class CarelessPool(RedisPool):
    """Reuses a connection whether or not the last reply was read."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._idle: list[Any] = []

    async def execute(self, *command: Any) -> Any:
        connection = self._idle.pop() if self._idle else self._factory.make_connection()
        try:
            if not connection.is_connected:
                await connection.connect()
            await connection.send_command(*command)
            return await connection.read_response(disable_decoding=True, disconnect_on_error=False)
        finally:
            self._idle.append(connection)


ROUNDS, READERS = 60, 24


async def _cancel_reads(server: RedisServer, kind: str) -> tuple[int, int, int]:
    """Cancel reads while their replies are delayed; count correct, foreign and refused results."""
    handles = [f"h{number}" for number in range(READERS)]
    chance = random.Random(7)
    async with Proxy(server.port) as proxy:
        url = server.url.replace(f":{server.port}", f":{proxy.port}")
        client = Redis.from_url(url, socket_timeout=5)
        store = RedisStore(client if kind == "client" else url, timeout_s=5, breaker=NEVER_OPENS)
        if kind.startswith("careless"):
            store._pool = CarelessPool(url, max_connections=50, connect_timeout_s=5)
            store._execute = store._pool.execute
        if kind == "careless without checksum":
            store._decode = _decode_unchecked
        for handle in handles:
            await store.revoke(handle, ttl_s=0.001)
            await succeeds_eventually(lambda handle=handle: _created(store, handle))
        right = foreign = refused = 0
        for _ in range(ROUNDS):
            proxy.flowing.clear()
            reads = {handle: asyncio.ensure_future(store.read(handle)) for handle in handles}
            for _ in range(chance.randrange(12)):  # so that they are cancelled at different points
                await asyncio.sleep(0)
            if chance.random() < 0.5:
                await asyncio.sleep(0.002)
            for read in chance.sample(list(reads.values()), READERS - 3):
                read.cancel()
            proxy.flowing.set()
            results = await asyncio.gather(*reads.values(), return_exceptions=True)
            for handle, result in zip(handles, results, strict=True):
                right += isinstance(result, StoredPayload) and result.payload == handle.encode()
                foreign += result is None or (
                    isinstance(result, StoredPayload) and result.payload != handle.encode()
                )
                refused += isinstance(result, SessionStoreError)
        await store.aclose()
        await client.aclose()
        return right, foreign, refused


async def _decode_unchecked(handle: str, value: bytes | None) -> StoredPayload | None:
    return None if value is None else StoredPayload(1, value[21:])


async def _created(store: RedisStore, handle: str) -> None:
    if not await store.create(handle, handle.encode(), ttl_s=600):
        raise SessionStoreError("not yet")


@pytest.mark.guarantee(
    "the reply to a cancelled read never reaches another request",
    pattern="stores",
    under="reads cancelled while Redis stalls",
)
@pytest.mark.parametrize("kind", ["url", "client"])
def test_reply_to_a_cancelled_read_never_reaches_another(redis_server: RedisServer, kind: str) -> None:
    right, foreign, refused = asyncio.run(_cancel_reads(redis_server, kind))
    assert (foreign, refused) == (0, 0)
    assert right >= 3 * ROUNDS


@pytest.mark.control("the reply to a cancelled read never reaches another request")
def test_the_control_careless_pool_mixes_replies_up_and_the_checksum_refuses_them(
    redis_server: RedisServer,
) -> None:
    """The second guard: a stored value has a checksum of its handle."""
    _, foreign, refused = asyncio.run(_cancel_reads(redis_server, "careless"))
    assert foreign == 0
    assert refused > 0


@pytest.mark.control("the reply to a cancelled read never reaches another request")
def test_the_control_without_pool_and_checksum_foreign_sessions_are_returned(
    redis_server: RedisServer,
) -> None:
    _, foreign, _ = asyncio.run(_cancel_reads(redis_server, "careless without checksum"))
    assert foreign > 0


def test_wait_for_a_connection_is_bounded_by_the_timeout(redis_server: RedisServer) -> None:
    async def run() -> None:
        async with Proxy(redis_server.port) as proxy:
            url = redis_server.url.replace(f":{redis_server.port}", f":{proxy.port}")
            store = RedisStore(url, timeout_s=0.2, max_connections=1, breaker=NEVER_OPENS)
            await succeeds_eventually(lambda: store.read("a"))
            proxy.flowing.clear()
            for text in await asyncio.gather(*(error_text(store.read("a")) for _ in range(5))):
                assert "within 200 ms" in text
            proxy.flowing.set()
            assert await succeeds_eventually(lambda: store.read("a")) is None
            await store.aclose()

    asyncio.run(run())


def test_cancelled_waiter_takes_no_connection(redis_server: RedisServer) -> None:
    async def run() -> None:
        async with Proxy(redis_server.port) as proxy:
            url = redis_server.url.replace(f":{redis_server.port}", f":{proxy.port}")
            store = RedisStore(url, timeout_s=5, max_connections=2, breaker=NEVER_OPENS)
            for _ in range(20):
                proxy.flowing.clear()
                reads = [asyncio.ensure_future(store.read("a")) for _ in range(20)]
                await asyncio.sleep(0.005)
                for read in reads[::2]:
                    read.cancel()
                proxy.flowing.set()
                results = await asyncio.gather(*reads, return_exceptions=True)
                assert results[1::2] == [None] * 10
            assert proxy.peak <= 4  # two, and two that were closed but not yet gone
            await store.aclose()

    asyncio.run(run())
