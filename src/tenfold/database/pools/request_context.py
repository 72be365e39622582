"""On whose behalf is this connection held? The request, or the job, that the code at hand runs for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from tenfold.asgi import ASGIApp, Message, Receive, Scope, Send, route_template, send_answer
from tenfold.errors import PoolExhaustedError

__all__ = ["PoolMiddleware", "Visit", "current", "visiting"]


NOBODY = "other"  # as in tenfold_requests_total


class Visit:
    """One request or one job. A request's route is known only once a router took it: so it is asked late."""

    __slots__ = ("__weakref__", "_mounted_at", "_route", "_scope", "method")

    def __init__(self, route: str = "", scope: Scope | None = None) -> None:
        self._route = route
        self._scope = scope
        self._mounted_at = scope.get("root_path", "") if scope is not None else ""
        self.method = str(scope.get("method", "")) if scope is not None else ""

    @property
    def route(self) -> str:
        """The route's template, as in every metric of tenfold; ``other`` where there is none."""
        if self._scope is not None:
            return route_template(self._scope, self._mounted_at) or NOBODY
        return self._route

    @property
    def title(self) -> str:
        """``GET /orders/{id}``, or the name of the job."""
        return f"{self.method} {self.route}".lstrip()

    def end(self) -> None:
        """The request is over: what it brought along need not be kept for its name."""
        self._route, self._scope = self.route, None


_current: ContextVar[Visit | None] = ContextVar("tenfold_visit", default=None)


def current() -> Visit | None:
    """The visit that this code runs for. Threads started by anyio or ``asyncio.to_thread`` inherit it."""
    return _current.get()


@contextmanager
def visiting(name: str) -> Iterator[None]:
    """What takes connections in here does so under this name: ``with visiting("nightly report"):``.

    The name becomes the ``route`` of metrics: one of few, never one with a number in it.
    """
    token = _current.set(Visit(name))
    try:
        yield
    finally:
        _current.reset(token)


class PoolMiddleware:
    """Tells the pools which route takes their connections, and answers 503 when none is to be had.

    Inside the app, ``app.add_middleware(PoolMiddleware)``: around a Starlette or FastAPI app it would meet
    the 500 that the app has already made of the error. ``retry_after_s`` is sent as Retry-After.
    An answer that has begun cannot become a 503; the error is passed on then.
    """

    def __init__(self, app: ASGIApp, *, retry_after_s: int = 1) -> None:
        self.app = app
        self.retry_after_s = retry_after_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in {"http", "websocket"}:
            return await self.app(scope, receive, send)
        begun = scope["type"] == "websocket"

        async def sending(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        visit = Visit(scope=scope)
        token = _current.set(visit)
        try:
            await self.app(scope, receive, sending)
        except PoolExhaustedError:
            if begun:
                raise
            await self._refuse(send)
        finally:
            _current.reset(token)
            visit.end()

    async def _refuse(self, send: Send) -> None:
        retry_after = (b"retry-after", b"%d" % self.retry_after_s)
        await send_answer(send, 503, b"Service Unavailable\n", headers=[retry_after])
