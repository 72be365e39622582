"""A real Prometheus scrapes a real service: every rule evaluates, and every panel's query is answered."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tenfold.monitoring.dashboard import dashboard, queries
from tenfold.monitoring.prometheus import render
from tenfold.monitoring.rules import alerts, recordings
from tenfold.monitoring.settings import MonitoringSettings
from tenfold.stack.ports import free_port
from tests.support.waiting import eventually

SERVICE = """
import sys, time
import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from tenfold.metrics import *
from tenfold import metrics

def answer(request):
    return PlainTextResponse("", 500 if "fail" in request.query_params else 200)

# What databases, caches and tasks export, without them: every metric of the table has a value.
OWN = ("tenfold_cpu_seconds_total", "tenfold_workers", "http_server_request_duration_seconds")
SET = {"counter": "inc", "gauge": "set", "histogram": "observe"}
for metric in metrics.METRICS:
    if metric.name not in OWN:
        labels = ["shop" for _ in metric.labels]
        if metric is metrics.POOL_CONNECTIONS:
            labels[1] = "used"
        found = metrics.instrument(metric)
        getattr(found.labels(*labels) if labels else found, SET[metric.kind])(1)
app = Starlette(
    routes=[Route("/orders/{number}", answer)],
    middleware=[Middleware(MetricsEndpoint), Middleware(MetricsMiddleware)],
)
uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="error")
"""


class Prometheus:
    """A running Prometheus, asked by its API."""

    def __init__(self, url: str) -> None:
        self.url = url

    def get(self, path: str, **params: Any) -> Any:
        answer = httpx.get(f"{self.url}/api/v1/{path}", params=params, timeout=10).json()
        assert answer["status"] == "success", answer
        return answer["data"]

    def query(self, expr: str) -> list[Any]:
        found: list[Any] = self.get("query", query=expr)["result"]
        return found


@pytest.fixture(scope="module")
def settings() -> MonitoringSettings:
    return MonitoringSettings(job="shop", targets=(f"127.0.0.1:{free_port()}",), scrape_s=1, least_requests=1)


@pytest.fixture(scope="module")
def prometheus(
    settings: MonitoringSettings, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Prometheus]:
    program = shutil.which("prometheus")
    if program is None:
        missing = "prometheus is missing: apt-get install prometheus"
        pytest.fail(missing) if os.environ.get("CI") == "true" else pytest.skip(missing)
    folder: Path = tmp_path_factory.mktemp("prometheus")
    for file in render(settings, slow_s=0.2):
        path = folder / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(file.text)
    port = free_port()
    service = subprocess.Popen([sys.executable, "-c", SERVICE, settings.targets[0].rpartition(":")[2]])
    server = subprocess.Popen(
        [
            program,
            f"--config.file={folder}/prometheus/prometheus.yml",
            f"--storage.tsdb.path={folder}/data",
            f"--web.listen-address=127.0.0.1:{port}",
            "--log.level=error",
        ]
    )
    try:
        found = Prometheus(f"http://127.0.0.1:{port}")
        eventually(lambda: _answers(f"http://{settings.targets[0]}/orders/1"), within_s=30)
        eventually(lambda: _answers(f"{found.url}/-/ready"), within_s=30)
        until = time.monotonic() + 8
        while time.monotonic() < until:
            for number in range(20):
                httpx.get(f"http://{settings.targets[0]}/orders/{number}{'' if number else '?fail'}")
            time.sleep(0.2)
        yield found
    finally:
        for process in (server, service):
            process.kill()
            process.wait(10)


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2).status_code == 200
    except httpx.HTTPError:
        return False


def substituted(expr: str) -> str:
    return expr.replace("$__rate_interval", "10s").replace("$job", "shop").replace("$instance", ".*")


@pytest.mark.parametrize("expr", queries())
def test_query_of_every_panel_is_answered(prometheus: Prometheus, expr: str) -> None:
    assert eventually(lambda: prometheus.query(substituted(expr)), within_s=15)


def test_every_rule_is_evaluated_without_an_error(
    prometheus: Prometheus, settings: MonitoringSettings
) -> None:
    groups = prometheus.get("rules")["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert len(rules) == len(alerts(settings)) + len(recordings(settings, slow_s=0.2))
    assert {rule["health"] for rule in rules} == {"ok"}
    firing = {rule["name"] for rule in rules if rule.get("state") == "firing"}
    assert "Watchdog" in firing and "ErrorBudgetBurns14_4x" in firing and "NoInstance" not in firing


def test_shares_are_those_of_the_requests(prometheus: Prometheus) -> None:
    ((_, ratio),) = [one["value"] for one in prometheus.query("tenfold:errors:ratio5m")]
    assert 0 < float(ratio) < 0.2  # one in twenty; the rate of a series that begins is an estimate
    ((_, ratio),) = [one["value"] for one in prometheus.query("tenfold:slow:ratio5m")]
    assert 0 <= float(ratio) < 0.5


def test_dashboard_is_complete(settings: MonitoringSettings) -> None:
    recorded = {str(one["record"]) for one in recordings(settings, slow_s=0.2)}
    found = json.loads(dashboard(settings, recorded=recorded))
    panels = [panel for panel in found["panels"] if panel["type"] == "timeseries"]
    assert len({panel["id"] for panel in found["panels"]}) == len(found["panels"])
    assert [target["expr"] for panel in panels for target in panel["targets"]] == queries()
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in panels)
