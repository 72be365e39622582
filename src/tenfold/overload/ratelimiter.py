"""An ASGI middleware for rate limits: 429 with Retry-After beyond the rate."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from tenfold.asgi import (
    ASGIApp,
    Header,
    Message,
    Receive,
    Scope,
    Send,
    path_in_app,
    prefix_matcher,
    send_answer,
)
from tenfold.breaker import Breaker
from tenfold.errors import BreakerOpenError, RateStoreError, SettingsError
from tenfold.metrics import RATE_LIMITED, instrument
from tenfold.overload.gcra import Decision, Rate, RateStore
from tenfold.overload.limiter import EXEMPT

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

__all__ = ["RateLimiter"]

Headers = list[Header]

_MAX_RETRY_AFTER_S = 86_400


class RateLimiter:
    """Allows each key ``burst`` requests at once and ``rate`` a second, over all instances of one store.

    Answers carry ``RateLimit`` and ``RateLimit-Policy`` (draft-ietf-httpapi-ratelimit-headers-10; before its
    RFC names may change). WebSockets pass. Keys are stored as digests: give a ``secret`` where they could be
    guessed (addresses, phone numbers).

    Args:
        store: :class:`~tenfold.overload.redis.RedisRates`, or
            :class:`~tenfold.overload.gcra.MemoryRates` for a single process.
        rate: one for all keys, or a function of a request's scope.
        key: a function of a request's scope: a user's id, an API key, an address set by a trusted proxy.
            Text, bytes, or anything with a text of its own: a number, a UUID. None is not limited.
        cost: a function of a request's scope, what it uses of the rate; 1 by default.
        name: the policy's name, in headers, metrics and stored keys: limiters of one name share their keys.
        when_down: while the store does not answer, ``open`` lets all requests in, ``closed`` answers 503.
        pause_s: how long a store that did not answer is not asked again.
        exempt: paths that always pass, and those below them.
        secret: key of the digests; the same on all instances.
        shadow: refuse no request, only count.
        metrics: export refusals; needs prometheus-client.
        registry: of prometheus-client; None is its default one.

    Raises:
        SettingsError: the name has other characters than letters, digits, - and _.
        DependencyError: ``metrics`` without prometheus-client.
    """

    def __init__(  # noqa: PLR0913 - each option by its name
        self,
        app: ASGIApp,
        store: RateStore,
        *,
        rate: Rate | Callable[[Scope], Rate],
        key: Callable[[Scope], object],
        cost: Callable[[Scope], int] | None = None,
        name: str = "default",
        when_down: Literal["open", "closed"] = "open",
        pause_s: float = 1.0,
        exempt: Sequence[str] = EXEMPT,
        secret: bytes = b"",
        shadow: bool = False,
        metrics: bool = False,
        registry: CollectorRegistry | None = None,
    ) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name):
            raise SettingsError(f"{name!r} is no name of a rate limit: use letters, digits, - and _")
        self.app, self.store = app, store
        self.name = name
        self.when_down = when_down
        self.shadow = shadow
        self.refused_count = 0
        self._rate = rate if callable(rate) else lambda scope: rate
        self._key, self._cost = key, cost
        self._pause_s = pause_s
        self._breaker = Breaker(failures=1, cool_down_s=pause_s, jitter=0.0)
        self._is_exempt, self._secret = prefix_matcher(exempt), secret[:64]
        self._total: Any = instrument(RATE_LIMITED, registry=registry) if metrics else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let one request pass, or refuse it."""
        if scope["type"] != "http" or self._is_exempt(path_in_app(scope)):
            return await self.app(scope, receive, send)
        key = self._key(scope)
        if key is None:
            return await self.app(scope, receive, send)
        rate = self._rate(scope)
        decision = await self._decide(key, rate, scope)
        if decision is None:
            return await self._answer_without_store(scope, receive, send)
        if not decision.allowed:
            self._count("shadow" if self.shadow else "refused")
            if not self.shadow:
                wait_s = math.ceil(min(decision.retry_after_s, _MAX_RETRY_AFTER_S))
                return await _refuse(send, 429, wait_s, self._headers(decision, rate))
        await self.app(scope, receive, _with_headers(send, self._headers(decision, rate)))

    async def _decide(self, key: object, rate: Rate, scope: Scope) -> Decision | None:
        """Return the store's decision; None while it does not answer."""
        digest = hashlib.blake2b(_encode(key), digest_size=16, key=self._secret).hexdigest()
        cost = self._cost(scope) if self._cost else 1
        try:
            with self._breaker.guard(RateStoreError):
                return await self.store.take(f"{self.name}:{digest}", rate, cost)
        except (RateStoreError, BreakerOpenError):
            return None

    async def _answer_without_store(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._count(self.when_down)
        if self.when_down == "open" or self.shadow:
            return await self.app(scope, receive, send)
        await _refuse(send, 503, max(math.ceil(self._pause_s), 1), [])

    def _count(self, mode: str) -> None:
        self.refused_count += mode != "open"
        if self._total is not None:
            self._total.labels(self.name, mode).inc()

    def _headers(self, decision: Decision, rate: Rate) -> Headers:
        window_s = max(math.ceil(rate.burst / rate.rate), 1)
        reset_s = math.ceil(decision.reset_s)
        return [
            (b"ratelimit-policy", f'"{self.name}";q={rate.burst};w={window_s}'.encode()),
            (b"ratelimit", f'"{self.name}";r={decision.remaining};t={reset_s}'.encode()),
        ]


def _encode(key: object) -> bytes:
    """Return the bytes of a key; text that UTF-8 cannot encode keeps its surrogates, so that keys differ."""
    return bytes(key) if isinstance(key, bytes | bytearray) else str(key).encode(errors="surrogatepass")


def _with_headers(send: Send, headers: Headers) -> Send:
    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), *headers]}
        await send(message)

    return send_with_headers


async def _refuse(send: Send, status: int, wait_s: int, headers: Headers) -> None:
    body = b"Too many requests; try again later.\n" if status == 429 else b"The service is busy.\n"
    await send_answer(send, status, body, headers=[(b"retry-after", b"%d" % wait_s), *headers])
