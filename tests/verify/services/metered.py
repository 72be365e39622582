"""A service with metrics: `careful` counts every request, `careless` has them inside, and slow."""

from __future__ import annotations

import time
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from tenfold.metrics import MetricsEndpoint, MetricsMiddleware


def hello(request: Request) -> PlainTextResponse:
    return PlainTextResponse("hello")


class AnswersHalf:
    """Answers every second request before the metrics see it."""

    def __init__(self, app: Any) -> None:
        self.app, self.number = app, 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.number += 1
        if scope["type"] == "http" and scope["path"] == "/" and self.number % 2:
            return await PlainTextResponse("hello")(scope, receive, send)
        await self.app(scope, receive, send)


class Slow:
    """A collector that asks something slow each time."""

    def collect(self) -> list[Any]:
        time.sleep(0.4)
        return []


def careful() -> Starlette:
    layers = [Middleware(MetricsEndpoint), Middleware(MetricsMiddleware)]
    return Starlette(routes=[Route("/", hello)], middleware=layers)


def careless() -> Starlette:
    layers = [
        Middleware(MetricsEndpoint, collectors=[Slow()]),
        Middleware(AnswersHalf),
        Middleware(MetricsMiddleware),
    ]
    return Starlette(routes=[Route("/", hello)], middleware=layers)
