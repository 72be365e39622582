"""How much time a request has left, and how often its calls may be tried again.

A deadline is a moment of the monotonic clock in a context variable: coroutines, tasks and threads started by
anyio, Starlette or ``asyncio.to_thread`` inherit it; a bare ``threading.Thread`` or executor does not. It
interrupts nothing but what an async handler awaits: everybody else looks at it, by :func:`check`, or by the
hooks for SQLAlchemy (:mod:`tenfold.database.pools.deadlines`) and httpx (:mod:`tenfold.overload.httpx`).
"""

from __future__ import annotations

import asyncio
import math
import re
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from contextvars import ContextVar

from tenfold.asgi import ASGIApp, Message, Receive, Scope, Send, is_below, path_in_app, send_answer
from tenfold.errors import DeadlineExceededError

__all__ = ["DeadlineMiddleware", "RetryBudget", "budget_s", "check", "deadline", "remaining_s"]


REQUEST_START = b"x-request-start"
REQUEST_TIMEOUT = b"x-request-timeout"
_TOO_LATE = b"The request's time is over.\n"

_ends_s: ContextVar[float] = ContextVar("tenfold_deadline", default=math.inf)


def remaining_s() -> float | None:
    """Seconds that are left, 0 when none are; None without a deadline."""
    ends_s = _ends_s.get()
    return None if ends_s == math.inf else max(ends_s - time.monotonic(), 0.0)


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """What happens within has this many seconds, or fewer where a deadline around it ends earlier."""
    token = _ends_s.set(min(_ends_s.get(), time.monotonic() + seconds))
    try:
        yield
    finally:
        _ends_s.reset(token)


def check() -> None:
    """Stop here if time is over: for loops that would go on for nobody.

    Raises:
        DeadlineExceededError: time is over.
    """
    if time.monotonic() >= _ends_s.get():
        raise DeadlineExceededError("the request's time is over; nobody waits for the result any more")


# ------------------------------------------------------------------ how much a request gets


def budget_s(
    *,
    started: str | None,
    allowed: str | None,
    timeout_s: float,
    now_s: float,
    skew_s: float,
    most_waited_s: float,
) -> float:
    """Seconds that a request has left as it arrives; 0 when it comes too late. Pure.

    What it waited before it came here is ``now - started - skew``: clocks of two machines that differ by
    less than ``skew_s`` never take time away, so a request may get that much too much. A start in the future
    counts as now, and one more than ``most_waited_s`` ago as no start at all: no proxy holds a request that
    long, but a clock that was set does look like that, and refusing everybody would be the worse mistake.

    Args:
        started: ``X-Request-Start`` as a proxy wrote it: ``t=1700000000.123``, seconds since 1970.
        allowed: ``X-Request-Timeout``: the caller's own limit in seconds; it only ever shortens.
        timeout_s: what a request may take.
        now_s: seconds since 1970.
        skew_s: by how much clocks may differ.
        most_waited_s: waits beyond this are not believed.
    """
    waited_s = 0.0
    if (start_s := _seconds(started, r"(?:t=)?")) is not None:
        waited_s = now_s - start_s - skew_s
        if not 0 <= waited_s <= most_waited_s:
            waited_s = 0.0
    limit_s = _seconds(allowed)
    return max(min(timeout_s, timeout_s if limit_s is None else limit_s) - waited_s, 0.0)


def _seconds(text: str | None, prefix: str = "") -> float | None:
    match = re.fullmatch(prefix + r"(\d{1,12}(?:\.\d{1,9})?)", text.strip(), re.ASCII) if text else None
    return float(match[1]) if match else None


# ------------------------------------------------------------------ requests


class DeadlineMiddleware:
    """Gives every request a deadline, and stops working for it when that passes or the client leaves.

    A request that arrives too late is answered with 504 before the app is asked. An async handler is
    cancelled when time is over (504) and when its client disconnects (499, which nobody reads); not once its
    answer has begun: that is left to end. A sync handler in a thread cannot be cancelled, and neither can
    code that never awaits: it runs to its end, the 504 waits for it, and only what looks at the deadline
    stops earlier: its statements, outgoing calls and :func:`check`, whose
    :class:`~tenfold.errors.DeadlineExceededError` becomes a 504 too. For that to arrive here, stand within
    the framework's handler of errors: ``app.add_middleware(DeadlineMiddleware)``. Frameworks that run threads
    without anyio (Starlette and FastAPI run them with it) have them go on by themselves after the 504.

    The budget counts from ``X-Request-Start``, which the proxy in front has to *replace*
    (``proxy_set_header X-Request-Start "t=$msec";``): see :func:`budget_s` for clocks that disagree.
    WebSockets have no deadline.

    Args:
        timeout_s: what a request may take, from its arrival at the proxy.
        skew_s: by how much the proxy's clock may differ from this one.
        believe_callers: whether ``X-Request-Timeout: <seconds>`` may shorten it; for services called by
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
        believe_callers: bool = False,
        exempt: tuple[str, ...] = (),
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self.app = app
        self.timeout_s, self.skew_s = timeout_s, skew_s
        self.believe_callers = believe_callers
        self.exempt = exempt
        self.wall_clock = wall_clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request within its time."""
        if scope["type"] != "http" or is_below(path_in_app(scope), self.exempt):
            return await self.app(scope, receive, send)
        left_s = self._budget_s(scope)
        if left_s <= 0:
            return await send_answer(send, 504, _TOO_LATE)
        with deadline(left_s):
            await _Run(self.app, receive, send).within(scope, left_s)

    def _budget_s(self, scope: Scope) -> float:
        found: dict[bytes, str] = {}
        for name, value in scope["headers"]:
            if name in {REQUEST_START, REQUEST_TIMEOUT}:
                found[name] = value.decode("latin-1")
        return budget_s(
            started=found.get(REQUEST_START),
            allowed=found.get(REQUEST_TIMEOUT) if self.believe_callers else None,
            timeout_s=self.timeout_s,
            now_s=self.wall_clock(),
            skew_s=self.skew_s,
            most_waited_s=2 * self.timeout_s,
        )


class _Run:
    """One request. Its client is watched once it has taken ``WATCH_AFTER_S``: most are done by then.

    ``receive`` tells that the client left, and also hands out the request's body: what the watch reads ahead
    of the app is kept for it, up to ``AHEAD`` bytes. Of a longer body the app has to take its part first.
    """

    WATCH_AFTER_S = 0.05
    AHEAD = 65_536

    def __init__(self, app: ASGIApp, receive: Receive, send: Send) -> None:
        self._app, self._receive, self._send = app, receive, send
        self._begun = self._stopped = self._gone = False
        self._app_reads = self._watched = False
        self._ahead: deque[Message] = deque()
        self._reading: asyncio.Task[Message] | None = None
        self._cancel: Callable[[], None] = lambda: None

    async def within(self, scope: Scope, left_s: float) -> None:
        loop = asyncio.get_running_loop()
        timers = [loop.call_later(left_s, self._stop), loop.call_later(self.WATCH_AFTER_S, self._watch)]
        try:
            async with _cancellable() as self._cancel:
                await self._app(scope, self._hand_over, self._pass_on)
        except DeadlineExceededError:
            if self._begun:
                raise
            self._stopped = True
        finally:
            for timer in timers:
                timer.cancel()
            if self._reading is not None:
                self._reading.cancel()
        if self._gone and self._stopped:
            with suppress(Exception):  # there is nobody, which some servers call an error
                await send_answer(self._send, 499, b"")
        elif self._stopped:
            await send_answer(self._send, 504, _TOO_LATE)

    def _stop(self) -> None:
        if not self._begun and not self._stopped:
            self._stopped = True
            self._cancel()

    async def _pass_on(self, message: Message) -> None:
        """The app's ``send``; an answer that comes after its time would be cut off in its middle."""
        if not self._stopped:
            self._begun = self._begun or message["type"] == "http.response.start"  # not by early hints
            await self._send(message)

    # ------------------------------------------------------------------ the client

    async def _hand_over(self) -> Message:
        """The app's ``receive``."""
        while not self._ahead and self._reading is not None:
            # Unlike awaiting it, this lets the loop go on when it is done and only its callback is not.
            await asyncio.wait([self._reading])
        if self._ahead:
            left = self._ahead[0]["type"] == "http.disconnect"
            message = self._ahead[0] if left else self._ahead.popleft()
        else:
            self._app_reads = True
            try:
                message = await self._receive()
            finally:
                self._app_reads = False
        if self._watched and message["type"] != "http.disconnect":
            self._watch()
        return message

    def _watch(self) -> None:
        self._watched = True
        if not self._app_reads and self._reading is None and not self._ahead:
            self._read()

    def _read(self) -> None:
        self._reading = asyncio.create_task(self._message())
        self._reading.add_done_callback(self._seen)

    async def _message(self) -> Message:
        """What a server's ``receive`` returns may be a future of its own, which knows one callback only."""
        return await self._receive()

    def _seen(self, reading: asyncio.Task[Message]) -> None:
        self._reading = None
        if reading.cancelled() or reading.exception():
            return
        message = reading.result()
        self._ahead.append(message)
        if message["type"] == "http.disconnect":
            self._gone = True
            self._stop()
        elif sum(len(kept.get("body", b"")) for kept in self._ahead) < self.AHEAD:
            self._read()


@asynccontextmanager
async def _cancellable() -> AsyncIterator[Callable[[], None]]:
    """A block of code and what cancels it; leaves silently when it was cancelled so.

    anyio's way of cancelling waits for a thread that the code waits for; asyncio's would leave it alone with
    what the request has closed by then.
    """
    if anyio := sys.modules.get("anyio"):
        with anyio.CancelScope() as scope:
            yield scope.cancel
        return
    now_s = asyncio.get_running_loop().time
    with suppress(TimeoutError):
        async with asyncio.timeout(None) as limit:
            yield lambda: None if limit.expired() else limit.reschedule(now_s())


# ------------------------------------------------------------------ trying again


class RetryBudget:
    """How often a call may be tried again: ``ratio`` of the calls, and ``min_per_s`` where there are few.

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

    def request(self) -> None:
        """A call is made for the first time."""
        self._refill(self._ratio)

    def retry(self) -> bool:
        """Whether it may be tried again; takes the token if so, and never when time is over."""
        self._refill(0.0)
        if self._tokens < 1 or remaining_s() == 0:
            return False
        self._tokens -= 1
        return True

    def _refill(self, earned: float) -> None:
        now_s = self._clock()
        earned += (now_s - self._counted_s) * self._min_per_s
        self._tokens, self._counted_s = min(self._tokens + earned, self._saved), now_s
