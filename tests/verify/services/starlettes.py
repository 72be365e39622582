"""The same service on what people use: Starlette's signed cookie, and starsessions 2.2."""

from __future__ import annotations

from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from tests.verify.services.own import USERS


async def login(request: Request) -> JSONResponse:
    given = await request.json()
    if USERS.get(given["user"]) != given["password"]:
        return JSONResponse({}, 401)
    request.session["user"] = given["user"]
    return JSONResponse({})


async def logout(request: Request) -> JSONResponse:
    request.session.clear()
    return JSONResponse({})


async def me(request: Request) -> JSONResponse:
    user = request.session.get("user")
    return JSONResponse({"user": user}, 200 if user else 401)


async def put(request: Request) -> JSONResponse:
    value = (await request.json())["value"]
    request.session[request.path_params["key"]] = value
    return JSONResponse({})


async def cart(request: Request) -> JSONResponse:
    return JSONResponse(dict(request.session))


ROUTES = [
    Route("/login", login, methods=["POST"]),
    Route("/logout", logout, methods=["POST"]),
    Route("/me", me),
    Route("/cart/{key}", put, methods=["PUT"]),
    Route("/cart", cart),
]


def signed_cookie() -> Starlette:
    """Starlette's own: the session is in the cookie, signed."""
    return Starlette(routes=ROUTES, middleware=[Middleware(SessionMiddleware, secret_key="secret")])


def starsessions() -> Any:
    """starsessions with its own middleware for loading, as its documentation shows it."""
    from starsessions import InMemoryStore, SessionAutoloadMiddleware
    from starsessions import SessionMiddleware as Sessions

    middleware = [
        Middleware(Sessions, store=InMemoryStore(), lifetime=3600),
        Middleware(SessionAutoloadMiddleware),
    ]
    return Starlette(routes=ROUTES, middleware=middleware)
