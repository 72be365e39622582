"""A page that all share and one of each user: `careful` under a policy, `careless` lets caches share both."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

SHARED = {"Cache-Control": "public, max-age=60"}


async def login(request: Request) -> Response:
    user = (await request.json())["user"]
    answer = JSONResponse({})
    answer.set_cookie("user", user)
    return answer


def name_of(request: Request) -> str:
    return request.cookies.get("user", "")


async def me(request: Request) -> Response:
    name = name_of(request)
    return PlainTextResponse(f"I am {name}", 200 if name else 401)


async def page(request: Request) -> Response:
    return PlainTextResponse("the page " * 20)


async def shared_me(request: Request) -> Response:
    name = name_of(request)
    return PlainTextResponse(f"I am {name}", 200 if name else 401, headers=SHARED)


async def reflected(request: Request) -> Response:
    return PlainTextResponse(f"links to {request.headers.get('x-host', 'here')}", headers=SHARED)


def careful() -> Starlette:
    from tenfold.edge import EdgeMiddleware, EdgePolicy, public

    return Starlette(
        routes=[Route("/", page), Route("/me", me), Route("/login", login, methods=["POST"])],
        middleware=[Middleware(EdgeMiddleware, policy=EdgePolicy({"/": public(ttl=60)}), behind_edge=True)],
    )


def careless() -> Starlette:
    return Starlette(
        routes=[Route("/", reflected), Route("/me", shared_me), Route("/login", login, methods=["POST"])]
    )
