"""Plain metrics against thresholds: strict at the boundary; invalid and missing values."""

from __future__ import annotations

import math
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenfold.errors import MeasurementError
from tenfold.measure.diagnosis.detector import BottleneckDetector

TABLE = [
    ("cpu_usage", 80, "CPU", "high"),
    ("memory_usage", 85, "Memory", "high"),
    ("db_query_time_avg", 100, "Database", "critical"),
    ("disk_io_wait", 20, "Disk I/O", "medium"),
    ("network_usage", 80, "Network", "medium"),
    ("db_connection_pool_usage", 90, "Connection Pool", "high"),
]
NAMES = [row[0] for row in TABLE]


@pytest.mark.parametrize(("name", "limit", "kind", "severity"), TABLE)
def test_only_values_strictly_above_the_limit_are_bottlenecks(
    name: str, limit: float, kind: str, severity: str
) -> None:
    detector = BottleneckDetector()
    assert not detector.analyze_performance_metrics({name: limit})
    (found,) = detector.analyze_performance_metrics({name: math.nextafter(limit, math.inf)})
    assert (found.type, found.severity) == (kind, severity)
    assert found.solution


def test_absent_metrics_are_listed_as_not_measured() -> None:
    report = BottleneckDetector().analyze_performance_metrics({"cpu_usage": 10})
    assert report.not_measured == tuple(NAMES[1:])
    assert "Not measured: memory_usage" in str(report)
    assert BottleneckDetector().analyze_performance_metrics({}).not_measured == tuple(NAMES)


def test_bottlenecks_are_sorted_by_severity() -> None:
    report = BottleneckDetector().analyze_performance_metrics({name: limit + 1 for name, limit, *_ in TABLE})
    severities = [one.severity for one in report.bottlenecks]
    assert severities == ["critical", "high", "high", "high", "medium", "medium"]
    assert len(report) == 6
    assert str(report).startswith("1  Database")


def test_thresholds_replace_the_defaults() -> None:
    detector = BottleneckDetector(thresholds={"cpu_usage": 50})
    assert [one.type for one in detector.analyze_performance_metrics({"cpu_usage": 51})] == ["CPU"]
    assert not detector.analyze_performance_metrics({"cpu_usage": 50, "memory_usage": 85})


@pytest.mark.parametrize(
    "value", [math.nan, math.inf, -math.inf, 10**400, True, "81", None, Decimal(81), [81]]
)
def test_value_that_is_not_a_finite_number_is_refused(value: object) -> None:
    with pytest.raises(MeasurementError, match="metric cpu_usage is"):
        BottleneckDetector().analyze_performance_metrics({"cpu_usage": value})  # type: ignore[dict-item]
    with pytest.raises(MeasurementError, match="threshold cpu_usage is"):
        BottleneckDetector(thresholds={"cpu_usage": value})  # type: ignore[dict-item]


def test_negative_value_is_refused() -> None:
    with pytest.raises(MeasurementError, match="metric cpu_usage is -1; it cannot be negative"):
        BottleneckDetector().analyze_performance_metrics({"cpu_usage": -1})


def test_unknown_name_is_refused_with_a_suggestion() -> None:
    with pytest.raises(MeasurementError, match="no metric cpu_usge; did you mean cpu_usage"):
        BottleneckDetector().analyze_performance_metrics({"cpu_usge": 1})
    with pytest.raises(MeasurementError, match=r"no threshold zzz; the names are cpu_usage, "):
        BottleneckDetector(thresholds={"zzz": 1})


@given(st.dictionaries(st.sampled_from(NAMES), st.floats(0, 1e9)))
def test_each_metric_is_a_bottleneck_or_healthy_or_not_measured(metrics: dict[str, float]) -> None:
    report = BottleneckDetector().analyze_performance_metrics(metrics)
    limits = {name: limit for name, limit, *_ in TABLE}
    assert len(report) == sum(value > limits[name] for name, value in metrics.items())
    assert set(report.not_measured) == set(NAMES) - set(metrics)
