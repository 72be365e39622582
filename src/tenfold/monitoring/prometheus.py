"""The files of Prometheus, Alertmanager, the OpenTelemetry Collector and the Prometheus Operator. Pure."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any

from tenfold.errors import DependencyError
from tenfold.monitoring.dashboard import dashboard
from tenfold.monitoring.rules import alerts, objectives, recordings, rule_groups
from tenfold.monitoring.settings import MonitoringSettings
from tenfold.monitoring.slo import PAIRS
from tenfold.types import File

__all__ = ["detection_times", "render"]


def render(
    settings: MonitoringSettings,
    *,
    slow_s: float,
    name: str = "",
    namespace: str = "",
    port_name: str = "http",
) -> tuple[File, ...]:
    """All files: rules, scraping, Alertmanager, dashboard, collector; with ``name`` the operator's.

    Args:
        slow_s: the longest duration of a good request, seconds; the same as MetricsMiddleware's.
        name: of the pods' label ``app.kubernetes.io/name``; without it nothing for Kubernetes is rendered.

    Raises:
        SettingsError: an alert could never fire.
        DependencyError: PyYAML is not installed.
    """
    rules = rule_groups(settings, slow_s=slow_s)
    recorded = {str(one["record"]) for one in recordings(settings, slow_s=slow_s)}
    files = [
        _yaml("prometheus/rules.yml", rules),
        _yaml("prometheus/prometheus.yml", _prometheus(settings)),
        _yaml("prometheus/alertmanager.yml", _alertmanager(settings)),
        _yaml("otel-collector.yaml", _collector(settings)),
        File(PurePosixPath("grafana/dashboard.json"), dashboard(settings, recorded=recorded) + "\n"),
    ]
    if name:
        files.append(
            _yaml("kubernetes/monitoring.yaml", *_operator(settings, rules, name, namespace, port_name))
        )
    return tuple(files)


def detection_times(settings: MonitoringSettings) -> list[tuple[str, str, float]]:
    """Objective, windows and the seconds after which its alert fires in a total outage."""
    return [
        (slo.key, f"{pair.factor:g}× over {pair.long} and {pair.short}", pair.detection_s(slo.budget))
        for slo in objectives(settings)
        for pair in PAIRS
    ]


def _scrape(settings: MonitoringSettings) -> dict[str, Any]:
    return {
        "job_name": settings.job,
        "scrape_interval": f"{settings.scrape_s}s",
        "static_configs": [{"targets": list(settings.targets)}],
    }


def _prometheus(settings: MonitoringSettings) -> dict[str, Any]:
    return {
        "global": {
            "scrape_interval": f"{settings.scrape_s}s",
            "evaluation_interval": f"{settings.scrape_s}s",
        },
        "rule_files": ["rules.yml"],
        "alerting": {"alertmanagers": [{"static_configs": [{"targets": ["127.0.0.1:9093"]}]}]},
        "scrape_configs": [_scrape(settings)],
    }


def _alertmanager(settings: MonitoringSettings) -> dict[str, Any]:
    """A sample: receivers are to be filled in. What explains an alert keeps it silent."""
    reasons: dict[str, list[str]] = {}
    for one in alerts(settings):
        if one.inhibited_by:
            reasons.setdefault(one.inhibited_by, []).append(one.name)
    return {
        "route": {
            "receiver": "tickets",
            "group_by": ["service", "alertname"],
            "group_wait": "30s",
            "group_interval": "5m",
            "repeat_interval": "12h",
            "routes": [
                {"receiver": "watchdog", "matchers": ['alertname="Watchdog"'], "repeat_interval": "5m"},
                {"receiver": "pager", "matchers": ['severity="page"'], "repeat_interval": "1h"},
            ],
        },
        "inhibit_rules": [
            {
                "source_matchers": [f'alertname="{reason}"'],
                "target_matchers": [f'alertname=~"{"|".join(names)}"'],
                "equal": ["service"],
            }
            for reason, names in reasons.items()
        ],
        "receivers": [{"name": "pager"}, {"name": "tickets"}, {"name": "watchdog"}],
    }


def _collector(settings: MonitoringSettings) -> dict[str, Any]:
    """For platforms that are pushed to: the collector scrapes as Prometheus would, and sends OTLP on."""
    return {
        "receivers": {"prometheus": {"config": {"scrape_configs": [_scrape(settings)]}}},
        "processors": {"memory_limiter": {"check_interval": "1s", "limit_mib": 256}, "batch": {}},
        "exporters": {"otlphttp": {"endpoint": "${env:OTEL_EXPORTER_OTLP_ENDPOINT}"}},
        "service": {
            "pipelines": {
                "metrics": {
                    "receivers": ["prometheus"],
                    "processors": ["memory_limiter", "batch"],
                    "exporters": ["otlphttp"],
                }
            }
        },
    }


def _operator(
    settings: MonitoringSettings, rules: dict[str, Any], name: str, namespace: str, port_name: str
) -> list[dict[str, Any]]:
    metadata = {
        "name": name,
        **({"namespace": namespace} if namespace else {}),
        "labels": {"app.kubernetes.io/name": name},
    }
    monitor = {
        "selector": {"matchLabels": {"app.kubernetes.io/name": name}},
        "podMetricsEndpoints": [{"port": port_name, "path": "/metrics", "interval": f"{settings.scrape_s}s"}],
    }
    # The operator names a job after namespace and monitor: the rules look for the service's own name.
    monitor["podMetricsEndpoints"][0]["relabelings"] = [  # type: ignore[index]
        {"targetLabel": "job", "replacement": settings.job}
    ]
    return [
        {
            "apiVersion": "monitoring.coreos.com/v1",
            "kind": "PodMonitor",
            "metadata": metadata,
            "spec": monitor,
        },
        {
            "apiVersion": "monitoring.coreos.com/v1",
            "kind": "PrometheusRule",
            "metadata": metadata,
            "spec": rules,
        },
    ]


def _yaml(path: str, *documents: dict[str, Any]) -> File:
    try:
        import yaml
    except ImportError:
        raise DependencyError(
            "rendering needs PyYAML, which is not installed: pip install 'tenfold[monitoring]'"
        ) from None

    class Plain(yaml.SafeDumper):  # type: ignore[misc]
        """Without anchors, which readers stumble over."""

        def ignore_aliases(self, data: Any) -> bool:
            return True

    text = yaml.dump_all(documents, Dumper=Plain, sort_keys=False, allow_unicode=True, width=110)
    return File(PurePosixPath(path), f"# Rendered by tenfold render monitoring from tenfold.toml.\n{text}")
