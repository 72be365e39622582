"""Rate limits shared by all instances: Redis 6.2 or newer, or Valkey, one round trip a decision."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from importlib.resources import files
from typing import Any

from tenfold.errors import DependencyError, RateStoreError
from tenfold.overload.gcra import Decision, Rate

try:
    from redis.asyncio import Redis
    from redis.exceptions import NoScriptError, RedisError

    from tenfold.redis_pool import RedisClient, RedisLoopError, RedisPool
except ImportError:
    raise DependencyError("rate limits in Redis need redis-py: pip install 'tenfold[redis]'") from None

__all__ = ["RedisRates"]


class RedisRates:
    """A :class:`~tenfold.overload.gcra.RateStore` in Redis, by Redis' own clock.

    With a URL for any event loop. A failover may lose the last decisions: a client then gets a part of its
    burst twice.

    Args:
        server: a URL, or an existing client, which keeps its own timeouts and its event loop; no decision
            takes longer than ``timeout_s``.
        prefix: of the keys; each expires when its whole burst is available again.
        timeout_s: longest wait for a decision, seconds.
        connections: size of the pool, with a URL.
    """

    def __init__(
        self,
        server: str | Redis,
        *,
        prefix: str = "tenfold:rate:",
        timeout_s: float = 0.1,
        connections: int = 20,
    ) -> None:
        self._prefix, self._timeout_s = prefix, timeout_s
        self._pool: RedisPool | None = None
        self._execute: Callable[..., Awaitable[Any]]
        if isinstance(server, str):
            self._pool = RedisPool(server, max_connections=connections, connect_timeout_s=timeout_s)
            self._execute = self._pool.execute
        else:
            self._execute = RedisClient(server).execute
        self._script = files("tenfold.overload").joinpath("gcra.lua").read_bytes()
        self._digest = hashlib.sha1(self._script, usedforsecurity=False).hexdigest()

    async def take(self, key: str, rate: Rate, cost: int = 1) -> Decision:
        """See :meth:`tenfold.overload.gcra.RateStore.take`."""
        arguments = (1, self._prefix + key, repr(1e6 / rate.rate), rate.burst, cost)
        try:
            async with asyncio.timeout(self._timeout_s):
                allowed, remaining, wait_us, reset_us = await self._decide(arguments)
        except RedisLoopError:
            raise RateStoreError(
                "the client of Redis belongs to another event loop: give RedisRates a URL"
            ) from None
        except (RedisError, OSError, TimeoutError) as error:
            raise RateStoreError(
                f"Redis does not count ({type(error).__name__}): look whether it runs and is a primary"
            ) from None
        wait_s = float("inf") if wait_us < 0 else wait_us / 1e6
        return Decision(bool(allowed), 0.0, wait_s, remaining, reset_us / 1e6)

    async def _decide(self, arguments: tuple[Any, ...]) -> Any:
        try:
            return await self._execute("EVALSHA", self._digest, *arguments)
        except NoScriptError:
            return await self._execute("EVAL", self._script, *arguments)

    async def aclose(self) -> None:
        """Close the connections that are ours."""
        if self._pool is not None:
            await self._pool.disconnect()
