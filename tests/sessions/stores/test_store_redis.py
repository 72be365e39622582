"""RedisStore with a Redis that is down, paused, full, foreign or cut off within a reply."""

from __future__ import annotations

import asyncio
import math
import signal
import ssl
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from redis.asyncio import Redis

from tenfold.breaker import Breaker
from tenfold.errors import SessionStoreError, SettingsError
from tenfold.sessions.stores.redis import RedisStore
from tenfold.sessions.stores.store import StoredPayload
from tests.sessions.support.calls import NEVER_OPENS, error_text, succeeds_eventually
from tests.support.servers import RedisServer

# ------------------------------------------------------------------ commands


@pytest.mark.guarantee("a read is one GET", pattern="stores", control="the same table's other methods")
def test_commands_sent_to_redis(own_redis: RedisServer) -> None:
    """A read is one GET and nothing else; the commands within a script are counted by Redis too."""

    async def run() -> list[dict[str, int]]:
        store = RedisStore(own_redis.url, timeout_s=5)
        await store.create("warm", b"", ttl_s=60)
        await store.replace("warm", b"", version=1, ttl_s=60)
        await store.add_member("group", "warm", ttl_s=60)
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


@pytest.mark.guarantee("every key and row has a lifetime", pattern="stores")
def test_every_key_has_a_lifetime(own_redis: RedisServer) -> None:
    async def run() -> None:
        store = RedisStore(own_redis.url, timeout_s=5)
        await store.create("kept", b"1", ttl_s=60)
        await store.replace("kept", b"2", version=1, ttl_s=60)
        await store.revoke("gone", ttl_s=60)
        await store.add_member("group", "kept", ttl_s=60)
        await store.add_member("group", "gone", ttl_s=30)
        await store.aclose()

    asyncio.run(run())
    for key in ("kept", "gone", "group:group"):
        left = int(own_redis.command("PTTL", f"tenfold:session:{key}").removeprefix(b":"))
        assert 50_000 < left <= 60_000, key


# ------------------------------------------------------------------ faults


@pytest.mark.guarantee(
    "every failure is one error without secrets, and ends when the server is back",
    pattern="stores",
    under="kill -9, restart, a full or demoted Redis, wrong password, an exhausted pool, missing tables",
    control="the same tests read and write before and after",
)
def test_killed_redis_is_an_error_and_a_restarted_one_is_empty(own_redis: RedisServer) -> None:
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
            text = await error_text(call)
            assert "cannot be reached" in text or "failed repeatedly" in text
            assert own_redis.password not in text
        own_redis.start()
        assert await succeeds_eventually(lambda: store.read("a")) is None
        # Its scripts are gone as well.
        assert await store.create("a", b"1", ttl_s=60)
        assert await store.replace("a", b"2", version=1, ttl_s=60) is True
        await store.aclose()

    asyncio.run(run())


def test_restart_between_two_calls_causes_no_error(own_redis: RedisServer) -> None:
    """Several connections that ended meanwhile are replaced."""

    async def run() -> None:
        store = RedisStore(own_redis.url, timeout_s=5, breaker=NEVER_OPENS)
        await asyncio.gather(*(store.read("a") for _ in range(10)))
        own_redis.kill()
        own_redis.start()
        assert await asyncio.gather(*(store.read("a") for _ in range(10))) == [None] * 10
        await store.aclose()

    asyncio.run(run())


async def _read_from_paused_redis(server: RedisServer, breaker: Breaker) -> list[str]:
    store = RedisStore(server.url, timeout_s=0.1, breaker=breaker)
    await succeeds_eventually(lambda: store.create("a", b"1", ttl_s=60))
    server.signal(signal.SIGSTOP)
    try:
        texts = [await error_text(store.read("a")) for _ in range(8)]
    finally:
        server.signal(signal.SIGCONT)
    assert await succeeds_eventually(lambda: store.read("a")) == StoredPayload(1, b"1")
    await store.aclose()
    return texts


@pytest.mark.guarantee(
    "a paused store costs its timeout three times, then nothing",
    pattern="stores",
    under="SIGSTOP of Redis, of PostgreSQL",
)
def test_paused_redis_costs_the_timeout_three_times(own_redis: RedisServer) -> None:
    texts = asyncio.run(_read_from_paused_redis(own_redis, Breaker(failures=3, cool_down_s=1.0)))
    assert ["within 100 ms" in text for text in texts] == [True] * 3 + [False] * 5
    assert all("not asked for another" in text for text in texts[3:])


@pytest.mark.control("a paused store costs its timeout three times, then nothing")
def test_the_control_without_a_breaker_every_call_costs_the_timeout(own_redis: RedisServer) -> None:
    texts = asyncio.run(_read_from_paused_redis(own_redis, Breaker(failures=10**9, ratio=2)))
    assert all("within 100 ms" in text for text in texts)


@pytest.mark.guarantee("a stalled event loop is not taken for a dead Redis: the call is repeated")
def test_stalled_event_loop_does_not_open_the_breaker(redis_server: RedisServer) -> None:
    async def run() -> None:
        breaker = Breaker(failures=1, cool_down_s=60)
        store = RedisStore(redis_server.url, timeout_s=0.3, breaker=breaker)
        await store.read("a")
        for _ in range(3):
            reading = asyncio.ensure_future(store.read("a"))
            await asyncio.sleep(0)
            time.sleep(0.4)
            await asyncio.gather(reading, return_exceptions=True)
            assert breaker.is_closed
        await store.aclose()

    asyncio.run(run())


async def _read_across_a_stall(server: RedisServer) -> object:
    """Stall the event loop for longer than the timeout while a read waits for its reply."""
    store = RedisStore(server.url, timeout_s=0.3, breaker=Breaker(failures=1, cool_down_s=60))
    await store.create("stalled", b"1", ttl_s=60)
    reading = asyncio.ensure_future(store.read("stalled"))
    await asyncio.sleep(0)
    time.sleep(0.4)
    try:
        return await reading
    finally:
        await store.aclose()


@pytest.mark.guarantee(
    "a stalled event loop is not taken for a dead Redis: the call is repeated",
    pattern="stores",
    under="a sync call of 0.4 s with a timeout of 0.3 s",
)
def test_call_interrupted_by_a_stalled_event_loop_is_repeated(own_redis: RedisServer) -> None:
    assert asyncio.run(_read_across_a_stall(own_redis)) == StoredPayload(1, b"1")


@pytest.mark.control("a stalled event loop is not taken for a dead Redis: the call is repeated")
def test_the_control_without_stall_detection_it_times_out(
    own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tenfold.sessions.stores.redis.STALL_S", math.inf)
    with pytest.raises(SessionStoreError, match="within 300 ms"):
        asyncio.run(_read_across_a_stall(own_redis))


def test_full_redis_still_reads(own_redis: RedisServer) -> None:
    async def run() -> None:
        breaker = Breaker(failures=1, cool_down_s=60)
        store = RedisStore(own_redis.url, timeout_s=5, breaker=breaker)
        await store.create("a", b"1", ttl_s=60)
        own_redis.command("CONFIG", "SET", "maxmemory", "1")
        assert "is full" in await error_text(store.create("b", bytes(1000), ttl_s=60))
        assert "is full" in await error_text(store.replace("a", bytes(1000), version=1, ttl_s=60))
        assert await store.read("a") == StoredPayload(1, b"1")
        assert breaker.is_closed
        await store.aclose()

    asyncio.run(run())


def test_connections_to_a_demoted_primary_are_replaced(
    own_redis: RedisServer, redis_server: RedisServer
) -> None:
    async def run() -> None:
        store = RedisStore(own_redis.url, timeout_s=5, breaker=NEVER_OPENS)
        await store.create("a", b"1", ttl_s=60)
        own_redis.command("REPLICAOF", "127.0.0.1", "1")
        assert "is a replica" in await error_text(store.revoke("a", ttl_s=60))
        own_redis.command("REPLICAOF", "NO", "ONE")
        await store.revoke("a", ttl_s=60)
        assert await store.read("a") is None
        await store.aclose()

    asyncio.run(run())


@pytest.mark.parametrize("client", [False, True])
def test_wrong_password_is_reported_and_not_shown(redis_server: RedisServer, client: bool) -> None:
    async def run() -> str:
        url = redis_server.url.replace(redis_server.password, "not-the-password")
        store = RedisStore(Redis.from_url(url) if client else url, timeout_s=2)
        try:
            return await error_text(store.read("a"))
        finally:
            await store.aclose()

    text = asyncio.run(run())
    assert "refuses our password" in text
    assert "not-the-password" not in text


def test_certificate_that_is_not_trusted_is_named(tmp_path: Path) -> None:
    async def run() -> str:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self_signed_certificate(tmp_path))
        server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0, ssl=context)
        store = RedisStore(f"rediss://:pw@127.0.0.1:{server.sockets[0].getsockname()[1]}/0", timeout_s=5)
        try:
            return await error_text(store.read("a"))
        finally:
            await store.aclose()
            server.close()

    assert "do not agree on TLS: compare certificate" in asyncio.run(run())


def self_signed_certificate(folder: Path) -> Path:
    """Write a certificate and its key into one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    made = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    made = made.serial_number(1).not_valid_before(now).not_valid_after(now + timedelta(days=1))
    signed = made.sign(key, hashes.SHA256())
    text = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    file = folder / "server.pem"
    file.write_bytes(text + signed.public_bytes(Encoding.PEM))
    return file


# A server's reply, whether it counts as a failure, and the error message.
REPLIES = [
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
    (b":1", False, "has something else"),
    (b"$3\r\nabc", False, "has something else"),
    (b"*0", False, "has something else"),
]


@pytest.mark.guarantee("every failure is one error without secrets, and ends when the server is back")
@pytest.mark.parametrize(
    ("reply", "down", "sentence"), REPLIES, ids=[row[0].decode()[:12] for row in REPLIES]
)
def test_every_server_error_is_one_sentence(reply: bytes, down: bool, sentence: str) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while received := await reader.read(4096):
            for _ in range(received.count(b"*")):  # a client may send several commands at once
                writer.write((b"+OK" if b"SETINFO" in received else reply) + b"\r\n")
        writer.close()

    async def run() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        breaker = Breaker(failures=1, ratio=2, cool_down_s=60)
        port = server.sockets[0].getsockname()[1]
        store = RedisStore(f"redis://127.0.0.1:{port}/0", timeout_s=5, breaker=breaker)
        text = await error_text(store.read("a"))
        assert sentence in text
        assert "tenfold:session" not in text
        assert breaker.is_closed is not down
        await store.aclose()
        server.close()

    asyncio.run(run())


def test_foreign_value_under_a_handle_is_an_error(redis_server: RedisServer) -> None:
    async def run() -> None:
        store = RedisStore(redis_server.url, timeout_s=5)
        redis_server.command("SET", "tenfold:session:theirs", "x" * 100)
        assert "a prefix of its own" in await error_text(store.read("theirs"))
        assert await store.replace("theirs", b"", version=1, ttl_s=60) is None
        assert not await store.create("theirs", b"", ttl_s=60)
        await store.aclose()

    asyncio.run(run())


@pytest.mark.parametrize(
    "server", ["localhost:6379", "http://localhost", "", "redis://localhost/not-a-number?db=x"]
)
def test_invalid_url_is_refused(server: str) -> None:
    with pytest.raises(SettingsError, match=r"redis://user:password@host:port/0"):
        RedisStore(server)


def test_client_that_decodes_replies_is_refused() -> None:
    with pytest.raises(SettingsError, match="without decode_responses"):
        RedisStore(Redis(decode_responses=True))


def test_store_works_in_several_event_loops(redis_server: RedisServer) -> None:
    """Test clients run an app in one loop after another."""
    store = RedisStore(redis_server.url, timeout_s=5, max_connections=1)

    async def run() -> list[StoredPayload | None]:
        return await asyncio.gather(*(store.read("unknown") for _ in range(3)))

    assert [asyncio.run(run()) for _ in range(3)] == [[None] * 3] * 3
    asyncio.run(store.aclose())


def test_client_follows_its_caller_to_another_event_loop(redis_server: RedisServer) -> None:
    store = RedisStore(Redis.from_url(redis_server.url), timeout_s=5)
    assert [asyncio.run(store.read("unknown")) for _ in range(4)] == [None] * 4


def test_several_event_loops_at_once_share_a_store(redis_server: RedisServer) -> None:
    store = RedisStore(redis_server.url, timeout_s=5, max_connections=1)

    async def run() -> list[StoredPayload | None]:
        return await asyncio.gather(*(store.read("unknown") for _ in range(20)))

    with ThreadPoolExecutor(3) as threads:
        assert list(threads.map(lambda _: asyncio.run(run()), range(3))) == [[None] * 20] * 3
