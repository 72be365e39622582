"""Metrics: names, counting by route, access to /metrics, and values of several workers."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import APIRouter, FastAPI
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Mount, Route

from tenfold import metrics
from tenfold.errors import DependencyError
from tenfold.metrics import METRICS, Metric, MetricsEndpoint, MetricsMiddleware, exposition, instrument

pytestmark = pytest.mark.guarantee("`/metrics` answers this machine only")

# ------------------------------------------------------------------ the table

UNITS = {
    "counter": r"(tenfold|db_client|http_server)_[a-z_]+_total",
    "histogram": r"(tenfold|db_client|http_server)_[a-z_]+_(seconds|bytes)",
    "gauge": r"(tenfold|db_client|http_server)_[a-z_]+(?<!_total)",
}
SPARING = re.compile(r"path|url|user|email|session|id|ip|query|statement")


def unfit(metric: Metric) -> str:
    if not re.fullmatch(UNITS[metric.kind], metric.name):
        return "name"
    if any(SPARING.fullmatch(label) or not re.fullmatch("[a-z][a-z_]*", label) for label in metric.labels):
        return "labels"
    return "" if metric.help.endswith(".") else "help"


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_metric_follows_the_naming_rules(metric: Metric) -> None:
    assert not unfit(metric)


@pytest.mark.parametrize(
    ("metric", "part"),
    [
        (Metric("requests_total", "counter", (), "Help."), "name"),
        (Metric("tenfold_requests", "counter", (), "Help."), "name"),
        (Metric("tenfold_request_ms", "histogram", (), "Help."), "name"),
        (Metric("tenfold_replicas_total", "gauge", (), "Help."), "name"),
        (Metric("tenfold_requests_total", "counter", ("path",), "Help."), "labels"),
        (Metric("tenfold_requests_total", "counter", (), "no sentence"), "help"),
    ],
)
def test_the_control_naming_rules_refuse_other_names(metric: Metric, part: str) -> None:
    assert unfit(metric) == part


def test_metrics_lists_every_metric_of_the_module_once() -> None:
    declared = [value for value in vars(metrics).values() if isinstance(value, Metric)]
    assert sorted(METRICS, key=str) == sorted(declared, key=str)
    assert len({metric.name for metric in METRICS}) == len(METRICS)


# ------------------------------------------------------------------ requests


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


def counted(registry: CollectorRegistry) -> dict[tuple[str, str, str], float]:
    return {
        (
            sample.labels["http_request_method"],
            sample.labels["http_route"],
            sample.labels["http_response_status_code"],
        ): sample.value
        for family in text_string_to_metric_families(exposition(registry=registry).decode())
        for sample in family.samples
        if sample.name == f"{metrics.REQUEST_SECONDS.name}_count"
    }


def ask(app: Any, *requests: tuple[str, str]) -> None:
    async def run() -> None:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            for method, path in requests:
                await client.request(method, path)

    asyncio.run(run())


def fastapi_app() -> FastAPI:
    app, orders, inner = FastAPI(), APIRouter(prefix="/orders"), FastAPI()

    @orders.get("/{order_id}")
    def order(order_id: int) -> int:
        return order_id

    @app.get("/boom")
    def boom() -> None:
        raise RuntimeError("boom")

    @inner.get("/items/{item}")
    def item(tenant: str, item: str) -> str:
        return item

    app.include_router(orders, prefix="/api")
    app.mount("/tenants/{tenant}", inner)
    return app


def test_requests_are_counted_by_route_template(registry: CollectorRegistry) -> None:
    app = MetricsMiddleware(fastapi_app(), registry=registry)
    many = [("GET", f"/api/orders/{number}") for number in range(50)]
    ask(app, *many, ("GET", "/api/orders/x"), ("GET", "/boom"), ("GET", "/nowhere/1"), ("BREW", "/boom"))
    assert counted(registry) == {
        ("GET", "/api/orders/{order_id}", "200"): 50,
        ("GET", "/api/orders/{order_id}", "422"): 1,
        ("GET", "/boom", "500"): 1,
        ("GET", "other", "404"): 1,
        ("other", "/boom", "405"): 1,
    }


def test_mount_with_a_parameter_is_one_route(registry: CollectorRegistry) -> None:
    app = MetricsMiddleware(fastapi_app(), registry=registry)
    ask(app, *(("GET", f"/tenants/t{number}/items/7?tenant=x") for number in range(20)))
    assert counted(registry) == {("GET", "/tenants/{tenant}/items/{item}", "200"): 20}


def test_routes_below_mounts_have_their_full_template(registry: CollectorRegistry) -> None:
    def page(request: Request) -> PlainTextResponse:
        return PlainTextResponse("")

    inner = [Route("/inside", page), Mount("/files", app=PlainTextResponse(""))]
    app = MetricsMiddleware(Starlette(routes=[Mount("/in", routes=inner)]), registry=registry)
    ask(app, ("GET", "/in/inside"), ("GET", "/in/files/a.css"), ("GET", "/in/files/b/c.css"))
    assert counted(registry) == {
        ("GET", "/in/inside", "200"): 1,
        ("GET", "/in/files/{path}", "200"): 2,
    }


def test_routes_beyond_max_routes_are_other(registry: CollectorRegistry) -> None:
    def page(request: Request) -> PlainTextResponse:
        return PlainTextResponse("")

    routes = [Route(f"/{number}", page) for number in range(10)]
    app = MetricsMiddleware(Starlette(routes=routes), registry=registry, max_routes=3)
    ask(app, *(("GET", f"/{number}") for number in range(10)))
    found = counted(registry)
    assert len(found) == 4
    assert found["GET", "other", "200"] == 7


def test_streamed_response_is_timed_to_its_last_byte(registry: CollectorRegistry) -> None:
    async def slowly() -> Any:
        for _ in range(3):
            await asyncio.sleep(0.02)
            yield b"."

    async def page(request: Request) -> StreamingResponse:
        return StreamingResponse(slowly())

    app = Starlette(routes=[Mount("/in", routes=[Route("/", page)])])
    ask(MetricsMiddleware(app, registry=registry), ("GET", "/in/"))
    labels = {"http_request_method": "GET", "http_route": "/in/", "http_response_status_code": "200"}
    seconds = registry.get_sample_value("http_server_request_duration_seconds_sum", labels)
    assert seconds is not None
    assert seconds >= 0.06


def test_client_disconnect_is_counted_as_499(registry: CollectorRegistry) -> None:
    async def hang(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await asyncio.Event().wait()

    async def run() -> None:
        async def nothing(message: Any = None) -> Any: ...

        app = MetricsMiddleware(hang, registry=registry)
        task = asyncio.create_task(app({"type": "http", "method": "GET"}, nothing, nothing))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())
    assert counted(registry) == {("GET", "other", "499"): 1}


def test_websockets_and_lifespans_pass_uncounted(registry: CollectorRegistry) -> None:
    seen: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["type"])

    for kind in ("websocket", "lifespan"):
        for wrapped in (MetricsMiddleware(app, registry=registry), MetricsEndpoint(app, registry=registry)):
            asyncio.run(wrapped({"type": kind, "path": "/metrics"}, None, None))  # type: ignore[arg-type]
    assert seen == ["websocket"] * 2 + ["lifespan"] * 2
    assert counted(registry) == {}


# ------------------------------------------------------------------ /metrics


def status(endpoint: MetricsEndpoint, client: object, *headers: tuple[str, str], **scope: str) -> int:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    asked = {
        "type": "http",
        "method": "GET",
        "path": "/metrics",
        "client": client,
        "headers": [(name.encode(), value.encode("latin-1")) for name, value in headers],
        **scope,
    }
    asyncio.run(endpoint(asked, None, send))  # type: ignore[arg-type]
    if scope.get("method") == "HEAD":
        assert sent[1]["body"] == b""
    code: int = sent[0]["status"]
    return code


HERE = ("127.0.0.1", 4000)


@pytest.mark.parametrize(
    ("client", "headers", "expected"),
    [
        (HERE, [], 200),
        (("::1", 1), [], 200),
        (("::ffff:127.0.0.1", 1), [], 200),
        (("::ffff:192.0.2.1", 1), [], 404),
        (("192.0.2.1", 1), [], 404),
        (("10.0.0.1", 1), [], 404),
        (None, [], 404),
        (("", 0), [], 404),
        (("testclient", 50000), [], 404),
        # A header can revoke access but not grant it.
        (("192.0.2.1", 1), [("x-forwarded-for", "127.0.0.1")], 404),
        (HERE, [("x-forwarded-for", "127.0.0.1")], 200),
        (HERE, [("x-forwarded-for", "127.0.0.1:9000, [::1]:80")], 200),
        (HERE, [("x-forwarded-for", "192.0.2.1")], 404),
        (HERE, [("x-forwarded-for", "127.0.0.1, 192.0.2.1")], 404),
        (HERE, [("x-forwarded-for", "192.0.2.1, 127.0.0.1")], 404),
        (HERE, [("x-forwarded-for", "127.0.0.1"), ("x-forwarded-for", "192.0.2.1")], 404),
        (HERE, [("x-forwarded-for", "")], 404),
        (HERE, [("x-forwarded-for", "localhost")], 404),
        (HERE, [("x-forwarded-for", "127.0.0.1\xff")], 404),
        (HERE, [("X-Real-IP", "192.0.2.1")], 404),
        (HERE, [("x-real-ip", "127.0.0.1")], 200),
        (HERE, [("forwarded", 'for="[::1]:4711";proto=http, for=127.0.0.1')], 200),
        (HERE, [("forwarded", "for=192.0.2.60")], 404),
        (HERE, [("forwarded", "for=127.0.0.1, FOR=192.0.2.60")], 404),
        (HERE, [("forwarded", "for=_hidden")], 404),
        (HERE, [("forwarded", "proto=https")], 404),
        (HERE, [("forwarded", 'for="127.0.0.1')], 404),
    ],
)
def test_metrics_endpoint_refuses_clients_outside_its_networks(
    registry: CollectorRegistry, client: object, headers: list[tuple[str, str]], expected: int
) -> None:
    assert status(MetricsEndpoint(registry=registry), client, *headers) == expected


def test_networks_option_replaces_the_default(registry: CollectorRegistry) -> None:
    endpoint = MetricsEndpoint(registry=registry, networks=("10.0.0.0/8",))
    assert status(endpoint, ("10.1.2.3", 1)) == 200
    assert status(endpoint, HERE) == 404


def test_metrics_endpoint_allows_get_and_head_only(registry: CollectorRegistry) -> None:
    endpoint = MetricsEndpoint(registry=registry)
    assert status(endpoint, HERE, method="HEAD") == 200
    assert status(endpoint, HERE, method="POST") == 405


def test_metrics_endpoint_around_an_app_passes_other_paths(registry: CollectorRegistry) -> None:
    app = MetricsEndpoint(MetricsMiddleware(fastapi_app(), registry=registry), registry=registry)
    transport = httpx.ASGITransport(app, client=HERE)

    async def run() -> tuple[int, httpx.Response]:
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return (await client.get("/api/orders/1")).status_code, await client.get("/metrics")

    code, answer = asyncio.run(run())
    assert code == 200
    assert answer.headers["content-type"] == metrics.CONTENT_TYPE
    assert (
        'http_server_request_duration_seconds_count{http_request_method="GET",'
        'http_response_status_code="200",http_route="/api/orders/{order_id}"} 1.0'
    ) in answer.text


# ------------------------------------------------------------------ many workers

WORKER = """
import sys
from tenfold.metrics import Metric, SHED, exposition, instrument
instrument(SHED).labels("full", "normal", "on").inc(int(sys.argv[1]))
instrument(Metric("tenfold_busy", "gauge", (), "Busy.")).set(int(sys.argv[1]))
print(flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "metrics"
    path.mkdir()
    return path


@pytest.fixture
def workers(folder: Path) -> Iterator[list[subprocess.Popen[str]]]:
    environ = os.environ | {metrics.FOLDER_VARIABLE: str(folder)}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(amount)],
            env=environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for amount in (3, 4)
    ]
    for worker in running:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "\n"
    yield running
    for worker in running:
        worker.kill()
        worker.communicate()


def merged(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    monkeypatch.setenv(metrics.FOLDER_VARIABLE, str(folder))
    families = text_string_to_metric_families(exposition().decode())
    return {sample.name: sample.value for family in families for sample in family.samples}


def test_exposition_sums_all_workers(
    folder: Path, workers: list[subprocess.Popen[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = merged(folder, monkeypatch)
    assert (found["tenfold_shed_total"], found["tenfold_busy"]) == (7, 7)


def test_ended_worker_keeps_its_counters_and_loses_its_gauges(
    folder: Path, workers: list[subprocess.Popen[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    workers[0].kill()
    workers[0].wait()
    found = merged(folder, monkeypatch)
    assert (found["tenfold_shed_total"], found["tenfold_busy"]) == (7, 4)
    assert not list(folder.glob(f"gauge_*_{workers[0].pid}.db"))


def test_the_control_prometheus_client_keeps_gauges_of_ended_workers(
    folder: Path, workers: list[subprocess.Popen[str]]
) -> None:
    from prometheus_client.multiprocess import MultiProcessCollector

    workers[0].kill()
    workers[0].wait()
    files = [str(file) for file in folder.glob("gauge_*.db")]
    (family,) = MultiProcessCollector.merge(files)
    assert sum(sample.value for sample in family.samples) == 7


def test_empty_worker_file_is_skipped(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / f"counter_{os.getpid()}.db").touch()
    assert merged(folder, monkeypatch) == {}


def test_instrument_is_created_once_per_registry(registry: CollectorRegistry) -> None:
    assert instrument(metrics.SHED, registry=registry) is instrument(metrics.SHED, registry=registry)
    assert instrument(metrics.SHED) is not instrument(metrics.SHED, registry=registry)


def test_missing_prometheus_client_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(DependencyError, match=r"pip install 'tenfold\[measure\]'"):
        exposition()


# ------------------------------------------------------------------ the process


def test_process_is_watched_from_the_first_request(
    registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "_TICK_S", 0.01)
    app = MetricsMiddleware(MetricsMiddleware(fastapi_app(), registry=registry), registry=registry)

    async def run() -> None:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            await client.get("/api/orders/1")
            before = registry.get_sample_value("tenfold_cpu_seconds_total")
            time.sleep(0.08)  # blocks the event loop
            while not (registry.get_sample_value("tenfold_event_loop_lag_seconds") or 0) > 0.05:
                await asyncio.sleep(0.01)
            assert registry.get_sample_value("tenfold_cpu_seconds_total") > before  # type: ignore[operator]

    asyncio.run(asyncio.wait_for(run(), 20))
    assert registry.get_sample_value("tenfold_workers") == 1
    assert registry.get_sample_value("tenfold_threads_max") == 40
    assert registry.get_sample_value("tenfold_threads_busy") == 0


def test_objective_is_a_boundary_of_the_buckets(registry: CollectorRegistry) -> None:
    ask(MetricsMiddleware(fastapi_app(), registry=registry, objective_s=0.3), ("GET", "/api/orders/1"))
    text = exposition(registry=registry).decode()
    assert 'le="0.3"' in text and 'le="0.2"' in text
