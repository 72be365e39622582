"""Thresholds of six plain metrics: each metric above its limit is a bottleneck. Pure."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from typing import get_args

from tenfold.errors import MeasurementError
from tenfold.measure.diagnosis.bottleneck import Analysis, Bottleneck, Severity

_SEVERITIES = get_args(Severity)  # the worst first


@dataclass(frozen=True, slots=True)
class Threshold:
    """The default limit of a metric, and the bottleneck that lies above it."""

    kind: str
    severity: Severity
    limit: float
    unit: str
    title: str
    remedy: str


THRESHOLDS = {
    "cpu_usage": Threshold(
        "CPU", "high", 80, "%", "CPU usage is high",
        "add app instances, or profile the costliest endpoint and move its work out of the request",
    ),
    "memory_usage": Threshold(
        "Memory", "high", 85, "%", "memory is nearly full",
        "find what grows, bound caches and result sets, or add memory",
    ),
    "db_query_time_avg": Threshold(
        "Database", "critical", 100, " ms", "queries are slow on average",
        "EXPLAIN the slowest statements, add missing indexes, load related rows together",
    ),
    "disk_io_wait": Threshold(
        "Disk I/O", "medium", 20, "%", "CPUs wait for the disk",
        "give the database enough memory for its working set, or faster disks",
    ),
    "network_usage": Threshold(
        "Network", "medium", 80, "%", "the network is nearly full",
        "compress responses, paginate long lists, serve static files from a CDN",
    ),
    "db_connection_pool_usage": Threshold(
        "Connection Pool", "high", 90, "%", "nearly every connection is checked out",
        "hold connections for less time, then measure again before enlarging the pool",
    ),
}  # fmt: skip


def limits_with(thresholds: Mapping[str, float] | None) -> dict[str, float]:
    """The limit of every metric: the defaults, replaced by ``thresholds``.

    Raises:
        MeasurementError: a threshold has an unknown name, or is negative or not a finite number.
    """
    given = {name: _require_number("threshold", name, value) for name, value in (thresholds or {}).items()}
    return {name: threshold.limit for name, threshold in THRESHOLDS.items()} | given


def analyze_metrics(metrics: Mapping[str, float], limits: Mapping[str, float]) -> Analysis:
    """Compare metrics with limits; see :class:`~tenfold.measure.diagnosis.detector.BottleneckDetector`."""
    values = {name: _require_number("metric", name, value) for name, value in metrics.items()}
    found = [
        _bottleneck(THRESHOLDS[name], value, limits[name])
        for name, value in values.items()
        if value > limits[name]
    ]
    found.sort(key=lambda one: _SEVERITIES.index(one.severity))
    return Analysis(tuple(found), tuple(name for name in THRESHOLDS if name not in values))


def _bottleneck(threshold: Threshold, value: float, limit: float) -> Bottleneck:
    return Bottleneck(
        kind=threshold.kind,
        title=threshold.title,
        severity=threshold.severity,
        remedy=threshold.remedy,
        evidence=(f"{value:g}{threshold.unit}, more than {limit:g}{threshold.unit}",),
    )


def _require_number(what: str, name: str, value: object) -> float:
    if name not in THRESHOLDS:
        near = difflib.get_close_matches(str(name), THRESHOLDS, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]}?" if near else f"the names are {', '.join(THRESHOLDS)}"
        raise MeasurementError(f"there is no {what} {name}; {hint}")
    try:
        number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise MeasurementError(f"the {what} {name} is {value!r}; give a finite number, or leave it out")
    if number < 0:
        raise MeasurementError(f"the {what} {name} is {value!r}; it cannot be negative")
    return number
