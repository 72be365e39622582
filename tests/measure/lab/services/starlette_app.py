"""Starlette without a database: one cause, by LAB_CAUSE."""

import asyncio
import os
import time

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

CAUSE = os.environ["LAB_CAUSE"]
REMEDIED = bool(os.environ.get("LAB_REMEDIED"))
N = int(os.environ.get("LAB_N", "0"))
SECONDS = float(os.environ.get("LAB_SECONDS", "0"))
one = asyncio.Semaphore(2)


class Blocking(BaseHTTPMiddleware):
    """A middleware that writes its log line to a slow disk."""

    async def dispatch(self, request: Request, call_next: RequestResponseEndpoint) -> Response:
        """Wait, and pass the request on."""
        if CAUSE == "middleware_sleep" and not REMEDIED:
            time.sleep(SECONDS)  # CAUSE middleware_sleep
        return await call_next(request)


async def ready(request: Request) -> Response:
    """Answer."""
    return PlainTextResponse("ok")


async def semaphore(request: Request) -> Response:
    """Let two requests in at a time."""
    if REMEDIED:
        await asyncio.sleep(SECONDS)
    else:
        async with one:  # CAUSE semaphore
            await asyncio.sleep(SECONDS)
    return PlainTextResponse("done")


app = Starlette(
    routes=[
        Route("/health/ready", ready),
        Route("/middleware_sleep", ready),
        Route("/semaphore", semaphore),
    ],
    middleware=[Middleware(Blocking)],
)
