"""The queues of an app as Prometheus' metrics, read from the ledger when they are asked for.

    app.add_middleware(MetricsEndpoint, collectors=[TaskCollector(celery)])

``tenfold tasks worker --health`` serves them on ``/metrics``. Every process says the same: take the maximum.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from tenfold import metrics
from tenfold.errors import DependencyError, TargetError, TaskError
from tenfold.tasks.operations import read_status

try:
    from prometheus_client import CollectorRegistry
    from prometheus_client.core import GaugeMetricFamily
except ImportError:
    raise DependencyError("prometheus-client is not installed: pip install 'tenfold[tasks]'") from None

if TYPE_CHECKING:
    from tenfold.tasks.celery import LedgerCelery

__all__ = ["TaskCollector", "render_metrics"]

_VALUES = {
    metrics.TASKS_WAITING: "backlog",
    metrics.TASKS_OLDEST_SECONDS: "oldest_s",
    metrics.TASKS_RUNNING: "running",
    metrics.TASKS_RETRYING: "retrying",
    metrics.TASKS_DEAD: "dead",
    metrics.TASK_PROCESSES: "processes",
    metrics.TASK_WAIT_SECONDS: "wait_p95_s",
    metrics.TASK_RUN_SECONDS: "run_p95_s",
}


class TaskCollector:
    """A collector for a registry of prometheus-client; without its database it has no values.

    Args:
        celery: made by :func:`tenfold.tasks.create_celery`.
    """

    def __init__(self, celery: LedgerCelery) -> None:
        self._celery = celery

    def describe(self) -> Iterator[Any]:
        """The metrics without values, so that registering asks no database."""
        for metric in _VALUES:
            yield GaugeMetricFamily(metric.name, metric.help, labels=metric.labels)

    def collect(self) -> Iterator[Any]:
        """The metrics now."""
        try:
            queues, _ = read_status(self._celery)
        except (TargetError, TaskError):
            return
        for metric, name in _VALUES.items():
            family = GaugeMetricFamily(metric.name, metric.help, labels=metric.labels)
            for queue in queues:
                if (value := getattr(queue, name)) is not None:
                    family.add_metric([queue.name], value)
            yield family


def render_metrics(celery: LedgerCelery) -> bytes:
    """The metrics in Prometheus' text format."""
    from prometheus_client import generate_latest

    registry = CollectorRegistry()
    registry.register(TaskCollector(celery))
    text: bytes = generate_latest(registry)
    return text
