"""CPU time of a request with tenfold's middlewares, beside the bare FastAPI endpoint.

    python -m benchmarks.middlewares [--rounds 40] [--requests 300] [--json]

In process, without a server: a FastAPI app is called with one GET after the other. Each middleware is alone
in an app of its own, then all seven stand in one app in the order of docs/middlewares.md; beside them one
``@app.middleware("http")`` that does nothing. The apps take turns of a few requests each, and a ratio is the
median of the rounds' ratios of process time to the bare app. Goals: each alone at most 1.08, all seven 1.35.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from starlette.requests import Request
from starlette.responses import Response

from benchmarks.support.results import Result, benchmark_parser, print_results
from benchmarks.support.rounds import median_result, ratio_result, turns
from tenfold.asgi import Message
from tenfold.balancing.health import Health, HealthMiddleware
from tenfold.database import ConsistencyMiddleware, DatabaseRouter, PoolMiddleware
from tenfold.deadlines import DeadlineMiddleware
from tenfold.metrics import MetricsMiddleware
from tenfold.overload import ConcurrencyLimiter
from tenfold.sessions import MemoryStore, SessionMiddleware
from tenfold.signing import generate_key

EACH, ALL = 1.08, 1.35  # goals

Add = Callable[[FastAPI], Any]


def added(middleware: Any, **options: Any) -> Add:
    """Return what adds a middleware to an app."""
    return lambda app: app.add_middleware(middleware, **options)


def middlewares() -> dict[str, Add]:
    """All of them, the innermost first."""
    router = DatabaseRouter("postgresql://127.0.0.1:1/none", [], keys=[generate_key()])
    registry = CollectorRegistry()
    return {
        "pool": added(PoolMiddleware),
        "session (not asked for)": added(SessionMiddleware, store=MemoryStore()),
        "consistency": added(ConsistencyMiddleware, router=router),
        "limiter": added(ConcurrencyLimiter),
        "deadline": added(DeadlineMiddleware, timeout_s=10),
        "metrics": added(MetricsMiddleware, registry=registry),
        "health": added(HealthMiddleware, health=Health()),
    }


def service(*adds: Add) -> FastAPI:
    """An app with one small endpoint."""
    app = FastAPI(openapi_url=None)

    @app.get("/items/{item}")
    async def read(item: int) -> dict[str, int]:
        return {"item": item}

    for add in adds:
        add(app)
    return app


def does_nothing(app: FastAPI) -> None:
    """Add Starlette's own form of a middleware."""

    @app.middleware("http")
    async def pass_on(request: Request, call_next: Any) -> Response:
        response: Response = await call_next(request)
        return response


SCOPE = {
    "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "GET", "scheme": "http",
    "path": "/items/7", "raw_path": b"/items/7", "query_string": b"", "root_path": "",
    "headers": [(b"host", b"shop.example"), (b"accept", b"*/*")], "server": ("127.0.0.1", 80),
    "client": ("127.0.0.1", 1234),
}  # fmt: skip


async def request(app: Any) -> None:
    """Send one GET."""
    body: Message = {"type": "http.request", "body": b"", "more_body": False}

    async def receive() -> Message:
        nonlocal body
        message, body = body, {"type": "http.disconnect"}
        return message

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            assert message["status"] == 200

    await app({**SCOPE, "headers": [*SCOPE["headers"]], "state": {}}, receive, send)


async def requests(app: Any, count: int) -> float:
    """Return the process time of one request, seconds."""
    begun = time.process_time()
    for _ in range(count):
        await request(app)
    return (time.process_time() - begun) / count


async def measure(rounds: int, count: int) -> list[Result]:
    """Let the apps take turns."""
    alone = middlewares()
    apps = {"bare": service(), **{name: service(add) for name, add in alone.items()}}
    apps["all seven"] = service(*middlewares().values())
    apps['@app.middleware("http")'] = service(does_nothing)
    for app in apps.values():  # the first round builds middleware stacks and fills caches
        await requests(app, count)
    taken: dict[str, list[float]] = {name: [] for name in apps}
    for name in turns(list(apps), rounds):
        taken[name].append(await requests(apps[name], count))
    bare = taken.pop("bare")
    goals = {**dict.fromkeys(alone, EACH), "all seven": ALL}
    ratios = [ratio_result(name, times, bare, goal=goals.get(name)) for name, times in taken.items()]
    return [median_result("bare, µs", [seconds * 1e6 for seconds in bare]), *ratios]


def main() -> None:
    """Print the ratios."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--requests", type=int, default=300)
    options = parser.parse_args()
    print_results(asyncio.run(measure(options.rounds, options.requests)), as_json=options.json)


if __name__ == "__main__":
    main()
