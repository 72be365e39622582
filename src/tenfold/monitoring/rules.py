"""Recording and alerting rules for Prometheus 2.42 and newer. Pure.

Each alert says in one sentence what is wrong, and links to its paragraph of docs/monitoring.md. Symptoms that
users feel page the person on call; causes and slow trends are tickets.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from tenfold.errors import SettingsError
from tenfold.metrics import METRICS
from tenfold.monitoring.settings import MonitoringSettings
from tenfold.monitoring.slo import PAIRS, Slo, check_pairs

__all__ = ["Alert", "alerts", "metric_names", "recordings", "require_known_metrics", "rule_groups"]

_REQUESTS = "http_server_request_duration_seconds"
_WINDOWS = ("5m", "30m", "1h", "6h", "3d")
_POOL = "db_client_connection"


@dataclass(frozen=True, slots=True)
class Alert:
    """One alert: its condition in PromQL, how long it has to hold, and what it says."""

    name: str
    expr: str
    severity: Literal["page", "ticket", "none"]
    summary: str
    hold: str = "5m"
    inhibited_by: str = ""  # an alert that explains this one

    def rule(self, settings: MonitoringSettings) -> dict[str, Any]:
        """The rule as it stands in the file."""
        link = f"{settings.runbooks or 'docs/monitoring.md'}#{self.name.lower()}"
        return {
            "alert": self.name,
            "expr": self.expr,
            **({"for": self.hold} if self.hold else {}),
            "labels": {"severity": self.severity, "service": settings.job},
            "annotations": {"summary": self.summary, "runbook_url": link},
        }


def objectives(settings: MonitoringSettings) -> tuple[Slo, Slo]:
    """The two objectives.

    Raises:
        SettingsError: an alert of one of them could never fire.
    """
    found = Slo("errors", settings.availability, "availability"), Slo("slow", settings.latency, "latency")
    for slo in found:
        check_pairs(slo)
    return found


def recordings(settings: MonitoringSettings, *, slow_s: float) -> list[dict[str, Any]]:
    """The rules that compute shares of bad requests beforehand, over each window."""
    job = f'job="{settings.job}"'
    failed = f'{job},http_response_status_code=~"5.."'
    rules: list[dict[str, Any]] = []
    for window in _WINDOWS:
        total = f"sum(rate({_REQUESTS}_count{{{job}}}[{window}]))"
        failing = f"sum(rate({_REQUESTS}_count{{{failed}}}[{window}]))"
        fast = f'sum(rate({_REQUESTS}_bucket{{{job},le="{_boundary(slow_s)}"}}[{window}]))'
        rules += [
            {"record": f"tenfold:requests:rate{window}", "expr": total},
            {
                "record": f"tenfold:errors:ratio{window}",
                "expr": f"({failing} or 0 * {total}) / ({total} > 0)",
            },
            {"record": f"tenfold:slow:ratio{window}", "expr": f"1 - {fast} / ({total} > 0)"},
        ]
    return rules


def _boundary(seconds: float) -> str:
    """A bucket's label as prometheus-client and Prometheus write it: 1.0, 0.2."""
    return repr(float(seconds))


def _burn_alerts(settings: MonitoringSettings) -> Iterator[Alert]:
    words = {"errors": ("fail", "ErrorBudget"), "slow": ("are slow", "LatencyBudget")}
    for slo in objectives(settings):
        verb, name = words[slo.name]
        for pair in PAIRS:
            limit = f"{pair.factor * slo.budget:.6g}"
            conditions = [f"tenfold:{slo.name}:ratio{window} > {limit}" for window in (pair.long, pair.short)]
            count = f'sum(increase({_REQUESTS}_count{{job="{settings.job}"}}[{pair.short}]))'
            conditions.append(f"({count} > {settings.least_requests})")
            yield Alert(
                f"{name}Burns{pair.factor:g}x".replace(".", "_"),
                " and ".join(conditions),
                pair.severity,
                f"{{{{ $value | humanizePercentage }}}} of requests {verb} over {pair.long}: "
                f"the budget of {slo.budget:.3g} is spent {pair.factor:g} times too fast",
                hold="",
                inhibited_by="NoInstance",
            )


def alerts(settings: MonitoringSettings) -> list[Alert]:
    """Every alert, in the order of the page."""
    job = f'job="{settings.job}"'
    pool = f"{_POOL}_pool_name"
    rate = f"sum(rate({_REQUESTS}_count{{{job}}}[5m]))"
    shed = f'sum(rate(tenfold_shed_total{{{job},mode!="shadow"}}[5m]))'
    hits = f'sum(rate(tenfold_cache_lookups_total{{{job},outcome=~"memory|redis|coalesced"}}[30m]))'
    lookups = f"sum(rate(tenfold_cache_lookups_total{{{job}}}[30m]))"
    found = [
        Alert(
            "Watchdog", "vector(1)", "none", "Always fires: when it does not arrive, alerting is broken", ""
        ),
        Alert("NoInstance", f"absent(up{{{job}}} == 1)", "page", "No instance answers Prometheus", "1m"),
        Alert(
            "InstanceDown",
            f"up{{{job}}} == 0",
            "ticket",
            "{{ $labels.instance }} does not answer",
            "3m",
            "NoInstance",
        ),
        Alert(
            "MetricsMissing",
            f"absent({_REQUESTS}_count{{{job}}}) and on () (max(up{{{job}}}) == 1)",
            "ticket",
            "Instances answer without the metrics of requests: is MetricsMiddleware there?",
            "15m",
        ),
        *_burn_alerts(settings),
        Alert(
            "PoolExhausted",
            f"sum by (instance, {pool}) (rate({_POOL}_timeouts_total{{{job}}}[5m])) > 0",
            "page",
            f"Requests wait in vain for a connection of {{{{ $labels.{pool} }}}}",
            "2m",
            "NoInstance",
        ),
        Alert(
            "PoolNearlyFull",
            f'max by (instance, {pool}) ({_POOL}_count{{{job},{_POOL}_state="used"}}) '
            f"> 0.9 * max by (instance, {pool}) ({_POOL}_max{{{job}}} > 0)",
            "ticket",
            f"The pool {{{{ $labels.{pool} }}}} is more than nine tenths full",
            "10m",
            "PoolExhausted",
        ),
        Alert(
            "EventLoopLate",
            f"max by (instance) (tenfold_event_loop_lag_seconds{{{job}}}) > 0.1",
            "ticket",
            "The event loop of {{ $labels.instance }} comes {{ $value | humanizeDuration }} late",
        ),
        Alert(
            "ThreadsBusy",
            f"sum by (instance) (tenfold_threads_busy{{{job}}}) "
            f"> 0.9 * sum by (instance) (tenfold_threads_max{{{job}}})",
            "ticket",
            "The threads for `def` endpoints of {{ $labels.instance }} are used up",
        ),
        Alert(
            "CpuUsedUp",
            f"sum by (instance) (rate(tenfold_cpu_seconds_total{{{job}}}[5m])) "
            f"> 0.9 * sum by (instance) (tenfold_workers{{{job}}})",
            "ticket",
            "Each worker of {{ $labels.instance }} uses more than 0.9 of a core",
            "10m",
        ),
        Alert(
            "LimiterRefuses",
            f"{shed} / ({rate} > 0) > 0.05",
            "page",
            "{{ $value | humanizePercentage }} of requests are refused: the service is overloaded",
            "5m",
            "NoInstance",
        ),
        Alert(
            "ReplicaLate",
            f"max by (server) (tenfold_replica_lag_seconds{{{job}}}) > {settings.replica_lag_s:g}",
            "ticket",
            "{{ $labels.server }} is {{ $value | humanizeDuration }} behind",
        ),
        Alert(
            "ReplicaOut",
            f"max by (server) (tenfold_replica_serving{{{job}}}) == 0",
            "ticket",
            "{{ $labels.server }} gets no reads from any instance",
        ),
        Alert(
            "TasksLate",
            f"max by (queue) (tenfold_tasks_oldest_seconds{{{job}}}) > {settings.queue_s:g}",
            "ticket",
            "The oldest task of {{ $labels.queue }} waits for {{ $value | humanizeDuration }}",
            "5m",
            "NoWorkers",
        ),
        Alert(
            "NoWorkers",
            f"max by (queue) (tenfold_tasks_waiting{{{job}}}) > 0 and "
            f"max by (queue) (tenfold_task_processes{{{job}}}) == 0",
            "page",
            "Tasks of {{ $labels.queue }} wait, and no worker takes them",
        ),
        Alert(
            "TasksDead",
            f"max by (queue) (delta(tenfold_tasks_dead{{{job}}}[1h])) > 0",
            "ticket",
            "Tasks of {{ $labels.queue }} failed for good: tenfold tasks dead list shows them",
            "",
        ),
        Alert(
            "CacheMisses",
            f"{hits} / ({lookups} > 1) < {settings.hit_ratio:g}",
            "ticket",
            "Only {{ $value | humanizePercentage }} of look-ups find something in the query cache",
            "30m",
        ),
    ]
    if settings.capacity:
        found.append(
            Alert(
                "NearCapacity",
                f"{rate} > {0.8 * settings.capacity:g}",
                "ticket",
                "{{ $value | humanize }} requests/s are more than 0.8 of what was measured: "
                f"{settings.capacity:g}",
                "15m",
            )
        )
    return found


def rule_groups(settings: MonitoringSettings, *, slow_s: float) -> dict[str, Any]:
    """The file of rules.

    Raises:
        SettingsError: a pair of windows cannot fire, or a rule names a metric that does not exist.
    """
    recorded = recordings(settings, slow_s=slow_s)
    every = alerts(settings)
    known = {str(one["record"]) for one in recorded}
    for expr in [*(str(one["expr"]) for one in recorded), *(one.expr for one in every)]:
        require_known_metrics(expr, known)
    return {
        "groups": [
            {"name": f"{settings.job}-objectives", "rules": recorded},
            {"name": f"{settings.job}-alerts", "rules": [one.rule(settings) for one in every]},
        ]
    }


# ------------------------------------------------------------------ metrics that exist

_NOT_METRICS = re.compile(
    r'"[^"]*"|\{[^}]*\}|\[[^]]*\]|\b(?:by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)'
)
_WORD = re.compile(r"(?<![\w.:])([A-Za-z_:][A-Za-z0-9_:]*+)(?!\s*\()")
_KEYWORDS = {"and", "or", "unless", "bool", "offset", "inf", "nan"}
_SUFFIXES = {"histogram": ("_bucket", "_count", "_sum"), "counter": ("",), "gauge": ("",)}


def metric_names(expr: str) -> set[str]:
    """The metrics that an expression of PromQL names."""
    bare = _NOT_METRICS.sub(" ", re.sub(r"\$__?\w+", "5m", expr))
    return {word for word in _WORD.findall(bare) if word.lower() not in _KEYWORDS}


def require_known_metrics(expr: str, recorded: set[str] | frozenset[str] = frozenset()) -> None:
    """Refuse a metric that nothing exports; promtool accepts any name.

    Raises:
        SettingsError: it names the metric and the nearest that exists.
    """
    known = {"up", *recorded}
    known |= {one.name + suffix for one in METRICS for suffix in _SUFFIXES[one.kind]}
    if unknown := metric_names(expr) - known:
        import difflib

        name = min(unknown)
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise SettingsError(f"no metric {name} is exported, so that a rule or panel would stay empty{hint}")
