"""Commands to Redis 6.2 or newer, Valkey, Sentinel or a cluster: by URL for threads and every event loop.

No call takes longer than ``timeout_s``, none is retried, and a breaker stops calls to a server that is down:
a cache that waits is worse than none.
"""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Sequence
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit
from weakref import WeakKeyDictionary

from tenfold.breaker import Breaker
from tenfold.caching.stores import Command, StoreDownError
from tenfold.errors import DependencyError, SettingsError

try:
    import redis as redis_sync
    import redis.asyncio as redis_async
    from redis.asyncio.cluster import RedisCluster as AsyncRedisCluster
    from redis.asyncio.retry import Retry as AsyncRetry
    from redis.asyncio.sentinel import Sentinel as AsyncSentinel
    from redis.backoff import NoBackoff
    from redis.cluster import RedisCluster
    from redis.exceptions import RedisError, ResponseError
    from redis.retry import Retry
    from redis.sentinel import Sentinel

    from tenfold.redis_pool import RedisPool
except ImportError:
    raise DependencyError("a query cache in Redis needs redis-py: pip install 'tenfold[caching]'") from None

__all__ = ["RedisServer"]

STALL_S = 0.02  # a timeout that is noticed later than this was caused by our own event loop
ASYNC_CONNECTIONS = 10  # of one event loop: more of them wait for each other
_FORMS = (
    "write redis://user:password@host:port/0, rediss://…, unix:///path, redis+cluster://host:port or "
    "redis+sentinel://host:port,host:port/service/0"
)


class RedisServer:
    """A Redis by URL, or through a client of the caller's own.

    Args:
        server: a URL; or a client of ``redis`` for threads, or of ``redis.asyncio`` for one event loop,
            without ``decode_responses``. The client keeps its own timeouts and retries, and stays open.
        timeout_s: for a call, connecting included.
        max_connections: of each process to one server, for threads; an event loop has ten.

    Raises:
        SettingsError: the URL is not one of a Redis, or the client decodes replies.
    """

    def __init__(self, server: Any, *, timeout_s: float = 0.1, max_connections: int = 50) -> None:
        self._timeout_s, self._max_connections = timeout_s, max_connections
        self._breaker = Breaker(failures=3, cool_down_s=0.5)
        self._lock = threading.Lock()
        self._sync: Any = None
        self._own_async: Any = None
        self._loops: WeakKeyDictionary[asyncio.AbstractEventLoop, Any] = WeakKeyDictionary()
        self._slots: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = WeakKeyDictionary()
        self._url = ""
        self._pool: RedisPool | None = None
        if isinstance(server, str):
            self._url = _check_url(server)
            if "+" not in self._url.partition("://")[0]:
                self._pool = RedisPool(server, max_connections=ASYNC_CONNECTIONS, connect_timeout_s=timeout_s)
            try:  # parses the URL; nothing is connected before the first command, but for a cluster
                self._sync = None if self.is_cluster else self._connect(is_async=False)
            except (ValueError, TypeError):
                raise SettingsError(f"this is not the URL of a Redis: {_FORMS}") from None
            return
        if _decodes(server):
            raise SettingsError("cached values are bytes: give QueryCache a client without decode_responses")
        if isinstance(server, (redis_async.Redis, AsyncRedisCluster)):
            self._own_async = server
        elif isinstance(server, (redis_sync.Redis, RedisCluster)):
            self._sync = server
        else:
            raise SettingsError(f"QueryCache takes a URL or a client of redis-py, no {type(server).__name__}")
        self._is_cluster = isinstance(server, (AsyncRedisCluster, RedisCluster))

    @property
    def has_url(self) -> bool:
        """Whether connections of our own can be made, as a listener needs one."""
        return bool(self._url)

    @property
    def is_cluster(self) -> bool:
        """Whether keys are spread over several servers."""
        return "+cluster" in self._url.partition("://")[0] if self._url else self._is_cluster

    # ------------------------------------------------------------------ calls

    def execute(self, commands: Sequence[Command], *, is_urgent: bool = False) -> list[Any]:
        """Send commands in one round trip and return their replies; in a cluster, one for each server.

        Args:
            is_urgent: send them even while the breaker is open.

        Raises:
            StoreDownError: there is no reply, or one is an error.
        """
        ticket = self._admit(is_urgent)
        try:
            client = self._sync_client()
            if len(commands) == 1 and not self.is_cluster:
                replies = [client.execute_command(*commands[0])]
            else:
                replies = _pipeline(client, commands).execute(raise_on_error=False)
        except BaseException as error:
            self._note(ticket, error)
            raise
        return self._check(ticket, replies)

    async def aexecute(self, commands: Sequence[Command], *, is_urgent: bool = False) -> list[Any]:
        """As :meth:`execute`, for asyncio."""
        async with self._loop_slots():  # waiting here is not Redis' fault, and not timed
            ticket = self._admit(is_urgent)
            try:
                replies = await self._send(commands)
            except BaseException as error:
                self._note(ticket, error)
                raise
            return self._check(ticket, replies)

    async def _send(self, commands: Sequence[Command]) -> list[Any]:
        """Send commands; once more when the time was over because this event loop stood still."""
        try:
            async with asyncio.timeout(self._timeout_s) as timeout:
                return await self._send_once(commands)
        except TimeoutError:
            if asyncio.get_running_loop().time() - (timeout.when() or 0) < STALL_S:
                raise
        async with asyncio.timeout(self._timeout_s):
            return await self._send_once(commands)

    async def _send_once(self, commands: Sequence[Command]) -> list[Any]:
        if self._pool is not None:
            return await self._pool.execute_all(commands)
        replies: list[Any] = await _pipeline(self._async_client(), commands).execute(raise_on_error=False)
        return replies

    def _admit(self, is_urgent: bool) -> int:
        ticket = self._breaker.admit()
        if ticket is None and not is_urgent:
            raise StoreDownError("Redis failed repeatedly")
        return -1 if ticket is None else ticket

    def _note(self, ticket: int, error: BaseException) -> None:
        """Count a failed call; raise StoreDownError for one that is Redis' fault."""
        if isinstance(error, (RedisError, OSError, TimeoutError)) or _is_of_other_loop(error):
            is_refusal = isinstance(error, ResponseError)
            self._breaker.record(ticket, is_refusal)
            raise StoreDownError(type(error).__name__, is_refusal=is_refusal) from error
        self._breaker.record(ticket, None)

    def _check(self, ticket: int, replies: list[Any]) -> list[Any]:
        error = next((reply for reply in replies if isinstance(reply, Exception)), None)
        # A refused command, such as one that a full Redis answers, is an answer: reads still work.
        self._breaker.record(ticket, error is None or isinstance(error, ResponseError))
        if error is not None:
            raise StoreDownError(type(error).__name__, is_refusal=isinstance(error, ResponseError)) from error
        return replies

    # ------------------------------------------------------------------ clients

    def connect_listener(self) -> Any:
        """A client with connections of its own, for a subscription.

        Raises:
            StoreDownError: a cluster does not answer.
        """
        try:
            return self._connect(is_async=False, timeout_s=1.0)
        except (RedisError, OSError) as error:
            raise StoreDownError(type(error).__name__) from error

    def _sync_client(self) -> Any:
        if self._sync is None:
            if self._own_async is not None:
                raise SettingsError("the cache has a client of redis.asyncio: give QueryCache a URL")
            with self._lock:
                self._sync = self._sync or self._connect(is_async=False)
        return self._sync

    def _loop_slots(self) -> asyncio.Semaphore:
        loop = asyncio.get_running_loop()
        slots = self._slots.get(loop)
        if slots is None:
            slots = self._slots[loop] = asyncio.Semaphore(ASYNC_CONNECTIONS)
        return slots

    def _async_client(self) -> Any:
        if self._own_async is not None:
            return self._own_async
        if not self._url:
            raise SettingsError("the cache has a client for threads: give QueryCache a URL")
        loop = asyncio.get_running_loop()
        client = self._loops.get(loop)
        if client is None:
            client = self._loops[loop] = self._connect(is_async=True)
        return client

    def _connect(self, *, is_async: bool, timeout_s: float | None = None) -> Any:
        timeout_s = timeout_s or self._timeout_s
        retry: Any = AsyncRetry(NoBackoff(), 0) if is_async else Retry(NoBackoff(), 0)
        options: dict[str, Any] = {
            # asyncio.timeout is around each call; redis-py's own would be a task for each write.
            "socket_timeout": None if is_async else timeout_s,
            "socket_connect_timeout": timeout_s,
            "retry": retry,
            "max_connections": self._max_connections,
        }
        scheme, plus, kind = self._url.partition("://")[0].partition("+")
        if not plus:
            # A pool that makes threads wait for a connection, rather than one that fails beyond its size.
            pool = redis_sync.BlockingConnectionPool.from_url(self._url, timeout=timeout_s, **options)
            return redis_sync.Redis.from_pool(pool)
        if kind == "cluster":
            cluster: Any = AsyncRedisCluster if is_async else RedisCluster
            return cluster.from_url(self._url.replace("+cluster", "", 1), **options)
        hosts, service, more = _sentinels(self._url)
        sentinel: Any = AsyncSentinel if is_async else Sentinel
        secure = {"ssl": True} if scheme == "rediss" else {}
        found = sentinel(
            hosts, sentinel_kwargs={**options, **secure, "max_connections": 5}, **options, **secure, **more
        )
        return found.master_for(service)

    async def aclose(self) -> None:
        """Close the connections of this event loop, and those of threads, that are ours."""
        self.close()
        if self._pool is not None:
            await self._pool.disconnect()
        client = self._loops.pop(asyncio.get_running_loop(), None)
        if client is not None:
            await client.aclose()

    def close(self) -> None:
        """Close the connections of threads that are ours."""
        if self._url and self._sync is not None:
            self._sync.close()


def _pipeline(client: Any, commands: Sequence[Command]) -> Any:
    is_cluster = isinstance(client, (AsyncRedisCluster, RedisCluster))
    pipeline = client.pipeline() if is_cluster else client.pipeline(transaction=False)
    for command in commands:
        pipeline.execute_command(*command)
    return pipeline


def _is_of_other_loop(error: BaseException) -> bool:
    return isinstance(error, RuntimeError) and "event loop" in str(error).lower()


def _decodes(client: Any) -> bool:
    encoder = client.get_encoder() if hasattr(client, "get_encoder") else None
    return bool(getattr(encoder, "decode_responses", False))


def _check_url(url: str) -> str:
    scheme = url.partition("://")[0]
    if not re.fullmatch(r"(rediss?(\+(cluster|sentinel))?|unix)", scheme) or "://" not in url:
        raise SettingsError(f"this is not the URL of a Redis: {_FORMS}")
    if "@" in re.sub(r"^[^:]*://[^/?#]*", "", url):  # a password with a slash, read as host and path
        raise SettingsError(
            "the Redis URL has an @ behind its host: in a password write / as %2F, ? as %3F, # as %23"
        )
    if "+sentinel" in scheme:
        _sentinels(url)
    return url


def _sentinels(url: str) -> tuple[list[tuple[str, int]], str, dict[str, Any]]:
    """The sentinels, the service and the connection options of ``redis+sentinel://…``."""
    parts = urlsplit(url)
    account, at, addresses = parts.netloc.rpartition("@")
    hosts: list[tuple[str, int]] = []
    service, _, database = parts.path.strip("/").partition("/")
    try:
        for address in addresses.split(","):
            name, _, port = (
                address.rpartition(":") if re.search(r":\d+$", address) else (address, "", "26379")
            )
            hosts.append((name.strip("[]"), int(port)))
        options: dict[str, Any] = {"db": int(database or 0), **dict(parse_qsl(parts.query))}
    except ValueError:
        raise SettingsError(f"this is not the URL of a Redis: {_FORMS}") from None
    if not service or not all(name for name, _ in hosts):
        raise SettingsError(f"this is not the URL of a Redis behind Sentinel: {_FORMS}")
    if at:
        user, colon, password = account.partition(":")
        options["password"] = unquote(password if colon else user)
        if colon and user:
            options["username"] = unquote(user)
    return hosts, service, options
