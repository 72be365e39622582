"""Answers of Redis that get lost, or that come when nobody waits for them any more."""

from __future__ import annotations

import asyncio
import hashlib
import random
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from tenfold.errors import SessionStoreError
from tenfold.sessions.stores.connections import Connections
from tenfold.sessions.stores.redis import RedisStore
from tenfold.sessions.stores.store import Stored
from tests.sessions.support.asking import NEVER, eventually, told
from tests.sessions.support.session_servers import Proxy, RedisServer


async def _write_while_answers_are_lost(server: RedisServer, *, recognises: bool) -> list[Any]:
    """Each write is executed, its answer never comes, and the connection ends: so it is repeated."""
    async with Proxy(server.port) as proxy:
        url = server.url.replace(f":{server.port}", f":{proxy.port}")
        store = RedisStore(url, timeout_s=5, breaker=NEVER)
        if not recognises:
            store._replace.text = store._replace.text.replace(b"kept:sub(1, 21) ==", b"false ==")
            store._replace.digest = hashlib.sha1(store._replace.text).hexdigest()
        await store.replace("nobody", b"", version=1, ttl_s=60)  # Redis knows the script
        handle, answers = random.randbytes(8).hex(), []
        for write in (
            lambda: store.create(handle, b"1", ttl_s=60),
            lambda: store.replace(handle, b"2", version=1, ttl_s=60),
            lambda: store.revoke(handle, ttl_s=60),
        ):
            proxy.cut_next_answer = True
            answers.append(await write())
            assert not proxy.cut_next_answer
            answers.append(await store.read(handle))
        await store.aclose()
        return answers


def test_a_write_whose_answer_is_lost_recognises_itself(redis_server: RedisServer) -> None:
    answers = asyncio.run(_write_while_answers_are_lost(redis_server, recognises=True))
    assert answers == [True, Stored(1, b"1"), True, Stored(2, b"2"), None, None]


def test_the_control_otherwise_it_takes_itself_for_a_conflict(redis_server: RedisServer) -> None:
    answers = asyncio.run(_write_while_answers_are_lost(redis_server, recognises=False))
    assert answers[2] == Stored(2, b"2")


class Careless(Connections):
    """Reuses a connection whatever became of the question before."""

    async def ask(self, *command: Any) -> Any:
        connection = self._idle.pop() if self._idle else self._make()
        try:
            if not connection.is_connected:
                await connection.connect()
            await connection.send_packed_command(self._pack(command))
            return await connection.read_response(disable_decoding=True, disconnect_on_error=False)
        finally:
            self._idle.append(connection)


ROUNDS, READERS = 60, 24


async def _cancel_reads(server: RedisServer, kind: str) -> tuple[int, int, int]:
    """Reads that are cancelled while their answers are held up: how many were right, foreign, and refused."""
    handles = [f"h{number}" for number in range(READERS)]
    chance = random.Random(7)
    async with Proxy(server.port) as proxy:
        url = server.url.replace(f":{server.port}", f":{proxy.port}")
        client = Redis.from_url(url, socket_timeout=5)
        store = RedisStore(client if kind == "client" else url, timeout_s=5, breaker=NEVER)
        if kind.startswith("careless"):
            own = store._own
            assert own
            careless = Careless(own._make, pack=own._pack, most=50, answered=ResponseError)
            store._own, store._execute = careless, careless.ask
        if kind == "careless and trusting":
            store._stored = _whoever_it_is
        for handle in handles:
            await store.revoke(handle, ttl_s=0.001)
            await eventually(lambda handle=handle: _created(store, handle))
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
            answers = await asyncio.gather(*reads.values(), return_exceptions=True)
            for handle, answer in zip(handles, answers, strict=True):
                right += isinstance(answer, Stored) and answer.payload == handle.encode()
                foreign += answer is None or (
                    isinstance(answer, Stored) and answer.payload != handle.encode()
                )
                refused += isinstance(answer, SessionStoreError)
        await store.aclose()
        await client.aclose()
        return right, foreign, refused


async def _whoever_it_is(handle: str, value: bytes | None) -> Stored | None:
    return None if value is None else Stored(1, value[21:])


async def _created(store: RedisStore, handle: str) -> None:
    if not await store.create(handle, handle.encode(), ttl_s=600):
        raise SessionStoreError("not yet")


@pytest.mark.parametrize("kind", ["url", "client"])
def test_a_cancelled_read_never_leaves_its_answer_to_another(redis_server: RedisServer, kind: str) -> None:
    right, foreign, refused = asyncio.run(_cancel_reads(redis_server, kind))
    assert (foreign, refused) == (0, 0)
    assert right >= 3 * ROUNDS


def test_the_control_a_careless_pool_mixes_answers_up_and_no_foreign_session_is_served(
    redis_server: RedisServer,
) -> None:
    """The second guard: what is kept says whose it is."""
    _, foreign, refused = asyncio.run(_cancel_reads(redis_server, "careless"))
    assert foreign == 0
    assert refused > 0


def test_the_control_without_either_guard_foreign_sessions_are_served(redis_server: RedisServer) -> None:
    _, foreign, _ = asyncio.run(_cancel_reads(redis_server, "careless and trusting"))
    assert foreign > 0


def test_whoever_waits_in_line_waits_no_longer_than_the_timeout(redis_server: RedisServer) -> None:
    async def run() -> None:
        async with Proxy(redis_server.port) as proxy:
            url = redis_server.url.replace(f":{redis_server.port}", f":{proxy.port}")
            store = RedisStore(url, timeout_s=0.2, max_connections=1, breaker=NEVER)
            await eventually(lambda: store.read("a"))
            proxy.flowing.clear()
            for text in await asyncio.gather(*(told(store.read("a")) for _ in range(5))):
                assert "within 200 ms" in text
            proxy.flowing.set()
            assert await eventually(lambda: store.read("a")) is None
            await store.aclose()

    asyncio.run(run())


def test_whoever_is_cancelled_in_line_takes_nobodys_place(redis_server: RedisServer) -> None:
    async def run() -> None:
        async with Proxy(redis_server.port) as proxy:
            url = redis_server.url.replace(f":{redis_server.port}", f":{proxy.port}")
            store = RedisStore(url, timeout_s=5, max_connections=2, breaker=NEVER)
            for _ in range(20):
                proxy.flowing.clear()
                reads = [asyncio.ensure_future(store.read("a")) for _ in range(20)]
                await asyncio.sleep(0.005)
                for read in reads[::2]:
                    read.cancel()
                proxy.flowing.set()
                answers = await asyncio.gather(*reads, return_exceptions=True)
                assert answers[1::2] == [None] * 10
            assert proxy.most <= 4  # two, and two that were closed but not yet gone
            await store.aclose()

    asyncio.run(run())
