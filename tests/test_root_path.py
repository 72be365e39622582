"""Apps below a path: behind --root-path, a proxy that strips a prefix, or mounted in another app."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route

from tenfold.asgi import ASGIApp, Message, Receive, Scope, Send, ends_answer, path_in_app
from tenfold.balancing.health import Health, HealthMiddleware
from tenfold.deadlines import DeadlineMiddleware, remaining_s
from tenfold.measure.probe.recorder import _route_name
from tenfold.metrics import MetricsEndpoint, MetricsMiddleware, exposition
from tenfold.overload.gcra import MemoryRates, Rate
from tenfold.overload.limiter import ConcurrencyLimiter
from tenfold.overload.limits import FixedLimit
from tenfold.overload.ratelimiter import RateLimiter
from tenfold.sessions import MemoryStore, SessionMiddleware, current
from tenfold.sessions.middleware import policy_lookup
from tenfold.sessions.transport import CookieTransport
from tenfold.stack.ports import free_port
from tests.support.waiting import eventually


@pytest.mark.parametrize(
    ("path", "root", "inside"),
    [
        ("/orders", "", "/orders"),
        ("/api/orders", "/api", "/orders"),
        ("/api/orders", "/api/", "/orders"),
        ("/orders", "/api", "/orders"),
        ("/apis/orders", "/api", "/apis/orders"),
        ("/api", "/api", "/"),
        ("/api/", "/api", "/"),
        ("/api/api/x", "/api", "/api/x"),
        ("/", "/", "/"),
        ("/x", "/", "/x"),
    ],
)
def test_path_inside_of_the_app(path: str, root: str, inside: str) -> None:
    assert path_in_app({"path": path, "root_path": root}) == inside
    assert path_in_app({"path": inside}) == inside


@pytest.mark.parametrize(
    ("message", "ends"),
    [
        ({"type": "http.response.start"}, False),
        ({"type": "http.response.early_hint"}, False),
        ({"type": "http.response.body"}, True),
        ({"type": "http.response.body", "more_body": True}, False),
        ({"type": "http.response.pathsend", "path": "/x"}, True),
        ({"type": "http.response.zerocopysend", "file": 3}, True),
        ({"type": "http.response.zerocopysend", "file": 3, "more_body": True}, False),
        ({"type": "http.response.trailers", "headers": [], "more_trailers": True}, False),
        ({"type": "http.response.trailers", "headers": []}, True),
        ({"type": "websocket.http.response.body"}, True),
        ({"type": "websocket.send", "text": ""}, False),
    ],
)
def test_end_of_an_answer(message: Message, ends: bool) -> None:
    assert ends_answer(message) is ends


# ------------------------------------------------------------------ every middleware, below /api


def behind_root_path(app: ASGIApp) -> ASGIApp:
    """As uvicorn --root-path does it: ``path`` has the prefix in it."""

    async def call(scope: Scope, receive: Receive, send: Send) -> None:
        await app({**scope, "root_path": "/api"}, receive, send)

    return call


def behind_stripping_proxy(app: ASGIApp) -> ASGIApp:
    """As granian --url-path-prefix behind a proxy that removes the prefix: ``path`` is without it."""

    async def call(scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"].removeprefix("/api")
        await app({**scope, "root_path": "/api", "path": path}, receive, send)

    return call


def mounted(app: ASGIApp) -> ASGIApp:
    return Starlette(routes=[Mount("/api", app)])


def mounted_behind_root_path(app: ASGIApp) -> ASGIApp:
    async def call(scope: Scope, receive: Receive, send: Send) -> None:
        outer = Starlette(routes=[Mount("/inner", app)])
        path = scope["path"].replace("/api", "/api/inner")
        await outer({**scope, "root_path": "/api", "path": path}, receive, send)

    return call


PLACES = [behind_root_path, behind_stripping_proxy, mounted, mounted_behind_root_path]


async def _show_deadline(request: Request) -> PlainTextResponse:
    return PlainTextResponse(f"{remaining_s() is not None}")


def orders() -> Starlette:
    names = ("/orders/{id}", "/free", "/free/{id}")
    return Starlette(routes=[Route(name, _show_deadline) for name in names])


def get(app: ASGIApp, *paths: str) -> list[httpx.Response]:
    async def run() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://shop") as client:
            return [await client.get(path) for path in paths]

    return asyncio.run(run())


@pytest.mark.guarantee(
    "paths in the options of a middleware are those inside of its app",
    pattern="balancing",
    under="--root-path, a proxy that strips a prefix, mounts",
)
@pytest.mark.control(
    "paths in the options of a middleware are those inside of its app", "the whole path differs"
)
@pytest.mark.parametrize("place", PLACES)
def test_every_middleware_looks_at_the_path_inside_of_its_app(place: Callable[[ASGIApp], ASGIApp]) -> None:
    def statuses(guard: ASGIApp, *paths: str) -> list[int]:
        return [answer.status_code for answer in get(place(guard), *paths)]

    healthy = HealthMiddleware(orders(), health=Health(), drain_on_sigterm=False)
    assert statuses(healthy, "/api/health/live", "/api/health/ready", "/api/health/x") == [200, 200, 404]
    assert statuses(MetricsEndpoint(orders(), registry=CollectorRegistry()), "/api/metrics") == [200]
    full = ConcurrencyLimiter(orders(), limit=FixedLimit(0), max_waiting=0, exempt=("/free",))
    assert statuses(full, "/api/free", "/api/free/1", "/api/orders/1") == [200, 200, 503]
    rated = RateLimiter(
        orders(), MemoryRates(), rate=Rate(0.001, 1), key=lambda scope: "one", exempt=("/free",)
    )
    assert statuses(rated, *["/api/orders/1", "/api/free"] * 2) == [200, 200, 429, 200]
    timed = DeadlineMiddleware(orders(), timeout_s=9, exempt=("/free",))
    texts = [answer.text for answer in get(place(timed), "/api/orders/1", "/api/free", "/api/free/1")]
    assert texts == ["True", "False", "False"]
    find = policy_lookup({"/free": "anonymous"})
    policies: list[str] = []

    async def note(scope: Scope, receive: Receive, send: Send) -> None:
        policies.append(find(scope))
        await Response()(scope, receive, send)

    statuses(note, "/api/free/1", "/api/orders/1")
    assert policies == ["anonymous", "closed"]


@pytest.mark.parametrize("place", PLACES)
def test_priorities_are_by_the_path_inside_of_the_app(place: Callable[[ASGIApp], ASGIApp]) -> None:
    limiter = ConcurrencyLimiter(
        orders(), limit=FixedLimit(0), max_waiting=0, priority={"/orders": "critical"}
    )
    get(place(limiter), "/api/orders/1", "/api/free")
    assert set(limiter.shed_counts) == {("full", "critical"), ("full", "normal")}


def counted(registry: CollectorRegistry) -> dict[str, float]:
    lines = exposition(registry=registry).decode().splitlines()
    found = [line for line in lines if line.startswith("http_server_request_duration_seconds_count{")]
    return {line.split('http_route="')[1].split('"')[0]: float(line.rsplit(" ", 1)[1]) for line in found}


@pytest.mark.parametrize("place", PLACES)
def test_routes_are_named_without_the_root_path(place: Callable[[ASGIApp], ASGIApp]) -> None:
    registry = CollectorRegistry()
    get(place(MetricsMiddleware(orders(), registry=registry)), "/api/orders/7")
    assert counted(registry) == {"/orders/{id}": 1}


def fastapi_orders(**options: Any) -> FastAPI:
    app = FastAPI(**options)

    @app.get("/orders/{id}")
    async def order(id: int) -> int:
        return id

    return app


@pytest.mark.filterwarnings("ignore:The `root_path` parameter is deprecated")
@pytest.mark.parametrize("path", ["/orders/7", "/api/orders/7"])
def test_own_root_path_of_an_app_is_no_mount(path: str) -> None:
    """Around FastAPI(root_path=…), as the probe is, and inside of it the route has one name."""
    for guard in ("around", "inside"):
        registry = CollectorRegistry()
        app = fastapi_orders(root_path="/api")
        if guard == "inside":
            app.add_middleware(MetricsMiddleware, registry=registry)
        get(MetricsMiddleware(app, registry=registry) if guard == "around" else app, path)
        assert counted(registry) == {"/orders/{id}": 1}


def test_probe_names_paths_without_the_root_path() -> None:
    assert _route_name({"path": "/api/orders/7", "root_path": "/api"}, "/api") == "/orders/{id}"
    mounted_in_it = {"path": "/api/v1/orders/7", "root_path": "/api/v1", "app_root_path": "/api"}
    assert _route_name(mounted_in_it, "/api") == "/v1/*"


# ------------------------------------------------------------------ one in the other


def test_nested_metrics_count_a_request_once() -> None:
    registry = CollectorRegistry()
    inner = fastapi_orders()
    inner.add_middleware(MetricsMiddleware, registry=registry)
    outer = Starlette(routes=[Mount("/api", inner)])
    outer.add_middleware(MetricsMiddleware, registry=registry)
    get(outer, "/api/orders/1")
    assert counted(registry) == {"/api/orders/{id}": 1}


def test_nested_metrics_of_two_registries_count_in_both() -> None:
    registries = [CollectorRegistry(), CollectorRegistry()]
    inner = fastapi_orders()
    inner.add_middleware(MetricsMiddleware, registry=registries[0])
    outer = Starlette(routes=[Mount("/api", inner)])
    outer.add_middleware(MetricsMiddleware, registry=registries[1])
    get(outer, "/api/orders/1")
    assert [counted(registry) for registry in registries] == [{"/orders/{id}": 1}, {"/api/orders/{id}": 1}]


def test_session_of_a_mounted_app_does_not_replace_the_outer_one() -> None:
    seen: list[list[str]] = []

    def sessions(app: ASGIApp, name: str) -> SessionMiddleware:
        transport = CookieTransport(name=name, secure=False)
        return SessionMiddleware(app, store=MemoryStore(), transport=transport)

    async def write(request: Request) -> Response:
        (await current(request))["who"] = "inner"
        return Response()

    inner = sessions(Starlette(routes=[Route("/write", write)]), "inner")
    router = Starlette(routes=[Mount("/api", inner)])

    async def outer(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            (await current(scope))["who"] = "outer"
        await router(scope, receive, send)
        seen.append([(await current(scope))["who"]])

    (answer,) = get(sessions(outer, "outer"), "/api/write")
    assert seen == [["outer"]]
    assert {cookie.split("=")[0] for cookie in answer.headers.get_list("set-cookie")} == {"inner", "outer"}


# ------------------------------------------------------------------ on granian


@pytest.fixture(scope="module")
def granian() -> Iterator[str]:
    """The URL of a granian that serves tests/support/served_app.py below /api."""
    port = free_port()
    server = subprocess.Popen(
        [sys.executable, "-m", "granian", "tests.support.served_app:app", "--interface", "asgi",
         "--loop", "asyncio", "--host", "127.0.0.1", "--port", str(port), "--url-path-prefix", "/api"],
        cwd=Path(__file__).parents[1], start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    url = f"http://127.0.0.1:{port}/api"

    def answers() -> bool:
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"{url}/health/live").status_code == 200
        return False

    try:
        eventually(answers)
        yield url
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(10)


def test_granian_below_a_prefix_answers_health_and_metrics(granian: str) -> None:
    assert httpx.get(f"{granian}/health/ready").json() == {"status": "ready"}
    httpx.get(f"{granian}/files/a")
    assert 'route="/files/{name}"' in httpx.get(f"{granian}/metrics").text


def test_session_is_saved_in_the_background_of_a_file_that_the_server_sends(granian: str) -> None:
    with httpx.Client() as client:
        assert client.get(f"{granian}/files/a").status_code == 200
        eventually(lambda: client.get(f"{granian}/downloads").json() == [True, True])
