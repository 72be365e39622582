"""Health endpoints of an instance: ``/health/live`` and ``/health/ready``.

    health = Health(probes={"database": ping_database, "redis": ping_redis})
    app.add_middleware(HealthMiddleware, health=health)

Alive means that the process answers; it says nothing about the database, because restarting an instance does
not repair one. Ready means that every probe succeeded a moment ago and that the instance is not draining.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
import signal
import threading
from collections.abc import Callable, Mapping
from typing import Any

from tenfold.asgi import ASGIApp, Message, Receive, Scope, Send, path_in_app, send_answer
from tenfold.errors import SettingsError

__all__ = ["Health", "HealthMiddleware"]

Probe = Callable[[], object]

_log = logging.getLogger(__name__)


class Health:
    """The state of one instance. Belongs to one event loop.

    Args:
        probes: functions by name, called without arguments, async or not; one fails by raising or by
            returning False. One that is not async runs in a thread; while it hangs it is not called again.
        timeout_s: longest wait for one probe, seconds; one that takes longer has failed.
        cache_s: how long a result counts, seconds. Within it, and while a round of probes runs, further
            requests cost no probe.

    Raises:
        SettingsError: a duration is not above 0.
    """

    def __init__(
        self, probes: Mapping[str, Probe] | None = None, *, timeout_s: float = 1.0, cache_s: float = 1.0
    ) -> None:
        if not timeout_s > 0 or not cache_s >= 0:
            raise SettingsError("health: timeout_s has to be more than 0 and cache_s at least 0")
        self.in_flight = 0
        """Requests and WebSockets that the app is handling."""
        self.draining = False
        """True once new requests should go elsewhere."""
        self._probes = dict(probes or {})
        self._timeout_s, self._cache_s = timeout_s, cache_s
        self._hanging: dict[str, asyncio.Future[object]] = {}
        self._failed: tuple[str, ...] = ()
        self._until = float("-inf")
        self._round: asyncio.Task[None] | None = None

    def drain(self) -> None:
        """Answer "not ready" from now on; requests in flight go on."""
        self.draining = True

    async def failed_probes(self) -> tuple[str, ...]:
        """Run the probes, at most once in ``cache_s``; return the names of those that failed."""
        if asyncio.get_running_loop().time() >= self._until:
            if self._round is None:
                self._round = asyncio.create_task(self._probe_all())
            await asyncio.shield(self._round)  # one caller may be cancelled; others wait for the same round
        return self._failed

    async def _probe_all(self) -> None:
        try:
            failures = await asyncio.gather(*(self._failure(name) for name in self._probes))
            reasons = {name: why for name, why in zip(self._probes, failures, strict=True) if why}
            if tuple(reasons) != self._failed:
                # Types of errors, not their texts, which may hold addresses and passwords.
                _log.warning("failed probes: %s", reasons or "none any more")
            self._failed = tuple(reasons)
            self._until = asyncio.get_running_loop().time() + self._cache_s
        finally:
            self._round = None

    async def _failure(self, name: str) -> str:
        """The reason why the probe failed, in a word; empty when it did not."""
        if name in self._hanging:
            return "still running"
        try:
            outcome = await asyncio.wait_for(self._call(name), self._timeout_s)
        except Exception as error:
            return type(error).__name__
        return "False" if outcome is False else ""

    async def _call(self, name: str) -> object:
        probe = self._probes[name]
        if inspect.iscoroutinefunction(probe):
            return await probe()
        thread = asyncio.ensure_future(asyncio.to_thread(probe))
        self._hanging[name] = thread
        thread.add_done_callback(lambda done: self._forget_thread(name, done))
        outcome = await asyncio.shield(thread)
        return await outcome if inspect.isawaitable(outcome) else outcome

    def _forget_thread(self, name: str, done: asyncio.Future[object]) -> None:
        self._hanging.pop(name, None)
        if not done.cancelled():
            done.exception()  # retrieved, or asyncio logs it where the wait had timed out


class HealthMiddleware:
    """Answer ``/health/live`` and ``/health/ready`` of any ASGI app, and count requests in flight.

    Ready is 200, or 503 with the names of the failed probes and nothing else about them. It is 503 once
    :meth:`Health.drain` was called, at SIGTERM, and when the server ends the app's lifespan.

    Args:
        app: the ASGI app.
        health: its state.
        live_path: answers 200 as long as the process does.
        ready_path: answers 200 while the instance should get requests, 503 otherwise.
        drain_on_sigterm: drain at SIGTERM, before the server's own handler; only where the app's lifespan
            runs in the main thread.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        health: Health,
        live_path: str = "/health/live",
        ready_path: str = "/health/ready",
        drain_on_sigterm: bool = True,
    ) -> None:
        self.app = app
        self.health = health
        self.live_path, self.ready_path = live_path, ready_path
        self.drain_on_sigterm = drain_on_sigterm

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a health request, or pass the request to the app."""
        if scope["type"] == "lifespan":
            return await self._lifespan(scope, receive, send)
        if scope["type"] == "http" and path_in_app(scope) == self.live_path:
            return await _answer(scope, send, 200, {"status": "alive"})
        if scope["type"] == "http" and path_in_app(scope) == self.ready_path:
            return await self._ready(scope, send)
        self.health.in_flight += 1
        try:
            await self.app(scope, receive, send)
        finally:
            self.health.in_flight -= 1

    async def _ready(self, scope: Scope, send: Send) -> None:
        if self.health.draining:
            body = {"status": "draining", "in_flight": self.health.in_flight}
            return await _answer(scope, send, 503, body)
        if failed := await self.health.failed_probes():
            return await _answer(scope, send, 503, {"status": "not ready", "failed": failed})
        return await _answer(scope, send, 200, {"status": "ready"})

    async def _lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def receive_and_drain() -> Message:
            message = await receive()
            if message["type"] == "lifespan.startup" and self.drain_on_sigterm:
                _call_at_sigterm(self.health.drain)
            if message["type"] == "lifespan.shutdown":
                self.health.drain()
            return message

        await self.app(scope, receive_and_drain, send)


def _call_at_sigterm(call: Callable[[], None]) -> None:
    """Call ``call`` at SIGTERM, then the handler that was set before."""
    if threading.current_thread() is not threading.main_thread():
        return
    before = signal.getsignal(signal.SIGTERM)

    def handle(number: int, frame: Any) -> None:
        call()
        if callable(before):
            before(number, frame)
        elif before is signal.SIG_DFL:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    signal.signal(signal.SIGTERM, handle)


async def _answer(scope: Scope, send: Send, status: int, body: Mapping[str, object]) -> None:
    headers = [(b"retry-after", b"1")] if status == 503 else []
    await send_answer(
        send,
        status,
        json.dumps(body).encode(),
        content_type="application/json",
        headers=headers,
        head_only=scope["method"] == "HEAD",
    )
