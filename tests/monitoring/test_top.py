"""`tenfold top`: what it makes of two looks, what it shows, and on a running stack."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from tenfold.cli import main
from tenfold.cli.top import text
from tenfold.metrics import METRICS, REQUEST_SECONDS, exposition, instrument
from tenfold.monitoring.top import Look, parse_metrics, summarize
from tenfold.settings import ServiceSettings, Settings, StackSettings
from tenfold.stack import Stack
from tenfold.stack.workdir import running_instances


class Instance:
    """An instance's registry."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

    def __getitem__(self, name: str) -> Any:
        metric = next(one for one in METRICS if one.name == name)
        return instrument(metric, registry=self.registry)

    def request(self, seconds: float, *, route: str = "/orders", status: str = "200", times: int = 1) -> None:
        child = self[REQUEST_SECONDS.name].labels("GET", route, status)
        for _ in range(times):
            child.observe(seconds)

    def samples(self) -> dict[Any, float]:
        return parse_metrics(exposition(registry=self.registry).decode())


def look(at: float, *instances: Instance) -> Look:
    return Look(at, {f"i{number}": one.samples() for number, one in enumerate(instances)})


def test_rates_are_those_between_the_looks() -> None:
    one, other = Instance(), Instance()
    one.request(0.5, times=50)
    other.request(0.01)
    before = look(10, one, other)
    one.request(0.03, times=90)
    other.request(0.03, times=8)
    other.request(0.03, status="503", route="/", times=2)
    found = summarize(before, look(20, one, other))
    assert (found.instances, found.rate, found.failed) == (2, 10.0, 0.02)
    assert 0.025 <= (found.p50 or 0) <= (found.p95 or 0) <= 0.05  # the half second was before
    assert list(found.routes) == ["/orders", "/"] and found.routes["/"]["rate"] == 0.2


def test_worker_that_began_anew_counts_from_zero() -> None:
    before, after = Instance(), Instance()
    before.request(0.01, times=100)
    after.request(0.01, times=3)
    assert summarize(look(0, before), look(1, after)).rate == 3


def test_instance_that_came_or_went_is_left_out() -> None:
    one, other = Instance(), Instance()
    other.request(0.1, times=1000)
    found = summarize(look(0, one), look(1, one, other))
    assert (found.instances, found.rate, found.failed, found.p95) == (1, 0.0, None, None)


@given(st.lists(st.floats(0.001, 9.9), min_size=5, max_size=60))
def test_quantile_is_in_the_bucket_of_the_true_one(durations: list[float]) -> None:
    one = Instance()
    before = look(0, one)
    for duration in durations:
        one.request(duration)
    found = summarize(before, look(1, one)).p95 or 0.0
    edges = [0.0, *REQUEST_SECONDS.buckets]
    true = sorted(durations)[max(0, -(-95 * len(durations) // 100) - 1)]
    upper = next(edge for edge in edges if edge >= true)
    assert edges[edges.index(upper) - 1] <= found <= upper


def everything() -> tuple[Look, Look]:
    one = Instance()
    pool = "db:5432/shop"
    one["tenfold_workers"].set(2)
    one["tenfold_event_loop_lag_seconds"].set(0.02)
    one["tenfold_threads_busy"].set(7)
    one["tenfold_threads_max"].set(40)
    one["tenfold_concurrency_limit"].set(20)
    one["tenfold_concurrency_in_flight"].set(5)
    one["db_client_connection_count"].labels(pool, "used").set(4)
    one["db_client_connection_count"].labels(pool, "idle").set(9)
    one["db_client_connection_max"].labels(pool).set(10)
    one["db_client_connection_pending_requests"].labels(pool).set(3)
    one["tenfold_replica_lag_seconds"].labels("r1").set(1.5)
    one["tenfold_replica_serving"].labels("r1").set(1)
    one["tenfold_tasks_waiting"].labels("emails").set(12)
    one["tenfold_tasks_oldest_seconds"].labels("emails").set(33)
    before = look(0, one)
    one["tenfold_cpu_seconds_total"].inc(3)
    one["tenfold_shed_total"].labels("full", "normal", "on").inc(4)
    one["tenfold_shed_total"].labels("full", "normal", "shadow").inc(400)
    one["tenfold_cache_lookups_total"].labels("f", "memory").inc(3)
    one["tenfold_cache_lookups_total"].labels("f", "load").inc(1)
    one.request(0.03, route="/" + "long" * 20, times=20)
    return before, look(2, one)


def test_process_limiter_pools_replicas_and_queues() -> None:
    found = summarize(*everything())
    assert found.process == {
        "workers": 2,
        "cpu": 0.75,
        "loop_lag_s": 0.02,
        "threads_busy": 7,
        "threads_max": 40,
    }
    assert found.limiter == {"in_flight": 5, "limit": 20, "refused": 2}
    assert found.pools == {"db:5432/shop": {"used": 4, "most": 10, "waiting": 3}}
    assert found.replicas == {"r1": {"lag_s": 1.5, "serving": 1}}
    assert found.queues["emails"]["waiting"] == 12 and found.queues["emails"]["oldest_s"] == 33
    assert found.hit_ratio == 0.75


def test_text_fits_a_terminal() -> None:
    shown = text(summarize(*everything()))
    assert all(len(line) <= 80 for line in shown.splitlines()), shown
    for part in (
        "10.0 requests/s   failed 0.0%",
        "cpu 0.75 cores a worker   event loop 20 ms late   threads 7 of 40",
        "limiter 5 of 20 in flight, 2.0/s refused",
        "query cache 75.0% hits",
        "4 of 10         3",
        "1.5 s       yes",
        "12      33 s",
    ):
        assert part in shown
    assert text(summarize(Look(0, {"a": {}}), Look(1, {"a": {}}))).startswith(
        "0.0 requests/s   failed –   p50 –"
    )


# ------------------------------------------------------------------ the command


@pytest.fixture
def served() -> Iterator[str]:
    """An instance whose /metrics is served, with two requests more each time."""
    one = Instance()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            one.request(0.01, times=2)
            body = exposition(registry=one.registry) if self.path == "/metrics" else b""
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_once_prints_and_ends(served: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["top", served, "--once", "--every", "0.2"]) == 0
    assert "requests/s" in capsys.readouterr().out
    assert main(["top", served, "127.0.0.1:1", "--once", "--json", "--every", "0.2"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["instances"] == 1 and facts["rate"] > 0 and "/orders" in facts["routes"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["127.0.0.1:1", "--once"], "no instance can be watched: 127.0.0.1:1 does not answer"),
        (["not an address", "--once"], "no instance can be watched: not an address does not answer"),
        (["--json"], "write --once --json"),
    ],
)
def test_wrong_words_are_one_sentence(
    words: list[str],
    says: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["top", *words]) == 2
    out, err = capsys.readouterr()
    assert out == "" and says in err and err.count("\n") == 1


APP = """
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from tenfold.metrics import MetricsEndpoint, MetricsMiddleware
app = Starlette(
    routes=[Route("/", lambda request: PlainTextResponse("hello"))],
    middleware=[Middleware(MetricsEndpoint), Middleware(MetricsMiddleware)],
)
"""


def test_instances_of_the_running_stack_are_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "topped.py").write_text(APP)
    settings = Settings(
        root=tmp_path,
        service=ServiceSettings(app="topped:app", folder=Path(), ready_path="/"),
        stack=StackSettings(database=False, redis=False, instances=2),
    )
    with Stack(settings) as stack:
        addresses = [server.address for server in stack.servers if server.kind == "app"]
        assert running_instances() == addresses
        assert main(["top", "--once", "--json", "--every", "0.2"]) == 0
        assert json.loads(capsys.readouterr().out)["instances"] == 2
        stack.scale(1)
        assert running_instances() == addresses[:1]
    time.sleep(0.01)
    assert not set(addresses) & set(running_instances())
