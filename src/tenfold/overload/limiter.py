"""An ASGI middleware that lets in as many requests as the service can do, and refuses the others at once.

In one process of Python the queue is the event loop, or the thread pool behind it: both take whatever comes
and make everybody wait. Here every request is noted as soon as the loop gets to it, and only as many run as
the limit says; what a request waits for the loop or a thread afterwards is part of its time, and therefore
what an adaptive limit sees.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tenfold.asgi import ASGIApp, Message, Receive, Scope, Send, is_below, longest_prefix, plain_answer
from tenfold.deadlines import remaining_s
from tenfold.metrics import CONCURRENCY_IN_FLIGHT, CONCURRENCY_LIMIT, SHED, instrument
from tenfold.overload.fair_queue import Gate, Priority, Ticket, WaitingRoom
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
    request keeps its place until the app returns, background tasks included; its time ends with the last byte
    of its answer. Endless answers (server-sent events) belong into ``exempt``. WebSockets are passed on.

    Args:
        limit: what says how many; :class:`~tenfold.overload.limits.GradientLimit` by default.
        max_waiting: places in the waiting room.
        max_wait_s: longest wait for a place; the objective's latency should leave room for it.
        priority: of a request's scope, or by path prefix, the longest that fits; ``normal`` by default.
            Critical requests go first, sheddable ones last and give up their places in the waiting room.
        tenant: of a request's scope; under overload all tenants that want something get the same share.
        exempt: paths that always pass, and those below them.
        retry_after_s: whole seconds, from and to: each refused client is told a random one of them, so that
            they do not come back together.
        shadow: let everybody in, and only count whom it would have refused: an estimate from the excess over
            the limit, which itself cannot act.
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
        self.room = WaitingRoom(size=max_waiting, calm_s=max_wait_s, busy_s=max_wait_s / 10)
        self.gate = Gate(self.limit, self.room)
        self.tenant = tenant
        self.exempt = tuple(exempt)
        self.shadow = shadow
        self.shed: dict[tuple[str, Priority], int] = {}
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
            self._show()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Admit, let wait, or refuse."""
        if scope["type"] != "http" or is_below(scope["path"], self.exempt):
            return await self.app(scope, receive, send)
        ticket = self._ticket(scope)
        if self.shadow:
            self._watch_only(ticket)
        else:
            await self._enter(ticket)
        if ticket.state == "shed":
            self._count(ticket)
            return await self._refuse(send)
        await self._run(ticket, scope, receive, send)

    def _ticket(self, scope: Scope) -> Ticket:
        left_s = remaining_s()
        return Ticket(
            self._priority(scope),
            self.tenant(scope) if self.tenant else "",
            float("inf") if left_s is None else self._clock() + left_s,
        )

    async def _enter(self, ticket: Ticket) -> None:
        """Returns once the ticket is admitted or shed."""
        self.gate.arrive(ticket, self._clock())
        if ticket.state != "waiting":
            return
        self._wind()
        over = asyncio.get_running_loop().create_future()
        ticket.wake = lambda: None if over.done() else over.set_result(None)
        try:
            await over
        except BaseException:  # cancelled: its place, had it one already, is somebody else's
            self.gate.abandon(ticket, self._clock())
            raise

    def _wind(self) -> None:
        """Wake up when the next one has waited too long."""
        if self._timer is None and len(self.room):
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self.room.busy_s, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self.gate.expire(self._clock())
        self._wind()

    async def _run(self, ticket: Ticket, scope: Scope, receive: Receive, send: Send) -> None:
        status, ended_s = 500, 0.0

        async def watch(message: Message) -> None:
            nonlocal status, ended_s
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                ended_s = self._clock()

        try:
            # Whoever else has arrived is noted first; and what waits for the loop here is measured.
            await asyncio.sleep(0)
            await self.app(scope, receive, watch)
        finally:
            now_s = self._clock()
            self._leave(ticket, now_s, ended_s or now_s, _kind(scope, status), status)

    def _leave(self, ticket: Ticket, now_s: float, ended_s: float, kind: Hashable, status: int) -> None:
        self._mean_s += 0.05 * (ended_s - ticket.started_s - self._mean_s)
        self.gate.leave(ticket, now_s, ended_s=ended_s, kind=kind, dropped=status in {503, 504})
        self._wind()
        self._show()

    # ------------------------------------------------------------------ refusing

    async def _refuse(self, send: Send) -> None:
        start = random.choice(self._refusals)  # noqa: S311 - jitter
        await send({**start, "headers": [*start["headers"]]})
        await send({"type": "http.response.body", "body": _BODY})

    def _watch_only(self, ticket: Ticket) -> None:
        """By Little's law, those beyond the limit would have waited excess × mean / limit."""
        excess = self.gate.in_flight + 1 - self.limit.limit
        if excess > 0 and excess * self._mean_s / self.limit.limit > self.room.calm_s:
            ticket.reason = "waited"
        elif excess > self.room.size:
            ticket.reason = "full"
        if ticket.reason:
            self._count(ticket)
        self.gate.force(ticket, self._clock())

    def _count(self, ticket: Ticket) -> None:
        key = (ticket.reason, ticket.priority)
        self.shed[key] = self.shed.get(key, 0) + 1
        if self._shed_total is not None:
            self._shed_total.labels(
                ticket.reason, ticket.priority, "shadow" if self.shadow else "refused"
            ).inc()

    def _show(self) -> None:
        if self._shed_total is not None:
            limits, in_flight = self._gauges
            limits.set(self.limit.limit)
            in_flight.set(self.gate.in_flight)


def _refusal(seconds: int) -> Message:
    return plain_answer(503, _BODY, headers=[(b"retry-after", b"%d" % seconds)])[0]


def _kind(scope: Scope, status: int) -> Hashable:
    """What costs about the same: a route where the framework says so, else the first part of the path."""
    endpoint = scope.get("endpoint")
    first, _, _ = scope["path"].lstrip("/").partition("/")
    where: Hashable = first if endpoint is None else id(endpoint)
    return (where, scope["method"], status // 100)


def _by_prefix(priorities: Mapping[str, Priority]) -> Callable[[Scope], Priority]:
    find = longest_prefix(priorities, otherwise="normal")
    return lambda scope: find(scope["path"])
