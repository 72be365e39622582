"""Sessions in Redis 6.2 or newer, Valkey, or a cluster of either.

A read is one ``GET``, every script touches one key. When Redis fails over it may lose what it acknowledged
last: a session written, or revoked, just before may be as it was. No client can mend that.
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
from tenfold.sessions.stores.connections import STALL_S, Connections, Timeouts
from tenfold.sessions.stores.store import Stored

try:
    from hiredis import pack_command
    from redis.asyncio import ConnectionPool, Redis
    from redis.asyncio.cluster import RedisCluster
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff
    from redis.exceptions import (
        AuthenticationError,
        BusyLoadingError,
        ConnectionError,
        NoPermissionError,
        NoScriptError,
        OutOfMemoryError,
        ReadOnlyError,
        RedisClusterException,
        RedisError,
        ResponseError,
    )
except ImportError:
    raise DependencyError(
        "sessions in Redis need redis-py and hiredis: pip install 'tenfold[redis]'"
    ) from None

__all__ = ["RedisStore"]

MOST_MEMBERS: Final = 1000
_HEAD = struct.Struct(
    ">BIQ8s"
)  # kind, checksum of the handle, version, a number of the write's own: see replace.lua
_KEPT, _TOMBSTONE = 1, b"\x00"
_CLUSTER_BATCH = 50

# Why, and what to do: the first kind that fits. The server's own texts are left out, they quote commands.
_REASONS: tuple[tuple[type[Exception], str], ...] = (
    (AuthenticationError, "refuses our password or user: compare its settings with the store's URL"),
    (BusyLoadingError, "is still loading its data: try again later"),
    (ReadOnlyError, "is a replica: point the store at the primary, by a name that follows it"),
    (OutOfMemoryError, "is full: raise maxmemory"),
    (
        NoPermissionError,
        "does not let our user run GET, MGET, SET, EVAL and EVALSHA on these keys: grant them",
    ),
    (ResponseError, "does not accept a command: it has to be Redis 6.2 or newer, and the prefix ours alone"),
)

# Redis 6.2 answers ERR to a script whose command failed, and says why within the text.
_WITHIN_SCRIPTS = {"-OOM ": OutOfMemoryError, "-READONLY ": ReadOnlyError, "-NOPERM ": NoPermissionError}


class _Script:
    def __init__(self, name: str) -> None:
        self.text = files("tenfold.sessions.stores").joinpath(f"{name}.lua").read_bytes()
        self.digest = hashlib.sha1(self.text, usedforsecurity=False).hexdigest()  # the name Redis gives it


class RedisStore:
    """A :class:`tenfold.sessions.stores.store.Store` in Redis. For one event loop at a time.

    With a URL the store keeps connections of its own, which is also fastest; with a client it uses that
    client's, with its Sentinel or cluster. What fails for a reason of the connection is repeated once, within
    the same time; repeated writes recognise themselves. While Redis is down, a breaker answers at once.

    Run Redis with ``maxmemory-policy noeviction``: under any other a full Redis forgets sessions, and the
    lists of a principal's sessions that ``logout_everywhere`` goes through.

    Args:
        server: ``redis://user:password@host:port/0``, ``rediss://…``, ``unix://…``; or a ``redis.asyncio``
            client, for one server or a cluster, without ``decode_responses``. It is not closed by us.
        prefix: of every key; nothing else may use it.
        timeout_s: for everything that one call does: waiting for a connection, connecting, asking, repeating.
        max_connections: how many connections of its own the store keeps; further calls wait in line.
        breaker: when to stop asking; by default after 3 failures in a row, for one to one and a half seconds.

    Raises:
        SettingsError: the URL is none, or the client decodes answers.
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
        self._prefix = prefix.encode()
        self._timeouts = Timeouts(timeout_s)
        self._breaker = breaker or Breaker(failures=3)
        self._own: Connections | None = None
        self._cluster = isinstance(server, RedisCluster)
        self._execute: Callable[..., Awaitable[Any]]
        if isinstance(server, str):
            pool = _pool(server, timeout_s)
            self._own = Connections(
                pool.make_connection,
                pack=pack_command,
                most=max_connections,
                answered=ResponseError,
                outdated=(ReadOnlyError,),
            )
            self._execute, self._name = self._own.ask, _name(pool.connection_kwargs)
        else:
            if server.get_encoder().decode_responses:
                raise SettingsError("sessions are bytes: give RedisStore a client without decode_responses")
            self._execute = server.execute_command
            self._name = _name(server.connection_pool.connection_kwargs if isinstance(server, Redis) else {})
        self._replace, self._enlist, self._members = map(_Script, ("replace", "enlist", "members"))

    async def read(self, handle: str) -> Stored | None:
        """One ``GET``."""
        return await self._stored(handle, await self._ask(self._execute, "GET", self._key(handle)))

    async def read_many(self, handles: Sequence[str]) -> list[Stored | None]:
        """One ``MGET``; in a cluster, a ``GET`` each, since handles live in different slots."""
        if not handles:
            return []
        values = await self._ask(self._get_many, [self._key(handle) for handle in handles])
        return [await self._stored(handle, value) for handle, value in zip(handles, values, strict=True)]

    async def create(self, handle: str, payload: bytes, *, ttl_s: float) -> bool:
        """``SET NX``; only when that is refused, a ``GET`` to see whether it was us, asking twice."""
        key, value = self._key(handle), _value(handle, 1, payload)
        if await self._ask(self._execute, "SET", key, value, "NX", "PX", _milliseconds(ttl_s)) is not None:
            return True
        kept = await self._ask(self._execute, "GET", key)
        return kept is not None and kept[: _HEAD.size] == value[: _HEAD.size]

    async def replace(
        self, handle: str, payload: bytes, *, version: int, ttl_s: float
    ) -> bool | Stored | None:
        """One script; on a conflict its answer brings what is kept."""
        expected, value = version.to_bytes(8, "big"), _value(handle, version + 1, payload)
        answer = await self._ask(
            self._run, self._replace, self._key(handle), expected, value, _milliseconds(ttl_s)
        )
        return True if answer == 1 else await self._stored(handle, answer)

    async def revoke(self, handle: str, *, ttl_s: float) -> None:
        """``SET`` of a tombstone, one byte long."""
        await self._ask(self._execute, "SET", self._key(handle), _TOMBSTONE, "PX", _milliseconds(ttl_s))

    async def enlist(
        self, group: str, handle: str, *, ttl_s: float, instead_of: Sequence[str] = ()
    ) -> list[str]:
        """One script."""
        key, arguments = self._key("group:" + group), (handle, _milliseconds(ttl_s), MOST_MEMBERS)
        surplus = await self._ask(self._run, self._enlist, key, *arguments, *instead_of)
        return [member.decode() for member in surplus]

    async def members(self, group: str) -> list[str]:
        """One script; sorted by when they expire, so oldest first where all live equally long."""
        found = await self._ask(self._run, self._members, self._key("group:" + group))
        return [handle.decode() for handle in found]

    async def aclose(self) -> None:
        """Closes the connections that the store made itself."""
        if self._own is not None:
            await self._own.renew()

    def _key(self, name: str) -> bytes:
        return self._prefix + name.encode()

    async def _get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        if not self._cluster:
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
            for code, kind in _WITHIN_SCRIPTS.items():
                if code in str(error):
                    raise kind from None
            raise

    async def _stored(self, handle: str, value: object) -> Stored | None:
        """Nothing for a tombstone; and whatever the connection may do, never another session's payload."""
        if value is None or value == _TOMBSTONE:
            return None
        if isinstance(value, bytes) and len(value) >= _HEAD.size:
            kind, checksum, version, _ = _HEAD.unpack_from(value)
            if kind == _KEPT and checksum == zlib.crc32(handle.encode()):
                return Stored(version, value[_HEAD.size :])
        if self._own is not None:
            await self._own.renew()
        raise SessionStoreError(
            f"{self._name} keeps something else in this session's place: give the store a prefix of its own"
        )

    async def _ask(self, call: Callable[..., Awaitable[Any]], *arguments: Any) -> Any:
        if (ticket := self._breaker.admit()) is None:
            raise SessionStoreError(
                f"{self._name} failed repeatedly: it is not asked for another {self._breaker.wait_s:.1f} s"
            )
        succeeded: bool | None = None
        limit = self._timeouts.limit()
        try:
            with limit:
                answer = await self._twice(call, arguments)
            succeeded = True
            return answer
        except TimeoutError:
            succeeded = None if (limit.late_s or 0) > STALL_S else False
            raise SessionStoreError(
                f"{self._name} did not answer within {self._timeouts.seconds * 1000:.0f} ms: look at its load"
            ) from None
        except (RedisError, RedisClusterException, OSError) as error:
            succeeded = isinstance(error, ResponseError)
            raise SessionStoreError(f"{self._name} {_reason(error)}") from None
        finally:
            self._breaker.settle(ticket, succeeded)

    async def _twice(self, call: Callable[..., Awaitable[Any]], arguments: tuple[Any, ...]) -> Any:
        """A connection may have ended since its last use, or its server become a replica: once more."""
        try:
            return await call(*arguments)
        except (ConnectionError, ReadOnlyError) as error:
            if isinstance(error, AuthenticationError | BusyLoadingError):
                raise
            if self._own is not None:
                await self._own.renew()
            return await call(*arguments)


def _pool(url: str, timeout_s: float) -> ConnectionPool:
    """How to connect. The store's own timeout covers reads and writes, redis-py would add a task to each."""
    try:
        return ConnectionPool.from_url(
            url,
            protocol=2,  # with RESP3 the server could speak first
            socket_timeout=None,
            socket_connect_timeout=timeout_s,
            retry=Retry(NoBackoff(), 0),
        )
    except ValueError:
        raise SettingsError(
            "RedisStore was given no URL of a Redis: write redis://user:password@host:port/0"
        ) from None


def _name(connection: dict[str, Any]) -> str:
    """Where Redis is, without its password."""
    if "path" in connection:
        return f"Redis at {connection['path']}"
    return (
        f"Redis at {connection['host']}:{connection.get('port', 6379)}" if "host" in connection else "Redis"
    )


def _reason(error: Exception) -> str:
    for kind, reason in _REASONS:
        if isinstance(error, kind):
            return reason
    return f"cannot be reached ({type(error).__name__}): start it, or correct the store's URL"


def _value(handle: str, version: int, payload: bytes) -> bytes:
    return _HEAD.pack(_KEPT, zlib.crc32(handle.encode()), version, secrets.token_bytes(8)) + payload


def _milliseconds(ttl_s: float) -> int:
    return max(1, math.ceil(ttl_s * 1000))
