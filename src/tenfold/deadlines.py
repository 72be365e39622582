"""Deadlines of requests, and a budget for retries.

A deadline is a moment of the monotonic clock in a context variable: coroutines, tasks and threads started by
anyio, Starlette or ``asyncio.to_thread`` inherit it; a bare ``threading.Thread`` or executor does not. It
interrupts nothing but what an async handler awaits: other code looks at it, by :func:`check_deadline`, or by
the hooks for SQLAlchemy (:mod:`tenfold.database.pools.statement_timeout`) and httpx
(:mod:`tenfold.overload.httpx`).
"""

from __future__ import annotations

import asyncio
import math
import re
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from weakref import WeakKeyDictionary

from tenfold.asgi import ASGIApp, Message, Receive, Scope, Send, path_in_app, prefix_matcher, send_answer
from tenfold.errors import DeadlineExceededError

__all__ = ["DeadlineMiddleware", "RetryBudget", "budget_s", "check_deadline", "deadline", "remaining_s"]


REQUEST_START = b"x-request-start"
REQUEST_TIMEOUT = b"x-request-timeout"
_TOO_LATE = b"The request's time is over.\n"

_ends_s: ContextVar[float] = ContextVar("tenfold_deadline", default=math.inf)


def remaining_s() -> float | None:
    """Seconds until the deadline, 0 after it; None without one."""
    ends_s = _ends_s.get()
    return None if ends_s == math.inf else max(ends_s - time.monotonic(), 0.0)


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Give a block this many seconds, or fewer where a deadline around it ends earlier."""
    token = _ends_s.set(min(_ends_s.get(), time.monotonic() + seconds))
    try:
        yield
    finally:
        _ends_s.reset(token)


def check_deadline() -> None:
    """Stop after the deadline: for loops whose result no client waits for any more.

    Raises:
        DeadlineExceededError: the request's time is over.
    """
    if time.monotonic() >= _ends_s.get():
        raise DeadlineExceededError("the request's time is over; no client waits for the result any more")


# ------------------------------------------------------------------ the time of a request


def budget_s(
    *,
    started: str | None,
    allowed: str | None,
    timeout_s: float,
    now_s: float,
    skew_s: float,
    max_queued_s: float,
) -> float:
    """Seconds that a request has left as it arrives; 0 when it comes too late. Pure.

    The time that it was queued before it came here is ``now - started - skew``: clocks of two machines that
    differ by less than ``skew_s`` never take time away, so a request may get that much too much. A start in
    the future counts as now, and one more than ``max_queued_s`` ago as no start at all: no proxy holds a
    request that long, but a clock that was set does look like that, and refusing every request would be the
    worse mistake.

    Args:
        started: ``X-Request-Start`` as a proxy wrote it: ``t=1700000000.123``, seconds since 1970.
        allowed: ``X-Request-Timeout``: the caller's own limit in seconds; it only ever shortens.
        timeout_s: longest time for a request.
        now_s: seconds since 1970.
        skew_s: largest difference between the clocks.
        max_queued_s: longest queueing that is believed.
    """
    queued_s = 0.0
    if (start_s := _seconds(started, r"(?:t=)?")) is not None:
        queued_s = now_s - start_s - skew_s
        if not 0 <= queued_s <= max_queued_s:
            queued_s = 0.0
    limit_s = _seconds(allowed)
    return max(min(timeout_s, timeout_s if limit_s is None else limit_s) - queued_s, 0.0)


def _seconds(text: str | None, prefix: str = "") -> float | None:
    match = re.fullmatch(prefix + r"(\d{1,12}(?:\.\d{1,9})?)", text.strip(), re.ASCII) if text else None
    return float(match[1]) if match else None


# ------------------------------------------------------------------ requests


class DeadlineMiddleware:
    """Gives every request a deadline, and stops working for it when that passes or the client leaves.

    A request that arrives too late is answered with 504 before the app is asked. An async handler is
    cancelled when time is over (504) and when its client disconnects (499, for the log only); not once its
    answer has begun: that is left to end. A sync handler in a thread cannot be cancelled, and neither can
    code that never awaits: it runs to its end, the 504 waits for it, and only what looks at the deadline
    stops earlier: its statements, outgoing calls and :func:`check_deadline`, whose
    :class:`~tenfold.errors.DeadlineExceededError` becomes a 504 too. For that to arrive here, add it inside
    the framework's handler of errors: ``app.add_middleware(DeadlineMiddleware)``. Frameworks that run threads
    without anyio (Starlette and FastAPI run them with it) have them go on by themselves after the 504.

    The budget counts from ``X-Request-Start``, which the proxy in front has to *replace*
    (``proxy_set_header X-Request-Start "t=$msec";``): see :func:`budget_s` for clocks that disagree.
    WebSockets have no deadline.

    Args:
        timeout_s: longest time for a request, from its arrival at the proxy.
        skew_s: largest difference between the proxy's clock and this one.
        trust_callers: whether ``X-Request-Timeout: <seconds>`` may shorten it; for services called by
            services. From the internet it would be harmless but pointless.
        exempt: paths inside of the app, and those below them, without a deadline: uploads, event streams.
        wall_clock: seconds since 1970.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        timeout_s: float = 30.0,
        skew_s: float = 0.1,
        trust_callers: bool = False,
        exempt: tuple[str, ...] = (),
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self.app = app
        self.timeout_s, self.skew_s = timeout_s, skew_s
        self.trust_callers = trust_callers
        self._is_exempt = prefix_matcher(exempt)
        self.wall_clock = wall_clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request within its time."""
        if scope["type"] != "http" or self._is_exempt(path_in_app(scope)):
            return await self.app(scope, receive, send)
        left_s = self._budget_s(scope)
        if left_s <= 0:
            return await send_answer(send, 504, _TOO_LATE)
        # As deadline(), which costs a microsecond and a half more.
        token = _ends_s.set(min(_ends_s.get(), time.monotonic() + left_s))
        try:
            await _CancellableRequest(self.app, receive, send).run(scope, left_s)
        finally:
            _ends_s.reset(token)

    def _budget_s(self, scope: Scope) -> float:
        found: dict[bytes, str] = {}
        for name, value in scope["headers"]:
            if name in {REQUEST_START, REQUEST_TIMEOUT}:
                found[name] = value.decode("latin-1")
        return budget_s(
            started=found.get(REQUEST_START),
            allowed=found.get(REQUEST_TIMEOUT) if self.trust_callers else None,
            timeout_s=self.timeout_s,
            now_s=self.wall_clock(),
            skew_s=self.skew_s,
            max_queued_s=2 * self.timeout_s,
        )


class _LongRequests:
    """Finds the requests of an event loop that take longer than ``AFTER_S``, with one timer for all of them.

    They are due in the order of their arrival. Most are done by then, and two timers of its own would cost
    a request more than all else that the middleware does.
    """

    AFTER_S = 0.05

    def __init__(self) -> None:
        self._running: dict[_CancellableRequest, None] = {}
        self._has_timer = False  # its handle would keep the loop alive

    def add(self, request: _CancellableRequest, loop: asyncio.AbstractEventLoop) -> None:
        """Call ``request.watch()`` in ``AFTER_S`` unless it is removed before."""
        self._running[request] = None
        if not self._has_timer:
            self._has_timer = True
            loop.call_later(self.AFTER_S, self._look, loop)

    def remove(self, request: _CancellableRequest) -> None:
        """Forget a request that is done."""
        self._running.pop(request, None)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        self._has_timer = False
        latest_s = time.monotonic() - self.AFTER_S
        while self._running:
            request = next(iter(self._running))
            if request.begun_s > latest_s:
                self._has_timer = True
                loop.call_later(request.begun_s - latest_s, self._look, loop)
                return
            del self._running[request]
            request.watch(loop)


_long_requests: WeakKeyDictionary[asyncio.AbstractEventLoop, _LongRequests] = WeakKeyDictionary()


def _long_requests_of(loop: asyncio.AbstractEventLoop) -> _LongRequests:
    found = _long_requests.get(loop)
    if found is None:
        found = _long_requests[loop] = _LongRequests()
    return found


class _CancellableRequest:
    """One request. Its client and its time are watched once it has taken ``_LongRequests.AFTER_S``.

    ``receive`` tells that the client left, and also hands out the request's body: messages that are read
    ahead of the app are kept for it, up to ``MAX_AHEAD`` bytes. Of a longer body the app has to take its part
    first.
    """

    MAX_AHEAD = 65_536

    def __init__(self, app: ASGIApp, receive: Receive, send: Send) -> None:
        self._app, self._receive, self._send = app, receive, send
        self._has_begun = self._is_stopped = self._client_left = False
        self._app_is_reading = self._is_watching = False
        self._ahead: deque[Message] = deque()
        self._reading: asyncio.Task[Message] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._cancel: Callable[[], None] = lambda: None

    async def run(self, scope: Scope, left_s: float) -> None:
        self.begun_s = time.monotonic()
        self.ends_s = self.begun_s + left_s
        loop = asyncio.get_running_loop()
        long_requests = _long_requests_of(loop)
        long_requests.add(self, loop)
        if left_s < long_requests.AFTER_S:
            self._timer = loop.call_later(left_s, self._stop)
        try:
            await self._run_cancellable(scope)
        except DeadlineExceededError:
            if self._has_begun:
                raise
            self._is_stopped = True
        finally:
            long_requests.remove(self)
            if self._timer is not None:
                self._timer.cancel()
            if self._reading is not None:
                self._reading.cancel()
        if self._client_left and self._is_stopped:
            with suppress(Exception):  # the client is gone, which some servers call an error
                await send_answer(self._send, 499, b"")
        elif self._is_stopped:
            await send_answer(self._send, 504, _TOO_LATE)

    async def _run_cancellable(self, scope: Scope) -> None:
        """Run the app; return silently when it was cancelled by :meth:`_stop`.

        anyio's cancellation waits for a thread that the app waits for; with asyncio's the thread would go on
        with resources that the request has closed by then.
        """
        if anyio := sys.modules.get("anyio"):
            with anyio.CancelScope() as cancel_scope:
                self._cancel = cancel_scope.cancel
                await self._app(scope, self._receive_for_app, self._send_for_app)
            return
        now_s = asyncio.get_running_loop().time
        with suppress(TimeoutError):
            async with asyncio.timeout(None) as limit:
                self._cancel = lambda: None if limit.expired() else limit.reschedule(now_s())
                await self._app(scope, self._receive_for_app, self._send_for_app)

    def watch(self, loop: asyncio.AbstractEventLoop) -> None:
        """Stop the app at its deadline from now on, and when its client leaves."""
        if self._timer is None:
            self._timer = loop.call_later(self.ends_s - time.monotonic(), self._stop)
        self._watch_client()

    def _stop(self) -> None:
        if not self._has_begun and not self._is_stopped:
            self._is_stopped = True
            self._cancel()

    async def _send_for_app(self, message: Message) -> None:
        """The app's ``send``; an answer that comes after the 504 is dropped."""
        if not self._is_stopped:
            self._has_begun = self._has_begun or message["type"] == "http.response.start"  # not early hints
            await self._send(message)

    # ------------------------------------------------------------------ the client

    async def _receive_for_app(self) -> Message:
        """The app's ``receive``."""
        while not self._ahead and self._reading is not None:
            # Unlike awaiting it, this lets the loop go on when it is done and only its callback is not.
            await asyncio.wait([self._reading])
        if self._ahead:
            left = self._ahead[0]["type"] == "http.disconnect"
            message = self._ahead[0] if left else self._ahead.popleft()
        else:
            self._app_is_reading = True
            try:
                message = await self._receive()
            finally:
                self._app_is_reading = False
        if self._is_watching and message["type"] != "http.disconnect":
            self._watch_client()
        return message

    def _watch_client(self) -> None:
        self._is_watching = True
        if not self._app_is_reading and self._reading is None and not self._ahead:
            self._read()

    def _read(self) -> None:
        self._reading = asyncio.create_task(self._next_message())
        self._reading.add_done_callback(self._keep)

    async def _next_message(self) -> Message:
        """Await ``receive`` in a coroutine: some servers return a future that takes one callback only."""
        return await self._receive()

    def _keep(self, reading: asyncio.Task[Message]) -> None:
        self._reading = None
        if reading.cancelled() or reading.exception():
            return
        message = reading.result()
        self._ahead.append(message)
        if message["type"] == "http.disconnect":
            self._client_left = True
            self._stop()
        elif sum(len(kept.get("body", b"")) for kept in self._ahead) < self.MAX_AHEAD:
            self._read()


# ------------------------------------------------------------------ retries


class RetryBudget:
    """A bound for retries: ``ratio`` of the calls, and ``min_per_s`` where there are few.

    Without one, three tries make a service that fails bear three times its load. A token bucket after
    Finagle's RetryBudget and gRFC A6: each call brings ``ratio`` of a token, time brings ``min_per_s``, a
    retry takes one. In any t seconds retries ≤ ratio × calls + min_per_s × t + saved. For one process; a race
    of threads may miscount by one.

    Args:
        ratio: retries per call.
        min_per_s: retries per second that are always allowed.
        saved: most tokens kept.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        ratio: float = 0.1,
        *,
        min_per_s: float = 1.0,
        saved: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ratio, self._min_per_s, self._saved = ratio, min_per_s, saved
        self._clock = clock
        self._tokens, self._counted_s = min(min_per_s, saved), clock()

    def record_call(self) -> None:
        """Count a call that is made for the first time."""
        self._refill(self._ratio)

    def acquire_retry(self) -> bool:
        """Take a token for a retry; False when there is none, or after the deadline."""
        self._refill(0.0)
        if self._tokens < 1 or remaining_s() == 0:
            return False
        self._tokens -= 1
        return True

    def _refill(self, earned: float) -> None:
        now_s = self._clock()
        earned += (now_s - self._counted_s) * self._min_per_s
        self._tokens, self._counted_s = min(self._tokens + earned, self._saved), now_s
