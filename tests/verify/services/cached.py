"""A service whose cache is as services write it: `naive`; and with tenfold: `careful`."""

from __future__ import annotations

import json
import os
from typing import Any

import redis
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route


async def log_in(request: Request) -> Response:
    answer = Response()
    answer.set_cookie("user", (await request.json())["user"])
    return answer


def service(popular: Any, profile: Any) -> Starlette:
    async def get_popular(request: Request) -> Response:
        return JSONResponse(await run_in_threadpool(popular))

    async def get_profile(request: Request) -> Response:
        if (user := request.cookies.get("user")) is None:
            return Response(status_code=401)
        return JSONResponse(await run_in_threadpool(profile, user))

    return Starlette(
        routes=[
            Route("/login", log_in, methods=["POST"]),
            Route("/popular", get_popular),
            Route("/me", get_profile),
        ]
    )


def naive() -> Starlette:
    client = redis.Redis.from_url(os.environ["REDIS_URL"], socket_timeout=1)

    def cached(key: str, load: Any) -> Any:
        if (found := client.get(key)) is not None:
            return json.loads(found)
        value = load()
        client.set(key, json.dumps(value), ex=60)
        return value

    return service(
        lambda: cached("popular", lambda: [1, 2, 3]),
        lambda user: cached("profile", lambda: {"user": user}),  # whose?
    )


def careful() -> Starlette:
    from tenfold.caching import QueryCache

    cache = QueryCache(os.environ["REDIS_URL"], metrics=False)

    @cache.query(ttl=60)
    def popular() -> list[int]:
        return [1, 2, 3]

    @cache.query(ttl=60)
    def profile(user: str) -> dict[str, str]:
        return {"user": user}

    return service(popular, profile)
