"""Every way to reach a Redis: unix socket, TLS, cluster, Sentinel, and clients of the caller's own."""

from __future__ import annotations

import asyncio
import datetime
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import redis.asyncio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tenfold.caching import QueryCache
from tenfold.errors import SettingsError
from tests.support.servers import RedisServer, form_cluster, free_port
from tests.support.waiting import eventually


def use(server: Any, *, listens: bool = True, kinds: tuple[str, ...] = ("sync", "async")) -> None:
    """Cache, hit, invalidate and hit the memory tier over a server, in both colours."""
    cache = QueryCache(server, metrics=False, prefix="kinds:", timeout_s=1.0)
    loads = 0

    @cache.query(ttl=60, tags=["one", "two:{number}"], name="sync")
    def read(number: int) -> int:
        nonlocal loads
        loads += 1
        return loads

    @cache.query(ttl=60, tags=["one", "two:{number}"], name="async")
    async def read_async(number: int) -> int:
        nonlocal loads
        loads += 1
        return loads

    async def main() -> list[int]:
        found = [await read_async(1), await read_async(1)]
        await cache.ainvalidate("one")
        found += [await read_async(1), await read_async(1)]
        await cache.aclose()
        return found

    try:
        if "sync" in kinds:
            assert [read(1), read(1)] == [1, 1]
            cache.invalidate("two:1")
            assert [read(1), read(1)] == [2, 2]
            assert all(cache.get_or_load(number, lambda: 7) == 7 for number in range(20))
            if listens:
                eventually(lambda: read(1) == 2 and cache.explain(read, 1)["in_memory"])
                other = QueryCache(server, metrics=False, prefix="kinds:", timeout_s=1.0)
                other.invalidate("one")
                other.close()
                eventually(lambda: read(1) == 3, within_s=5)
        if "async" in kinds:
            loads = 0
            assert asyncio.run(main()) == [1, 1, 2, 2]
        assert not [outcomes for outcomes in cache.stats().values() if "error" in outcomes], cache.stats()
    finally:
        cache.close()


def test_unix_socket(redis_program: Path, tmp_path: Path) -> None:
    server = RedisServer(redis_program, "--unixsocket", f"{tmp_path}/redis.sock")
    try:
        use(f"unix://:{server.password}@{tmp_path}/redis.sock?db=1")
    finally:
        server.close()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 and its key."""
    import ipaddress

    folder, key = tmp_path_factory.mktemp("tls"), ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / "server.crt").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (folder / "server.key").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return folder / "server.crt", folder / "server.key"


def test_tls(redis_program: Path, certificate: tuple[Path, Path]) -> None:
    """A proxy with TLS in front: neither wheel's server is built with it."""
    import ssl

    server = RedisServer(redis_program)
    port = free_port()

    async def serve(ready: Callable[[], object]) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate)

        async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
            writer.close()

        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            there, back = await asyncio.open_connection("127.0.0.1", server.port)
            await asyncio.gather(pump(reader, back), pump(there, writer), return_exceptions=True)

        async with await asyncio.start_server(handle, "127.0.0.1", port, ssl=context):
            await asyncio.to_thread(ready)

    try:
        url = f"rediss://:{server.password}@127.0.0.1:{port}/0?ssl_ca_certs={certificate[0]}"
        asyncio.run(serve(lambda: use(url)))
    finally:
        server.close()


@pytest.fixture
def cluster(redis_program: Path) -> Iterator[list[RedisServer]]:
    options = [
        "--cluster-enabled",
        "yes",
        "--cluster-node-timeout",
        "2000",
        "--cluster-announce-ip",
        "127.0.0.1",
    ]
    nodes: list[RedisServer] = []
    try:
        for _ in range(2):
            nodes.append(RedisServer(redis_program, *options, password="p" * 32))
        form_cluster(nodes)
        yield nodes
    finally:
        for node in nodes:
            node.close()


def test_cluster(cluster: list[RedisServer]) -> None:
    use(f"redis+cluster://:{'p' * 32}@127.0.0.1:{cluster[0].port}")
    spread = [int(node.command("DBSIZE").lstrip(b":")) for node in cluster]
    assert sum(size > 0 for size in spread) > 1, "entries and tags are on several nodes"


def test_cluster_client_of_ones_own(cluster: list[RedisServer]) -> None:
    client = redis.RedisCluster("127.0.0.1", cluster[0].port, password="p" * 32)
    use(client, listens=False, kinds=("sync",))
    client.close()


@pytest.fixture
def sentinel(redis_program: Path, tmp_path: Path) -> Iterator[tuple[RedisServer, RedisServer, int]]:
    """A primary, its replica, and one Sentinel that decides alone."""
    primary = RedisServer(redis_program, password="p" * 32)
    replica = RedisServer(
        redis_program, "--replicaof", "127.0.0.1", str(primary.port), "--masterauth", "p" * 32, password="p" *
        32
    )  # fmt: skip
    port = free_port()
    (tmp_path / "sentinel.conf").write_text(
        f"port {port}\nbind 127.0.0.1\nsentinel monitor shop 127.0.0.1 {primary.port} 1\n"
        f"sentinel auth-pass shop {'p' * 32}\nsentinel down-after-milliseconds shop 500\n"
        "sentinel failover-timeout shop 2000\n"
    )
    process = subprocess.Popen(
        [redis_program, tmp_path / "sentinel.conf", "--sentinel"],
        stdout=subprocess.DEVNULL, cwd=tmp_path, start_new_session=True,
    )  # fmt: skip
    client = redis.Redis(port=port)
    try:
        eventually(
            lambda: (
                b"link:up" in replica.raw_reply("INFO", "replication").replace(b"master_link_status", b"link")
            )
        )
        eventually(lambda: knows_replica(client))
        yield primary, replica, port
    finally:
        client.close()
        process.kill()
        process.wait(10)
        primary.close()
        replica.close()


def knows_replica(client: redis.Redis) -> bool:
    try:
        return bool(client.execute_command("SENTINEL", "REPLICAS", "shop"))
    except redis.RedisError:
        return False


def test_sentinel_failover(sentinel: tuple[RedisServer, RedisServer, int]) -> None:
    primary, _, port = sentinel
    url = f"redis+sentinel://:{'p' * 32}@127.0.0.1:{port}/shop/0"
    use(url)
    cache = QueryCache(url, metrics=False, prefix="failover:")
    source = [0]

    @cache.query(ttl=60, tags=["t"])
    def read() -> int:
        return source[0]

    try:
        assert read() == 0
        primary.kill()
        source[0] = 1
        cache.invalidate("t")  # lost on the way, and repeated
        eventually(lambda: read() == 1 and cache.explain(read)["in_memory"], within_s=20)
        assert [read() for _ in range(5)] == [1] * 5
    finally:
        cache.close()
        primary.start()


def test_clients_of_ones_own(redis_server: RedisServer) -> None:
    client = redis.Redis.from_url(redis_server.url)
    client.flushall()
    use(client, listens=False, kinds=("sync",))
    cache = QueryCache(client, metrics=False)

    async def load() -> int:
        return 1

    async def wrong() -> int:
        return await cache.get_or_load("a", load)

    with pytest.raises(SettingsError, match="has a client for threads: give QueryCache a URL"):
        asyncio.run(wrong())
    client.close()
    own = redis.asyncio.Redis.from_url(redis_server.url)
    use(own, listens=False, kinds=("async",))
    with pytest.raises(SettingsError, match=r"has a client of redis\.asyncio: give QueryCache a URL"):
        QueryCache(own, metrics=False, timeout_s=1.0).get_or_load("a", lambda: 1)
