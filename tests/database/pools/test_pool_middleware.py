"""PoolMiddleware: 503 and Retry-After for an exhausted pool, and routes as names of holders."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from sqlalchemy import Engine, create_engine, text
from starlette.responses import StreamingResponse

from tenfold.database import PoolMiddleware, pool_options
from tenfold.database.pools.pool import MonitoredPool
from tenfold.database.pools.request_context import RequestContext, current_context, job_context
from tenfold.errors import PoolExhaustedError


@pytest.fixture
def engine() -> Engine:
    url = "sqlite://"
    registry = CollectorRegistry()
    options = pool_options(url, pool_size=1, max_overflow=0, max_waiting=0, registry=registry, name="shop")
    options["connect_args"] = {"check_same_thread": False}
    engine = create_engine(url, **options)
    engine.info = registry  # type: ignore[attr-defined]
    return engine


def app_of(engine: Engine, *, guarded: bool = True) -> FastAPI:
    app = FastAPI()
    if guarded:
        app.add_middleware(PoolMiddleware, retry_after_s=2)

    @app.get("/orders/{number}")
    def orders(number: int) -> str:
        with engine.connect() as connection:
            connection.execute(text("SELECT 1"))
            context = current_context()
            return context.title if context is not None else ""

    @app.get("/stream")
    async def stream() -> StreamingResponse:
        async def rows() -> AsyncIterator[bytes]:
            yield b"first"
            engine.connect()

        return StreamingResponse(rows())

    return app


def get(app: Any, path: str) -> httpx.Response:
    async def run() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.get(path)

    return asyncio.run(run())


@pytest.mark.guarantee(
    "an exhausted pool is 503 and Retry-After", pattern="pools", under="a pool of one, taken"
)
def test_exhausted_pool_is_503_with_retry_after(engine: Engine) -> None:
    app = app_of(engine)
    with engine.connect():
        answer = get(app, "/orders/7")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")
    assert answer.text == "Service Unavailable\n"  # who holds what is the log's business
    assert get(app, "/orders/7").json() == "GET /orders/{number}"


@pytest.mark.control("an exhausted pool is 503 and Retry-After")
def test_the_control_without_the_middleware_it_is_an_error(engine: Engine) -> None:
    with engine.connect(), pytest.raises(PoolExhaustedError):
        get(app_of(engine, guarded=False), "/orders/7")


def test_an_answer_that_has_begun_breaks_off(engine: Engine) -> None:
    with engine.connect(), pytest.raises(PoolExhaustedError):
        get(app_of(engine), "/stream")


def test_pool_metrics_have_few_labels(engine: Engine) -> None:
    get(app_of(engine), "/orders/7")
    assert isinstance(engine.pool, MonitoredPool)
    engine.pool.update()
    registry: Any = engine.info  # type: ignore[attr-defined]
    labels = {"db_client_connection_pool_name": "shop"}  # and no route: pools times routes are too many
    assert registry.get_sample_value("db_client_connection_use_time_seconds_count", labels) == 1


def test_ended_context_keeps_nothing_of_its_request() -> None:
    context = RequestContext(scope={"type": "http", "method": "GET", "headers": [(b"cookie", b"x")]})
    context.end()
    assert (context.title, context._scope) == ("GET other", None)


def test_job_contexts_nest() -> None:
    def name() -> str:
        context = current_context()
        return context.title if context is not None else ""

    with job_context("outer"):
        with job_context("inner"):
            assert name() == "inner"
        assert name() == "outer"
    assert name() == ""


def test_websockets_and_the_lifespan_are_passed_on() -> None:
    seen: list[tuple[str, str]] = []

    async def app(scope: Any, receive: Callable[..., Any], send: Callable[..., Any]) -> None:
        context = current_context()
        seen.append((scope["type"], context.title if context is not None else ""))

    async def nothing(*_: object) -> Any:
        return None

    for scope in ({"type": "lifespan"}, {"type": "websocket", "path": "/ws"}):
        asyncio.run(PoolMiddleware(app)(scope, nothing, nothing))
    assert seen == [("lifespan", ""), ("websocket", "other")]
