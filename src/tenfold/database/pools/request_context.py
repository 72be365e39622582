"""The request or job that a connection is held for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from tenfold.asgi import ASGIApp, Message, Receive, Scope, Send, route_template, send_answer
from tenfold.errors import PoolExhaustedError

__all__ = ["PoolMiddleware", "RequestContext", "current_context", "job_context"]

OTHER = "other"  # as in the metrics of requests


class RequestContext:
    """One request or one job. A router sets a request's route late, so it is looked up when it is needed."""

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
            return route_template(self._scope, self._mounted_at) or OTHER
        return self._route

    @property
    def title(self) -> str:
        """``GET /orders/{id}``, or the name of the job."""
        return f"{self.method} {self.route}".lstrip()

    def end(self) -> None:
        """Keep the route of a request that is over, and let go of its scope."""
        self._route, self._scope = self.route, None


_current: ContextVar[RequestContext | None] = ContextVar("tenfold_request_context", default=None)


def current_context() -> RequestContext | None:
    """The context that this code runs in. Threads started by anyio or ``asyncio.to_thread`` inherit it."""
    return _current.get()


@contextmanager
def job_context(name: str) -> Iterator[None]:
    """Name the holder of the connections checked out in a block: ``with job_context("nightly report"):``.

    Errors and findings name it.
    """
    token = _current.set(RequestContext(name))
    try:
        yield
    finally:
        _current.reset(token)


class PoolMiddleware:
    """Tells the pools which route holds their connections, and answers 503 when a pool is exhausted.

    Add it inside the app, ``app.add_middleware(PoolMiddleware)``: around a Starlette or FastAPI app it would
    meet the 500 that the app has already made of the error. ``retry_after_s`` is sent as Retry-After.
    An answer that has begun cannot become a 503; the error is passed on then.
    """

    def __init__(self, app: ASGIApp, *, retry_after_s: int = 1) -> None:
        self.app = app
        self.retry_after_s = retry_after_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in {"http", "websocket"}:
            return await self.app(scope, receive, send)
        has_begun = scope["type"] == "websocket"

        async def send_and_note(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        context = RequestContext(scope=scope)
        token = _current.set(context)
        try:
            await self.app(scope, receive, send_and_note)
        except PoolExhaustedError:
            if has_begun:
                raise
            await self._refuse(send)
        finally:
            _current.reset(token)
            context.end()

    async def _refuse(self, send: Send) -> None:
        retry_after = (b"retry-after", b"%d" % self.retry_after_s)
        await send_answer(send, 503, b"Service Unavailable\n", headers=[retry_after])
