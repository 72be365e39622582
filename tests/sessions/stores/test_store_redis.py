"""What a store in Redis does when Redis is down, paused, full, not ours, or cut off within an answer."""

from __future__ import annotations

import asyncio
import signal
import time

import pytest
from redis.asyncio import Redis

from tenfold.breaker import Breaker
from tenfold.errors import SettingsError
from tenfold.sessions.stores.redis import RedisStore
from tenfold.sessions.stores.store import Stored
from tests.sessions.support.asking import NEVER, eventually, told
from tests.sessions.support.session_servers import RedisServer

# ------------------------------------------------------------------ what it costs


def test_what_is_asked_of_redis(own_redis: RedisServer) -> None:
    """A read is one GET and nothing else; the commands within a script are counted by Redis too."""

    async def run() -> list[dict[str, int]]:
        store = RedisStore(own_redis.url, timeout_s=5)
        await store.create("warm", b"", ttl_s=60)
        await store.replace("warm", b"", version=1, ttl_s=60)
        await store.enlist("group", "warm", ttl_s=60)
        await store.members("group")
        counted = []
        for call in (
            lambda: store.create("a", b"1", ttl_s=60),
            lambda: store.read("a"),
            lambda: store.read_many(["a", "b", "c"]),
            lambda: store.replace("a", b"2", version=1, ttl_s=60),
            lambda: store.replace("a", b"3", version=1, ttl_s=60),
            lambda: store.members("group"),
            lambda: store.revoke("a", ttl_s=60),
        ):
            own_redis.command("CONFIG", "RESETSTAT")
            await call()
            counted.append(own_redis.calls())
        await store.aclose()
        return counted

    assert asyncio.run(run()) == [
        {"set": 1},
        {"get": 1},
        {"mget": 1},
        {"evalsha": 1, "get": 1, "set": 1},
        {"evalsha": 1, "get": 1},
        {"evalsha": 1, "time": 1, "zrangebyscore": 1},
        {"set": 1},
    ]


def test_nothing_is_kept_for_ever(own_redis: RedisServer) -> None:
    async def run() -> None:
        store = RedisStore(own_redis.url, timeout_s=5)
        await store.create("kept", b"1", ttl_s=60)
        await store.replace("kept", b"2", version=1, ttl_s=60)
        await store.revoke("gone", ttl_s=60)
        await store.enlist("group", "kept", ttl_s=60)
        await store.enlist("group", "gone", ttl_s=30)
        await store.aclose()

    asyncio.run(run())
    for key in ("kept", "gone", "group:group"):
        left = int(own_redis.command("PTTL", f"tenfold:session:{key}").removeprefix(b":"))
        assert 50_000 < left <= 60_000, key


# ------------------------------------------------------------------ faults


def test_a_killed_redis_is_an_error_and_an_empty_one_is_not(own_redis: RedisServer) -> None:
    async def run() -> None:
        store = RedisStore(own_redis.url, timeout_s=5, breaker=Breaker(failures=3, cool_down_s=0.05))
        await store.create("a", b"1", ttl_s=60)
        await store.replace("a", b"2", version=1, ttl_s=60)
        own_redis.kill()
        for call in (
            store.read("a"),
            store.create("b", b"", ttl_s=60),
            store.revoke("a", ttl_s=60),
            store.members("group"),
        ):
            text = await told(call)
            assert "cannot be reached" in text or "failed repeatedly" in text
            assert own_redis.password not in text
        own_redis.start()
        assert await eventually(lambda: store.read("a")) is None
        # Its scripts are gone as well.
        assert await store.create("a", b"1", ttl_s=60)
        assert await store.replace("a", b"2", version=1, ttl_s=60) is True
        await store.aclose()

    asyncio.run(run())


def test_a_restart_between_two_calls_is_not_noticed(own_redis: RedisServer) -> None:
    """Connections that ended meanwhile, several of them, are replaced without an error."""

    async def run() -> None:
        store = RedisStore(own_redis.url, timeout_s=5, breaker=NEVER)
        await asyncio.gather(*(store.read("a") for _ in range(10)))
        own_redis.kill()
        own_redis.start()
        assert await asyncio.gather(*(store.read("a") for _ in range(10))) == [None] * 10
        await store.aclose()

    asyncio.run(run())


async def _ask_a_paused_one(server: RedisServer, breaker: Breaker) -> list[str]:
    store = RedisStore(server.url, timeout_s=0.1, breaker=breaker)
    await eventually(lambda: store.create("a", b"1", ttl_s=60))
    server.signal(signal.SIGSTOP)
    try:
        texts = [await told(store.read("a")) for _ in range(8)]
    finally:
        server.signal(signal.SIGCONT)
    assert await eventually(lambda: store.read("a")) == Stored(1, b"1")
    await store.aclose()
    return texts


def test_a_paused_redis_costs_the_timeout_three_times(own_redis: RedisServer) -> None:
    texts = asyncio.run(_ask_a_paused_one(own_redis, Breaker(failures=3, cool_down_s=1.0)))
    assert ["within 100 ms" in text for text in texts] == [True] * 3 + [False] * 5
    assert all("not asked for another" in text for text in texts[3:])


def test_the_control_without_a_breaker_it_costs_it_every_time(own_redis: RedisServer) -> None:
    texts = asyncio.run(_ask_a_paused_one(own_redis, Breaker(failures=10**9, ratio=2)))
    assert all("within 100 ms" in text for text in texts)


def test_a_blocked_event_loop_is_not_taken_for_a_dead_redis(redis_server: RedisServer) -> None:
    async def run() -> None:
        breaker = Breaker(failures=1, cool_down_s=60)
        store = RedisStore(redis_server.url, timeout_s=0.3, breaker=breaker)
        await store.read("a")
        for _ in range(3):
            reading = asyncio.ensure_future(store.read("a"))
            await asyncio.sleep(0)
            time.sleep(0.4)
            await asyncio.gather(reading, return_exceptions=True)
            assert breaker.closed
        await store.aclose()

    asyncio.run(run())


def test_a_full_redis_still_reads(own_redis: RedisServer) -> None:
    async def run() -> None:
        breaker = Breaker(failures=1, cool_down_s=60)
        store = RedisStore(own_redis.url, timeout_s=5, breaker=breaker)
        await store.create("a", b"1", ttl_s=60)
        own_redis.command("CONFIG", "SET", "maxmemory", "1")
        assert "is full" in await told(store.create("b", bytes(1000), ttl_s=60))
        assert "is full" in await told(store.replace("a", bytes(1000), version=1, ttl_s=60))
        assert await store.read("a") == Stored(1, b"1")
        assert breaker.closed
        await store.aclose()

    asyncio.run(run())


def test_a_primary_that_became_a_replica_is_left(own_redis: RedisServer, redis_server: RedisServer) -> None:
    async def run() -> None:
        store = RedisStore(own_redis.url, timeout_s=5, breaker=NEVER)
        await store.create("a", b"1", ttl_s=60)
        own_redis.command("REPLICAOF", "127.0.0.1", "1")
        assert "is a replica" in await told(store.revoke("a", ttl_s=60))
        own_redis.command("REPLICAOF", "NO", "ONE")
        await store.revoke("a", ttl_s=60)
        assert await store.read("a") is None
        await store.aclose()

    asyncio.run(run())


@pytest.mark.parametrize("client", [False, True])
def test_a_wrong_password_is_said_and_not_shown(redis_server: RedisServer, client: bool) -> None:
    async def run() -> str:
        url = redis_server.url.replace(redis_server.password, "not-the-password")
        store = RedisStore(Redis.from_url(url) if client else url, timeout_s=2)
        try:
            return await told(store.read("a"))
        finally:
            await store.aclose()

    text = asyncio.run(run())
    assert "refuses our password" in text
    assert "not-the-password" not in text


# What a server says, whether it counts as down, and what we say.
SAID = [
    (b"-LOADING Redis is loading the dataset in memory", True, "is still loading"),
    (b"-NOAUTH Authentication required.", True, "refuses our password"),
    (b"-ERR max number of clients reached", True, "cannot be reached"),
    (b"-NOPERM this user has no permissions to run the 'get' command", False, "grant them"),
    (b"-OOM command not allowed when used memory > 'maxmemory'.", False, "is full"),
    (b"-READONLY You can't write against a read only replica.", False, "is a replica"),
    (b"-CLUSTERDOWN The cluster is down", False, "does not accept"),
    (
        b"-ERR unknown command `GET`, with args: `tenfold:session:a`, ",
        False,
        "does not accept",
    ),
    (b"-WRONGTYPE Operation against a key holding the wrong kind of value", False, "does not accept"),
    (b"HTTP/1.1 400 Bad Request", True, "cannot be reached"),
    (b":1", False, "keeps something else"),
    (b"$3\r\nabc", False, "keeps something else"),
    (b"*0", False, "keeps something else"),
]


@pytest.mark.parametrize(("answer", "down", "sentence"), SAID, ids=[row[0].decode()[:12] for row in SAID])
def test_whatever_the_server_says_is_one_sentence(answer: bytes, down: bool, sentence: str) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while received := await reader.read(4096):
            for _ in range(received.count(b"*")):  # one for each command: a client may send several at once
                writer.write((b"+OK" if b"SETINFO" in received else answer) + b"\r\n")
        writer.close()

    async def run() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        breaker = Breaker(failures=1, ratio=2, cool_down_s=60)
        port = server.sockets[0].getsockname()[1]
        store = RedisStore(f"redis://127.0.0.1:{port}/0", timeout_s=5, breaker=breaker)
        text = await told(store.read("a"))
        assert sentence in text
        assert "tenfold:session" not in text
        assert breaker.closed is not down
        await store.aclose()
        server.close()

    asyncio.run(run())


def test_what_somebody_else_keeps_there_is_an_error(redis_server: RedisServer) -> None:
    async def run() -> None:
        store = RedisStore(redis_server.url, timeout_s=5)
        redis_server.command("SET", "tenfold:session:theirs", "x" * 100)
        assert "a prefix of its own" in await told(store.read("theirs"))
        assert await store.replace("theirs", b"", version=1, ttl_s=60) is None
        assert not await store.create("theirs", b"", ttl_s=60)
        await store.aclose()

    asyncio.run(run())


@pytest.mark.parametrize(
    "server", ["localhost:6379", "http://localhost", "", "redis://localhost/not-a-number?db=x"]
)
def test_what_is_no_url_is_refused(server: str) -> None:
    with pytest.raises(SettingsError, match=r"redis://user:password@host:port/0"):
        RedisStore(server)


def test_a_client_that_decodes_is_refused() -> None:
    with pytest.raises(SettingsError, match="without decode_responses"):
        RedisStore(Redis(decode_responses=True))


def test_a_store_outlives_an_event_loop(redis_server: RedisServer) -> None:
    """Test clients run an app in one loop after another."""
    store = RedisStore(redis_server.url, timeout_s=5, max_connections=1)

    async def run() -> list[Stored | None]:
        return await asyncio.gather(*(store.read("nobody") for _ in range(3)))

    assert [asyncio.run(run()) for _ in range(3)] == [[None] * 3] * 3
    asyncio.run(store.aclose())
