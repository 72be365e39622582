"""A session store in Redis 6.2 or newer, Valkey, or a cluster of either.

A read is one ``GET``, every script touches one key. A failover may lose the last acknowledged writes: a
session written, or revoked, just before may be as it was. No client can prevent that.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import secrets
import struct
import zlib
from collections.abc import Awaitable, Callable, Sequence
from importlib.resources import files
from typing import Any, Final

from tenfold.breaker import Breaker
from tenfold.errors import DependencyError, SessionStoreError, SettingsError
from tenfold.sessions.stores.store import StoredPayload, is_tls_error

try:
    from redis.asyncio import Redis
    from redis.asyncio.cluster import RedisCluster
    from redis.exceptions import (
        AuthenticationError,
        BusyLoadingError,
        NoPermissionError,
        NoScriptError,
        OutOfMemoryError,
        ReadOnlyError,
        RedisClusterException,
        RedisError,
        ResponseError,
    )

    from tenfold.redis_pool import RedisClient, RedisLoopError, RedisPool
except ImportError:
    raise DependencyError(
        "sessions in Redis need redis-py and hiredis: pip install 'tenfold[redis]'"
    ) from None

__all__ = ["RedisStore"]

MAX_MEMBERS: Final = 1000
# Kind, checksum of the handle, version, random id of the write: see replace.lua.
_HEADER = struct.Struct(">BIQ8s")
_PAYLOAD, _TOMBSTONE = 1, b"\x00"
_CLUSTER_BATCH = 50
STALL_S = 0.02  # a timeout noticed later than this was caused by our own event loop, not by the server

# Cause and remedy: the first kind that fits. The server's own texts are left out, they quote commands.
_REASONS: tuple[tuple[type[Exception], str], ...] = (
    (AuthenticationError, "refuses our password or user: compare its settings with the store's URL"),
    (RedisLoopError, "is used through a client of another event loop: give the store a URL"),
    (BusyLoadingError, "is still loading its data: try again later"),
    (ReadOnlyError, "is a replica: point the store at the primary, by a name that follows it"),
    (OutOfMemoryError, "is full: raise maxmemory"),
    (
        NoPermissionError,
        "does not let our user run GET, MGET, SET, EVAL and EVALSHA on these keys: grant them",
    ),
    (ResponseError, "does not accept a command: it has to be Redis 6.2 or newer, and the prefix ours alone"),
)

# Redis 6.2 replies ERR to a script whose command failed, with the cause within the text.
_SCRIPT_ERRORS = {"-OOM ": OutOfMemoryError, "-READONLY ": ReadOnlyError, "-NOPERM ": NoPermissionError}


class _Script:
    def __init__(self, name: str) -> None:
        self.text = files("tenfold.sessions.stores").joinpath(f"{name}.lua").read_bytes()
        self.digest = hashlib.sha1(self.text, usedforsecurity=False).hexdigest()  # its name in Redis


class RedisStore:
    """A :class:`tenfold.sessions.stores.store.Store` in Redis. With a URL, for any event loop.

    With a URL the store has connections of its own, which is also fastest; with a client it uses that
    client's, with its Sentinel or cluster, and its retries. On connections of its own, a command that fails
    with the connection is repeated once, within the same time; repeated writes recognise themselves. While
    Redis is down, a breaker refuses at once.

    Run Redis with ``maxmemory-policy noeviction``: under any other a full Redis evicts sessions, and the
    lists of a principal's sessions that ``logout_everywhere`` goes through.

    Args:
        server: ``redis://user:password@host:port/0``, ``rediss://…``, ``unix://…``; or a ``redis.asyncio``
            client, for one server or a cluster, without ``decode_responses``. The client stays open.
        prefix: of every key; no other program may use it.
        timeout_s: for a whole call: waiting for a connection, connecting, the command, its repetition. A
            timeout that fell into a stall of our own event loop is followed by one more attempt.
        max_connections: of the store's own; further calls wait in line.
        breaker: by default it opens after 3 failures in a row, for one to one and a half seconds.

    Raises:
        SettingsError: the URL is not one of a Redis, or the client decodes replies.
    """

    def __init__(
        self,
        server: str | Redis | RedisCluster,
        *,
        prefix: str = "tenfold:session:",
        timeout_s: float = 0.25,
        max_connections: int = 50,
        breaker: Breaker | None = None,
    ) -> None:
        self._prefix = prefix.encode(errors="surrogateescape")
        self._timeout_s = timeout_s
        self._breaker = breaker or Breaker(failures=3)
        self._pool: RedisPool | None = None
        self._is_cluster = isinstance(server, RedisCluster)
        self._execute: Callable[..., Awaitable[Any]]
        if isinstance(server, str):
            self._pool = RedisPool(server, max_connections=max_connections, connect_timeout_s=timeout_s)
            self._execute, options = self._pool.execute, self._pool.connection_options
        else:
            if server.get_encoder().decode_responses:
                raise SettingsError("sessions are bytes: give RedisStore a client without decode_responses")
            self._execute = RedisClient(server).execute
            options = server.connection_pool.connection_kwargs if isinstance(server, Redis) else {}
        self._name = _server_name(options)
        self._replace, self._add_member, self._members = map(_Script, ("replace", "add_member", "members"))

    async def read(self, handle: str) -> StoredPayload | None:
        """One ``GET``."""
        return await self._decode(handle, await self._call(self._execute, "GET", self._key(handle)))

    async def read_many(self, handles: Sequence[str]) -> list[StoredPayload | None]:
        """One ``MGET``; in a cluster, a ``GET`` each, since handles live in different slots."""
        if not handles:
            return []
        values = await self._call(self._get_many, [self._key(handle) for handle in handles])
        return [await self._decode(handle, value) for handle, value in zip(handles, values, strict=True)]

    async def create(self, handle: str, payload: bytes, *, ttl_s: float) -> bool:
        """``SET NX``; only if that is refused, a ``GET`` to recognise a repetition of this write."""
        key, value = self._key(handle), _encode(handle, 1, payload)
        if await self._call(self._execute, "SET", key, value, "NX", "PX", _milliseconds(ttl_s)) is not None:
            return True
        present = await self._call(self._execute, "GET", key)
        return present is not None and present[: _HEADER.size] == value[: _HEADER.size]

    async def replace(
        self, handle: str, payload: bytes, *, version: int, ttl_s: float
    ) -> bool | StoredPayload | None:
        """One script; on a conflict it returns the stored value."""
        expected, value = version.to_bytes(8, "big"), _encode(handle, version + 1, payload)
        result = await self._call(
            self._run, self._replace, self._key(handle), expected, value, _milliseconds(ttl_s)
        )
        return True if result == 1 else await self._decode(handle, result)

    async def revoke(self, handle: str, *, ttl_s: float) -> None:
        """``SET`` of a tombstone, one byte long."""
        await self._call(self._execute, "SET", self._key(handle), _TOMBSTONE, "PX", _milliseconds(ttl_s))

    async def add_member(
        self, group: str, handle: str, *, ttl_s: float, replacing: Sequence[str] = ()
    ) -> list[str]:
        """One script."""
        key, arguments = self._key("group:" + group), (handle, _milliseconds(ttl_s), MAX_MEMBERS)
        surplus = await self._call(self._run, self._add_member, key, *arguments, *replacing)
        return [member.decode() for member in surplus]

    async def members(self, group: str) -> list[str]:
        """One script; sorted by expiry, so oldest first where all live equally long."""
        found = await self._call(self._run, self._members, self._key("group:" + group))
        return [handle.decode() for handle in found]

    async def aclose(self) -> None:
        """Close the store's own connections."""
        if self._pool is not None:
            await self._pool.disconnect()

    def _key(self, name: str) -> bytes:
        return self._prefix + name.encode()

    async def _get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        if not self._is_cluster:
            values: list[bytes | None] = await self._execute("MGET", *keys)
            return values
        values = []
        for at in range(0, len(keys), _CLUSTER_BATCH):
            batch = keys[at : at + _CLUSTER_BATCH]
            values += await asyncio.gather(*(self._execute("GET", key) for key in batch))
        return values

    async def _run(self, script: _Script, key: bytes, *arguments: Any) -> Any:
        try:
            try:
                return await self._execute("EVALSHA", script.digest, 1, key, *arguments)
            except NoScriptError:  # a server that is new to us, or was restarted
                return await self._execute("EVAL", script.text, 1, key, *arguments)
        except ResponseError as error:
            for code, kind in _SCRIPT_ERRORS.items():
                if code in str(error):
                    raise kind from None
            raise

    async def _decode(self, handle: str, value: object) -> StoredPayload | None:
        """Decode a value; None for a tombstone. Whatever the connection does, never another's payload."""
        if value is None or value == _TOMBSTONE:
            return None
        if isinstance(value, bytes) and len(value) >= _HEADER.size:
            kind, checksum, version, _ = _HEADER.unpack_from(value)
            if kind == _PAYLOAD and checksum == zlib.crc32(handle.encode()):
                return StoredPayload(version, value[_HEADER.size :])
        if self._pool is not None:
            await self._pool.disconnect()
        raise SessionStoreError(
            f"{self._name} has something else in this session's place: give the store a prefix of its own"
        )

    async def _call(self, function: Callable[..., Awaitable[Any]], *arguments: Any) -> Any:
        """Call within the timeout and under the breaker; translate errors."""
        if (ticket := self._breaker.admit()) is None:
            raise SessionStoreError(
                f"{self._name} failed repeatedly: it is not asked for another {self._breaker.wait_s:.1f} s"
            )
        succeeded: bool | None = None
        try:
            try:
                async with asyncio.timeout(self._timeout_s) as timeout:
                    result = await function(*arguments)
            except TimeoutError:
                if not _is_stall(timeout):
                    raise
                # A reply that had arrived during the stall was discarded. Every call can be repeated.
                async with asyncio.timeout(self._timeout_s) as timeout:
                    result = await function(*arguments)
            succeeded = True
            return result
        except TimeoutError:
            succeeded = None if _is_stall(timeout) else False
            raise SessionStoreError(
                f"{self._name} did not answer within {self._timeout_s * 1000:.0f} ms: look at its load"
            ) from None
        except (RedisError, RedisClusterException, OSError) as error:
            succeeded = isinstance(error, ResponseError)
            raise SessionStoreError(f"{self._name} {_reason(error)}") from None
        finally:
            self._breaker.record(ticket, succeeded)


def _is_stall(timeout: asyncio.Timeout) -> bool:
    """Return whether a timeout was noticed late: our own event loop stood still, by a sync call, say."""
    when = timeout.when()
    return when is not None and asyncio.get_running_loop().time() - when > STALL_S


def _server_name(options: dict[str, Any]) -> str:
    """Where Redis is, without its password."""
    if "path" in options:
        return f"Redis at {options['path']}"
    return f"Redis at {options['host']}:{options.get('port', 6379)}" if "host" in options else "Redis"


def _reason(error: Exception) -> str:
    for kind, reason in _REASONS:
        if isinstance(error, kind):
            return reason
    if is_tls_error(error):
        return "and this client do not agree on TLS: compare certificate and host name with the store's URL"
    return f"cannot be reached ({type(error).__name__}): start it, or correct the store's URL"


def _encode(handle: str, version: int, payload: bytes) -> bytes:
    return _HEADER.pack(_PAYLOAD, zlib.crc32(handle.encode()), version, secrets.token_bytes(8)) + payload


def _milliseconds(ttl_s: float) -> int:
    return max(1, math.ceil(ttl_s * 1000))
