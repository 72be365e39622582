"""The same service on tenfold's own sessions, with the load that the balancing checks need."""

from __future__ import annotations

import asyncio
import os
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from tenfold.sessions import MemoryStore, SessionMiddleware, current

USERS = {"alice": "open sesame", "bob": "12345"}
WORK_S = 0.02
MOST_WAITING = 3


async def login(request: Request) -> JSONResponse:
    given = await request.json()
    if USERS.get(given["user"]) != given["password"]:
        return JSONResponse({}, 401)
    session = await current(request)
    return JSONResponse({"token": session.login(given["user"])})


async def logout(request: Request) -> JSONResponse:
    session = await current(request)
    await session.logout()
    return JSONResponse({})


async def me(request: Request) -> JSONResponse:
    session = await current(request)
    return JSONResponse({"user": session.principal}, 200 if session.is_authenticated else 401)


async def put(request: Request) -> JSONResponse:
    session = await current(request)
    if not session.is_authenticated:
        return JSONResponse({}, 401)
    session[request.path_params["key"]] = (await request.json())["value"]
    return JSONResponse({})


async def cart(request: Request) -> JSONResponse:
    return JSONResponse(dict(await current(request)))


_one_at_a_time = asyncio.Semaphore(1)
_waiting = 0


async def work(request: Request) -> JSONResponse:
    """At most fifty requests a second; a request that would wait too long gets 503 at once."""
    global _waiting
    if _waiting >= MOST_WAITING:
        return JSONResponse({}, 503, headers={"retry-after": "1"})
    _waiting += 1
    try:
        async with _one_at_a_time:
            await asyncio.sleep(WORK_S)
    finally:
        _waiting -= 1
    return JSONResponse({})


async def order(request: Request) -> JSONResponse:
    await asyncio.sleep(0.005)
    return JSONResponse({})


ROUTES = [
    Route("/login", login, methods=["POST"]),
    Route("/logout", logout, methods=["POST"]),
    Route("/me", me),
    Route("/cart/{key}", put, methods=["PUT"]),
    Route("/cart", cart),
    Route("/work", work),
    Route("/orders", order, methods=["GET", "POST"]),
]


def in_memory(**options: Any) -> Starlette:
    """For one process."""
    return Starlette(
        routes=ROUTES, middleware=[Middleware(SessionMiddleware, store=MemoryStore(), **options)]
    )


def in_redis() -> Starlette:
    """For any number of instances."""
    from tenfold.sessions.stores.redis import RedisStore

    store = RedisStore(os.environ["REDIS_URL"])
    return Starlette(routes=ROUTES, middleware=[Middleware(SessionMiddleware, store=store)])
