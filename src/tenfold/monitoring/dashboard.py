"""A dashboard for Grafana 10 and newer: what a team looks at when it was woken. Pure."""

from __future__ import annotations

import json
from typing import Any

from tenfold.monitoring.rules import require_known_metrics
from tenfold.monitoring.settings import MonitoringSettings

__all__ = ["dashboard", "queries"]

_SECONDS = "http_server_request_duration_seconds"
_JOB = 'job="$job",instance=~"$instance"'
_POOL = "db_client_connection"
_STATEMENTS = "db_client_operation_duration_seconds"
_RATE = "[$__rate_interval]"
_QUANTILE = "histogram_quantile({share}, sum by ({by}) (rate({name}_bucket{{" + _JOB + "}}" + _RATE + ")))"

# Row, then panels: title, unit, and a query for each legend.
_ROWS: tuple[tuple[str, tuple[tuple[str, str, tuple[tuple[str, str], ...]], ...]], ...] = (
    (
        "What users notice",
        (
            (
                "Requests by status",
                "reqps",
                (
                    (
                        f"sum by (http_response_status_code) (rate({_SECONDS}_count{{{_JOB}}}{_RATE}))",
                        "{{http_response_status_code}}",
                    ),
                ),
            ),
            (
                "Share of failed and slow requests",
                "percentunit",
                (("tenfold:errors:ratio5m", "failed"), ("tenfold:slow:ratio5m", "slow")),
            ),
            (
                "Duration",
                "s",
                tuple(
                    (
                        _QUANTILE.format(share=share, by="le", name=_SECONDS),
                        f"p{share * 100:g}",
                    )
                    for share in (0.5, 0.95, 0.99)
                ),
            ),
            (
                "p95 by route",
                "s",
                (
                    (
                        _QUANTILE.format(share=0.95, by="le, http_route", name=_SECONDS),
                        "{{http_route}}",
                    ),
                ),
            ),
        ),
    ),
    (
        "The process",
        (
            (
                "CPU, cores a worker",
                "none",
                (
                    (
                        f"sum by (instance) (rate(tenfold_cpu_seconds_total{{{_JOB}}}[$__rate_interval])) "
                        f"/ sum by (instance) (tenfold_workers{{{_JOB}}})",
                        "{{instance}}",
                    ),
                ),
            ),
            (
                "Event loop, latest",
                "s",
                ((f"max by (instance) (tenfold_event_loop_lag_seconds{{{_JOB}}})", "{{instance}}"),),
            ),
            (
                "Threads for def endpoints",
                "none",
                (
                    (f"sum by (instance) (tenfold_threads_busy{{{_JOB}}})", "busy {{instance}}"),
                    (f"sum by (instance) (tenfold_threads_max{{{_JOB}}})", "most {{instance}}"),
                ),
            ),
            (
                "Limiter",
                "none",
                (
                    (f"sum(tenfold_concurrency_in_flight{{{_JOB}}})", "in flight"),
                    (f"sum(tenfold_concurrency_limit{{{_JOB}}})", "limit"),
                    (
                        f"sum by (reason) (rate(tenfold_shed_total{{{_JOB}}}[$__rate_interval]))",
                        "refused/s {{reason}}",
                    ),
                ),
            ),
        ),
    ),
    (
        "The database",
        (
            (
                "Connections in use",
                "none",
                (
                    (
                        f'sum by ({_POOL}_pool_name) ({_POOL}_count{{{_JOB},{_POOL}_state="used"}})',
                        "{{" + f"{_POOL}_pool_name" + "}}",
                    ),
                    (
                        f"sum by ({_POOL}_pool_name) ({_POOL}_max{{{_JOB}}})",
                        "most {{" + f"{_POOL}_pool_name" + "}}",
                    ),
                ),
            ),
            (
                "Wait for a connection, p95",
                "s",
                (
                    (
                        _QUANTILE.format(
                            share=0.95, by=f"le, {_POOL}_pool_name", name=f"{_POOL}_wait_time_seconds"
                        ),
                        "{{" + f"{_POOL}_pool_name" + "}}",
                    ),
                ),
            ),
            (
                "Replicas, seconds behind",
                "s",
                ((f"max by (server) (tenfold_replica_lag_seconds{{{_JOB}}})", "{{server}}"),),
            ),
            (
                "Statements, p95 by kind",
                "s",
                (
                    (
                        _QUANTILE.format(share=0.95, by="le, db_operation_name", name=_STATEMENTS),
                        "{{db_operation_name}}",
                    ),
                ),
            ),
        ),
    ),
    (
        "Cache and tasks",
        (
            (
                "Query cache by outcome",
                "reqps",
                (
                    (
                        f"sum by (outcome) (rate(tenfold_cache_lookups_total{{{_JOB}}}[$__rate_interval]))",
                        "{{outcome}}",
                    ),
                ),
            ),
            ("Tasks waiting", "none", ((f"max by (queue) (tenfold_tasks_waiting{{{_JOB}}})", "{{queue}}"),)),
            (
                "Oldest task",
                "s",
                ((f"max by (queue) (tenfold_tasks_oldest_seconds{{{_JOB}}})", "{{queue}}"),),
            ),
            (
                "Failed for good",
                "none",
                ((f"max by (queue) (tenfold_tasks_dead{{{_JOB}}})", "{{queue}}"),),
            ),
        ),
    ),
)


def queries() -> list[str]:
    """The query of every panel, with Grafana's variables in it."""
    return [expr for _, panels in _ROWS for _, _, targets in panels for expr, _ in targets]


def dashboard(settings: MonitoringSettings, *, recorded: set[str]) -> str:
    """The dashboard as JSON, to be imported or provisioned.

    Raises:
        SettingsError: a panel names a metric that does not exist.
    """
    for expr in queries():
        require_known_metrics(expr, recorded)
    panels: list[dict[str, Any]] = []
    y = 0
    for row, found in _ROWS:
        panels.append(
            {"type": "row", "title": row, "collapsed": False, "gridPos": {"x": 0, "y": y, "w": 24, "h": 1}}
        )
        for number, (title, unit, targets) in enumerate(found):
            panels.append(_panel(title, unit, targets, x=6 * number, y=y + 1))
        y += 9
    for number, panel in enumerate(panels, 1):
        panel["id"] = number
    return json.dumps(
        {
            "title": f"{settings.job} · tenfold",
            "uid": f"tenfold-{''.join(letter if letter.isalnum() else '-' for letter in settings.job)}"[:40],
            "schemaVersion": 39,
            "editable": True,
            "refresh": "30s",
            "time": {"from": "now-3h", "to": "now"},
            "templating": {"list": _variables(settings)},
            "panels": panels,
        },
        indent=2,
        ensure_ascii=False,
    )


def _panel(title: str, unit: str, targets: Any, *, x: int, y: int) -> dict[str, Any]:
    source = {"type": "prometheus", "uid": "${datasource}"}
    return {
        "type": "timeseries",
        "title": title,
        "datasource": source,
        "gridPos": {"x": x, "y": y, "w": 6, "h": 8},
        "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
        "targets": [
            {"refId": chr(ord("A") + number), "datasource": source, "expr": expr, "legendFormat": legend}
            for number, (expr, legend) in enumerate(targets)
        ],
    }


def _variables(settings: MonitoringSettings) -> list[dict[str, Any]]:
    source = {"type": "prometheus", "uid": "${datasource}"}
    return [
        {"name": "datasource", "type": "datasource", "query": "prometheus"},
        {
            "name": "job",
            "type": "query",
            "datasource": source,
            "query": f"label_values({_SECONDS}_count, job)",
            "current": {"text": settings.job, "value": settings.job},
        },
        {
            "name": "instance",
            "type": "query",
            "datasource": source,
            "query": f'label_values({_SECONDS}_count{{job="$job"}}, instance)',
            "multi": True,
            "includeAll": True,
            "allValue": ".*",
            "current": {"text": "All", "value": "$__all"},
        },
    ]
