"""An ASGI middleware that runs as many requests as the service can do, and refuses the others at once.

In one process of Python the queue is the event loop, or the thread pool behind it: both accept every request
and make all of them wait. This middleware takes note of every request as soon as the loop gets to it, and
only as many run as the limit says; the time that an admitted request waits for the loop or a thread is part
of its latency, and so an adaptive limit sees it.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tenfold.asgi import (
    ASGIApp,
    Message,
    Receive,
    Scope,
    Send,
    ends_answer,
    longest_prefix,
    path_in_app,
    plain_answer,
    prefix_matcher,
)
from tenfold.deadlines import remaining_s
from tenfold.metrics import CONCURRENCY_IN_FLIGHT, CONCURRENCY_LIMIT, SHED, instrument
from tenfold.overload.admission import AdmissionController, FairQueue, Priority, QueuedRequest
from tenfold.overload.limits import GradientLimit, Limit

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

__all__ = ["EXEMPT", "ConcurrencyLimiter"]


EXEMPT = ("/health/live", "/health/ready", "/metrics")
_BODY = b"The service is busy; try again later.\n"


class ConcurrencyLimiter:
    """Sheds with 503 and Retry-After before latencies collapse; only what never waits goes outside of it.

    Beyond the limit a request waits for ``max_wait_s`` at most, a tenth of that while the overload lasts
    unless it is critical, among ``max_waiting`` others. One limiter is for one process and its event loop. A
    request counts as in flight until the app returns, background tasks included; its latency ends with the
    last byte of its answer. Put endless answers (server-sent events) into ``exempt``. WebSockets pass.

    Args:
        limit: the number of requests in flight; :class:`~tenfold.overload.limits.GradientLimit` by default.
        max_waiting: length of the queue.
        max_wait_s: longest wait in the queue; the objective's latency should leave room for it.
        priority: of a request's scope, or by path prefix, the longest that fits; ``normal`` by default.
            Critical requests go first, sheddable ones last, and those are displaced from a full queue first.
        tenant: of a request's scope; under overload all tenants that want something get the same share.
        exempt: paths that always pass, and those below them.
        retry_after_s: whole seconds, from and to: each refused client gets a random one of them, so that they
            do not come back together.
        shadow: refuse no request, and only count those that would be refused: an estimate from the excess
            over the limit, which itself cannot act.
        metrics: export limit, requests in flight and refusals; needs prometheus-client.
        registry: of prometheus-client; None is its default one.
        clock: seconds, monotonic.

    Raises:
        DependencyError: ``metrics`` without prometheus-client.
    """

    def __init__(  # noqa: PLR0913 - each option by its name
        self,
        app: ASGIApp,
        *,
        limit: Limit | None = None,
        max_waiting: int = 100,
        max_wait_s: float = 0.1,
        priority: Mapping[str, Priority] | Callable[[Scope], Priority] | None = None,
        tenant: Callable[[Scope], str] | None = None,
        exempt: Sequence[str] = EXEMPT,
        retry_after_s: tuple[int, int] = (1, 3),
        shadow: bool = False,
        metrics: bool = False,
        registry: CollectorRegistry | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.app = app
        if limit is None:  # a shadow cannot dip
            limit = GradientLimit(probe_s=math.inf) if shadow else GradientLimit()
        self.limit = limit
        self.queue = FairQueue(size=max_waiting, max_wait_s=max_wait_s, busy_wait_s=max_wait_s / 10)
        self.controller = AdmissionController(self.limit, self.queue)
        self.tenant = tenant
        self._is_exempt = prefix_matcher(exempt)
        self.shadow = shadow
        self.shed_counts: dict[tuple[str, Priority], int] = {}
        self._priority = priority if callable(priority) else _by_prefix(priority or {})
        self._refusals = [_refusal(seconds) for seconds in range(retry_after_s[0], retry_after_s[1] + 1)]
        self._clock = clock
        self._timer: asyncio.TimerHandle | None = None
        self._mean_s = 0.0
        self._shed_total: Any = instrument(SHED, registry=registry) if metrics else None
        if metrics:
            limits: Any = instrument(CONCURRENCY_LIMIT, registry=registry)
            in_flight: Any = instrument(CONCURRENCY_IN_FLIGHT, registry=registry)
            self._gauges = (limits, in_flight)
            self._export()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Admit, queue, or refuse."""
        if scope["type"] != "http" or self._is_exempt(path_in_app(scope)):
            return await self.app(scope, receive, send)
        request = self._request(scope)
        if self.shadow:
            self._admit_in_shadow(request)
        else:
            await self._admit(request)
        if request.state == "shed":
            self._count(request)
            return await self._refuse(send)
        await self._run(request, scope, receive, send)

    def _request(self, scope: Scope) -> QueuedRequest:
        left_s = remaining_s()
        return QueuedRequest(
            self._priority(scope),
            self.tenant(scope) if self.tenant else "",
            float("inf") if left_s is None else self._clock() + left_s,
        )

    async def _admit(self, request: QueuedRequest) -> None:
        """Return once the request is admitted or shed."""
        self.controller.submit(request, self._clock())
        if request.state != "waiting":
            return
        self._start_timer()
        over = asyncio.get_running_loop().create_future()
        request.wake = lambda: None if over.done() else over.set_result(None)
        try:
            await over
        except BaseException:  # cancelled: its slot, had it one already, goes to the next request
            self.controller.cancel(request, self._clock())
            raise

    def _start_timer(self) -> None:
        """Wake up when the next request has waited too long."""
        if self._timer is None and len(self.queue):
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self.queue.busy_wait_s, self._expire)

    def _expire(self) -> None:
        self._timer = None
        self.controller.expire(self._clock())
        self._start_timer()

    async def _run(self, request: QueuedRequest, scope: Scope, receive: Receive, send: Send) -> None:
        status, ended_s = 500, 0.0

        async def send_and_record(message: Message) -> None:
            nonlocal status, ended_s
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)
            if ends_answer(message):
                ended_s = self._clock()

        try:
            # Other arrivals are noted first, and the wait for the loop here is measured.
            await asyncio.sleep(0)
            await self.app(scope, receive, send_and_record)
        finally:
            now_s = self._clock()
            self._release(request, now_s, ended_s or now_s, _kind(scope, status), status)

    def _release(
        self, request: QueuedRequest, now_s: float, ended_s: float, kind: Hashable, status: int
    ) -> None:
        self._mean_s += 0.05 * (ended_s - request.started_s - self._mean_s)
        self.controller.release(request, now_s, ended_s=ended_s, kind=kind, dropped=status in {503, 504})
        self._start_timer()
        self._export()

    # ------------------------------------------------------------------ refusing and counting

    async def _refuse(self, send: Send) -> None:
        start = random.choice(self._refusals)  # noqa: S311 - jitter
        await send({**start, "headers": [*start["headers"]]})
        await send({"type": "http.response.body", "body": _BODY})

    def _admit_in_shadow(self, request: QueuedRequest) -> None:
        """By Little's law, requests beyond the limit would have waited excess × mean / limit."""
        excess = self.controller.in_flight + 1 - self.limit.limit
        if excess > 0 and excess * self._mean_s / self.limit.limit > self.queue.max_wait_s:
            request.reason = "waited"
        elif excess > self.queue.size:
            request.reason = "full"
        if request.reason:
            self._count(request)
        request.arrived_s = now_s = self._clock()
        self.controller.admit(request, now_s)

    def _count(self, request: QueuedRequest) -> None:
        key = (request.reason, request.priority)
        self.shed_counts[key] = self.shed_counts.get(key, 0) + 1
        if self._shed_total is not None:
            mode = "shadow" if self.shadow else "refused"
            self._shed_total.labels(request.reason, request.priority, mode).inc()

    def _export(self) -> None:
        if self._shed_total is not None:
            limits, in_flight = self._gauges
            limits.set(self.limit.limit)
            in_flight.set(self.controller.in_flight)


def _refusal(seconds: int) -> Message:
    return plain_answer(503, _BODY, headers=[(b"retry-after", b"%d" % seconds)])[0]


def _kind(scope: Scope, status: int) -> Hashable:
    """Return what tells requests of similar cost apart: the endpoint, else the first part of the path."""
    endpoint = scope.get("endpoint")
    first, _, _ = path_in_app(scope).lstrip("/").partition("/")
    where: Hashable = first if endpoint is None else id(endpoint)
    return (where, scope["method"], status // 100)


def _by_prefix(priorities: Mapping[str, Priority]) -> Callable[[Scope], Priority]:
    find = longest_prefix(priorities, otherwise="normal")
    return lambda scope: find(path_in_app(scope))
