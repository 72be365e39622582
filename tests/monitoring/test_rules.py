"""Every alert in simulated time: it fires in its case, and is silent in the twin of that case."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tenfold.errors import SettingsError
from tenfold.metrics import METRICS
from tenfold.monitoring.rules import (
    Alert,
    alerts,
    metric_names,
    recordings,
    require_known_metrics,
    rule_groups,
)
from tenfold.monitoring.settings import MonitoringSettings
from tenfold.monitoring.slo import PAIRS, Slo, check_pairs

SETTINGS = MonitoringSettings(capacity=100, runbooks="https://wiki.example/monitoring")
POOL = 'db_client_connection_pool_name="db:5432/shop"'
ALERTS = {alert.name: alert for alert in alerts(SETTINGS)}


@pytest.fixture(scope="module")
def promtool() -> str:
    if found := shutil.which("promtool"):
        return found
    missing = "promtool is missing: apt-get install prometheus"
    pytest.fail(missing) if os.environ.get("CI") == "true" else pytest.skip(missing)


@dataclass(frozen=True)
class Case:
    """Series that make an alert fire at a moment, and those of the twin in which it is silent."""

    alert: str
    fires: dict[str, str]
    silent: dict[str, str]
    at: str = "20m"
    labels: dict[str, str] | None = None
    minutes: int = 1  # between two samples


def requests(status: str, values: str, *, le: str = "") -> dict[str, str]:
    kind = "bucket" if le else "count"
    label = f',le="{le}"' if le else ""
    name = f"http_server_request_duration_seconds_{kind}"
    return {f'{name}{{job="app",instance="a",http_response_status_code="{status}"{label}}}': values}


def one(name: str, values: str, labels: str = "") -> dict[str, str]:
    more = f",{labels}" if labels else ""
    return {f'{name}{{job="app",instance="a"{more}}}': values}


# Moment, minutes between two samples (at most five, after which one counts as gone), number of samples.
LONG = {"1h": ("2h", 1, 120), "6h": ("9h", 5, 108), "3d": ("4d", 5, 1152)}


def burning(share: float, minutes: int, count: int) -> dict[str, str]:
    bad = 600 * minutes * share
    return requests("200", f"0+{600 * minutes - bad:g}x{count}") | requests("500", f"0+{bad:g}x{count}")


def slow(share: float, minutes: int, count: int) -> dict[str, str]:
    fast = 600 * minutes * (1 - share)
    return requests("200", f"0+{600 * minutes}x{count}") | requests("200", f"0+{fast:g}x{count}", le="0.2")


def burn_cases() -> list[Case]:
    errors, latencies = [], []
    for pair in PAIRS:
        at, minutes, count = LONG[pair.long]
        suffix = f"{pair.factor:g}x".replace(".", "_")
        limit = pair.factor * 0.001
        silent = burning(0.8 * limit, minutes, count)
        errors.append(
            Case(f"ErrorBudgetBurns{suffix}", burning(1.3 * limit, minutes, count), silent, at, {}, minutes)
        )
        limit = pair.factor * 0.05
        fires, silent = slow(min(1, 1.2 * limit), minutes, count), slow(0.8 * limit, minutes, count)
        latencies.append(Case(f"LatencyBudgetBurns{suffix}", fires, silent, at, {}, minutes))
    return errors + latencies


CASES = [
    Case("Watchdog", {}, {}, "1m", {}),
    Case("NoInstance", one("up", "0x20"), one("up", "1x20"), "5m", {}),
    Case("InstanceDown", one("up", "0x20"), one("up", "1x20"), "5m", {"job": "app", "instance": "a"}),
    Case(
        "MetricsMissing",
        one("up", "1x40"),
        one("up", "1x40") | requests("200", "0+1x40"),
        "30m",
        {"job": "app"},
    ),
    *burn_cases(),
    Case(
        "PoolExhausted",
        one("db_client_connection_timeouts_total", "0+3x30", POOL),
        one("db_client_connection_timeouts_total", "7x30", POOL),
    ),
    Case(
        "PoolNearlyFull",
        one("db_client_connection_count", "19x30", f'{POOL},db_client_connection_state="used"')
        | one("db_client_connection_max", "20x30", POOL),
        one("db_client_connection_count", "17x30", f'{POOL},db_client_connection_state="used"')
        | one("db_client_connection_max", "20x30", POOL),
    ),
    Case(
        "EventLoopLate",
        one("tenfold_event_loop_lag_seconds", "0.3x30"),
        one("tenfold_event_loop_lag_seconds", "0.05x30"),
    ),
    Case(
        "ThreadsBusy",
        one("tenfold_threads_busy", "39x30") | one("tenfold_threads_max", "40x30"),
        one("tenfold_threads_busy", "30x30") | one("tenfold_threads_max", "40x30"),
    ),
    Case(
        "CpuUsedUp",
        one("tenfold_cpu_seconds_total", "0+115x30") | one("tenfold_workers", "2x30"),
        one("tenfold_cpu_seconds_total", "0+90x30") | one("tenfold_workers", "2x30"),
    ),
    Case(
        "LimiterRefuses",
        one("tenfold_shed_total", "0+60x30", 'mode="on",reason="full"') | requests("200", "0+600x30"),
        one("tenfold_shed_total", "0+60x30", 'mode="shadow",reason="full"') | requests("200", "0+600x30"),
        labels={},
    ),
    Case(
        "ReplicaLate",
        one("tenfold_replica_lag_seconds", "30x30", 'server="r"'),
        one("tenfold_replica_lag_seconds", "3x30", 'server="r"'),
    ),
    Case(
        "ReplicaOut",
        one("tenfold_replica_serving", "0x30", 'server="r"'),
        one("tenfold_replica_serving", "1x30", 'server="r"'),
    ),
    Case(
        "TasksLate",
        one("tenfold_tasks_oldest_seconds", "400x30", 'queue="q"'),
        one("tenfold_tasks_oldest_seconds", "100x30", 'queue="q"'),
    ),
    Case(
        "NoWorkers",
        one("tenfold_tasks_waiting", "4x30", 'queue="q"')
        | one("tenfold_task_processes", "0x30", 'queue="q"'),
        one("tenfold_tasks_waiting", "4x30", 'queue="q"')
        | one("tenfold_task_processes", "1x30", 'queue="q"'),
    ),
    Case(
        "TasksDead",
        one("tenfold_tasks_dead", "0+1x90", 'queue="q"'),
        one("tenfold_tasks_dead", "5x90", 'queue="q"'),
        "80m",
    ),
    Case(
        "CacheMisses",
        one("tenfold_cache_lookups_total", "0+100x90", 'outcome="memory"')
        | one("tenfold_cache_lookups_total", "0+900x90", 'outcome="load"'),
        one("tenfold_cache_lookups_total", "0+900x90", 'outcome="memory"')
        | one("tenfold_cache_lookups_total", "0+100x90", 'outcome="load"'),
        "80m",
        {},
    ),
    Case("NearCapacity", requests("200", "0+5400x60"), requests("200", "0+3600x60"), "50m", {}),
]


def run_promtool(
    promtool: str,
    folder: Path,
    *,
    series: dict[str, str],
    at: str,
    expected: dict[str, Any],
    minutes: int = 1,
) -> str:
    """Run one unit test; return what promtool says, "" when it passes."""
    (folder / "rules.yml").write_text(yaml.safe_dump(rule_groups(SETTINGS, slow_s=0.2), sort_keys=False))
    test = {
        "rule_files": ["rules.yml"],
        "evaluation_interval": f"{minutes}m",
        "tests": [
            {
                "interval": f"{minutes}m",
                "input_series": [{"series": name, "values": values} for name, values in series.items()],
                "alert_rule_test": [{"eval_time": at, **expected}],
            }
        ],
    }
    (folder / "test.yml").write_text(yaml.safe_dump(test))
    done = subprocess.run(
        [promtool, "test", "rules", "test.yml"], cwd=folder, capture_output=True, text=True, timeout=60
    )
    return "" if done.returncode == 0 else done.stdout + done.stderr


def fired(said: str) -> list[str]:
    """The alerts that promtool got where none was expected."""
    return re.findall(r'alertname="(\w+)"', said.partition("got:")[2])


@pytest.mark.guarantee(
    "every alert fires in its case", pattern="monitoring", under="simulated time, full windows"
)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.alert)
def test_alert_fires_in_its_case(promtool: str, tmp_path: Path, case: Case) -> None:
    nothing = {"alertname": case.alert, "exp_alerts": []}
    said = run_promtool(
        promtool, tmp_path, series=case.fires, at=case.at, expected=nothing, minutes=case.minutes
    )
    assert f'alertname="{case.alert}"' in said, "it is silent"
    assert "{{" not in said and "<error" not in said  # its summary can be filled in
    if case.labels is not None:
        for name, value in case.labels.items():
            assert f'{name}="{value}"' in said


@pytest.mark.control("every alert fires in its case", "the twin of each case, in which it is silent")
@pytest.mark.parametrize(
    "case", [case for case in CASES if case.alert != "Watchdog"], ids=lambda case: case.alert
)
def test_alert_is_silent_in_the_twin(promtool: str, tmp_path: Path, case: Case) -> None:
    nothing = {"alertname": case.alert, "exp_alerts": []}
    assert (
        run_promtool(
            promtool, tmp_path, series=case.silent, at=case.at, expected=nothing, minutes=case.minutes
        )
        == ""
    )


def test_every_alert_has_a_case() -> None:
    assert [case.alert for case in CASES] == list(ALERTS)


def test_alert_ends_soon_after_the_trouble(promtool: str, tmp_path: Path) -> None:
    """An hour's share is still above the limit; that of five minutes is not."""
    series = requests("200", "0+600x120") | requests("500", "0+60x90 5400x30")
    nothing = {"alertname": "ErrorBudgetBurns14_4x", "exp_alerts": []}
    assert run_promtool(promtool, tmp_path, series=series, at="85m", expected=nothing) != ""
    assert run_promtool(promtool, tmp_path, series=series, at="100m", expected=nothing) == ""


def test_few_requests_say_nothing_about_their_share(promtool: str, tmp_path: Path) -> None:
    series = requests("500", "0+1x120")  # all fail: five in five minutes
    nothing = {"alertname": "ErrorBudgetBurns14_4x", "exp_alerts": []}
    assert run_promtool(promtool, tmp_path, series=series, at="2h", expected=nothing) == ""


@pytest.mark.parametrize("alert", ALERTS.values(), ids=lambda alert: alert.name)
def test_alert_says_what_is_wrong_in_one_sentence_and_links_to_the_page(alert: Alert) -> None:
    rule = alert.rule(SETTINGS)
    assert rule["annotations"]["runbook_url"] == f"https://wiki.example/monitoring#{alert.name.lower()}"
    assert rule["labels"]["severity"] in ("page", "ticket", "none")
    assert len(re.sub(r"\{\{.*?\}\}", "", alert.summary)) < 120 and "\n" not in alert.summary
    page = (Path(__file__).parents[2] / "docs" / "monitoring.md").read_text()
    assert f"\n#### {alert.name}\n" in page, "it has no paragraph on the page"
    assert not alert.inhibited_by or alert.inhibited_by in ALERTS


# ------------------------------------------------------------------ what cannot fire, what does not exist


@pytest.mark.parametrize(("target", "least"), [(0.9, "0.931"), (0.93, "0.931")])
def test_pair_that_cannot_fire_is_refused(target: float, least: str) -> None:
    with pytest.raises(SettingsError, match=f"could never fire; set it above {least}"):
        rule_groups(MonitoringSettings(latency=target), slow_s=0.2)


def test_pair_that_can_fire_is_accepted() -> None:
    for target in (0.94, 0.95, 0.99, 0.9999):
        check_pairs(Slo("slow", target, "latency"))


def test_detection_time_is_that_of_a_total_outage() -> None:
    assert [round(pair.detection_s(0.001), 1) for pair in PAIRS] == [51.8, 129.6, 259.2]


@pytest.mark.parametrize(
    ("expr", "names"),
    [
        ('sum by (le) (rate(http_x_bucket{a="b{c}"}[5m])) > 0.9 and on () up == 1', {"http_x_bucket", "up"}),
        ("histogram_quantile(0.95, sum(rate(a_bucket[$__rate_interval])))", {"a_bucket"}),
        (
            'label_replace(one, "x", "$1", "y", ".*") offset 5m unless two:three:rate5m',
            {"one", "two:three:rate5m"},
        ),
        ("vector(1)", set()),
    ],
)
def test_metrics_of_an_expression_are_found(expr: str, names: set[str]) -> None:
    assert metric_names(expr) == names


@pytest.mark.guarantee(
    "every metric in a rule or panel is exported", pattern="monitoring", under="renamed metrics"
)
def test_unknown_metric_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        SettingsError, match=r"no metric tenfold_shed is exported.*did you mean tenfold_shed_total"
    ):
        require_known_metrics("rate(tenfold_shed[5m])")
    left = tuple(metric for metric in METRICS if metric.name != "tenfold_workers")
    monkeypatch.setattr("tenfold.monitoring.rules.METRICS", left)
    with pytest.raises(SettingsError, match="no metric tenfold_workers is exported"):
        rule_groups(SETTINGS, slow_s=0.2)


@pytest.mark.control("every metric in a rule or panel is exported", "promtool alone")
def test_the_control_promtool_accepts_any_metric(promtool: str, tmp_path: Path) -> None:
    rules = {"groups": [{"name": "g", "rules": [{"alert": "A", "expr": "no_such_metric > 1"}]}]}
    (tmp_path / "rules.yml").write_text(yaml.safe_dump(rules))
    done = subprocess.run(
        [promtool, "check", "rules", "rules.yml"], cwd=tmp_path, capture_output=True, check=False
    )
    assert done.returncode == 0


def test_windows_hold_four_scrapes() -> None:
    assert MonitoringSettings(scrape_s=75)
    with pytest.raises(ValueError, match="less than or equal to 75"):
        MonitoringSettings(scrape_s=76)
    assert all("[5m]" in str(rule["expr"]) for rule in recordings(SETTINGS, slow_s=0.2)[:3])
