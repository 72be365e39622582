"""Bottleneck detection: from six plain metrics, or from everything that a measurement recorded."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import TYPE_CHECKING

from tenfold.errors import MeasurementError
from tenfold.measure.diagnosis.bottleneck import Analysis, Bottleneck, Severity

if TYPE_CHECKING:
    from tenfold.measure.diagnosis.explain import Plan
    from tenfold.measure.diagnosis.resources import Resources
    from tenfold.measure.probe.evidence import Evidence
    from tenfold.measure.settings import Objective


@dataclass(frozen=True, slots=True)
class _Rule:
    kind: str
    severity: Severity
    limit: float
    unit: str
    title: str
    solution: str


_RULES = {
    "cpu_usage": _Rule(
        "CPU", "high", 80, "%", "CPU usage is high",
        "add app instances, or profile the costliest endpoint and move its work out of the request",
    ),
    "memory_usage": _Rule(
        "Memory", "high", 85, "%", "memory is nearly full",
        "find what grows, bound caches and result sets, or add memory",
    ),
    "db_query_time_avg": _Rule(
        "Database", "critical", 100, " ms", "queries are slow on average",
        "EXPLAIN the slowest statements, add missing indexes, load related rows together",
    ),
    "disk_io_wait": _Rule(
        "Disk I/O", "medium", 20, "%", "CPUs wait for the disk",
        "give the database enough memory for its working set, or faster disks",
    ),
    "network_usage": _Rule(
        "Network", "medium", 80, "%", "the network is nearly full",
        "compress responses, paginate long lists, serve static files from a CDN",
    ),
    "db_connection_pool_usage": _Rule(
        "Connection Pool", "high", 90, "%", "nearly every connection is checked out",
        "hold connections for less time, then measure again before enlarging the pool",
    ),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class BottleneckDetector:
    """Find what limits a service, and list what was not measured.

    Args:
        thresholds: limits by metric name, in place of the defaults: ``cpu_usage`` 80 %, ``memory_usage``
            85 %, ``db_query_time_avg`` 100 ms, ``disk_io_wait`` 20 %, ``network_usage`` 80 %,
            ``db_connection_pool_usage`` 90 %. Only a value strictly above its limit is a bottleneck.

    Raises:
        MeasurementError: a threshold has an unknown name or is not a finite number.
    """

    thresholds: Mapping[str, float] | None = None
    _limits: Mapping[str, float] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        given = {
            name: _require_number("threshold", name, value) for name, value in (self.thresholds or {}).items()
        }
        defaults = {name: rule.limit for name, rule in _RULES.items()}
        object.__setattr__(self, "_limits", defaults | given)

    def analyze_performance_metrics(self, metrics: Mapping[str, float]) -> Analysis:
        """Compare plain metrics with the thresholds.

        Args:
            metrics: any of the names above; percentages from 0, times in milliseconds.

        Returns:
            Bottlenecks by severity, each with ``type``, ``severity`` and ``solution``; metrics that were not
            given are listed in ``not_measured``.

        Raises:
            MeasurementError: a metric has an unknown name, or is negative or not a finite number.
        """
        values = {name: _require_number("metric", name, value) for name, value in metrics.items()}
        found = [
            _bottleneck(_RULES[name], value, self._limits[name])
            for name, value in values.items()
            if value > self._limits[name]
        ]
        found.sort(key=lambda one: _ORDER[one.severity])
        return Analysis(tuple(found), tuple(name for name in _RULES if name not in values))

    def rank(
        self,
        evidence: Evidence,
        resources: Resources | None = None,
        *,
        plans: Sequence[Plan] = (),
        objective: Objective | None = None,
    ) -> Analysis:
        """Rank the bottlenecks of a measurement by the share of the slow requests' time that each explains.

        Args:
            evidence: what the probes recorded, near the service's capacity.
            resources: what the processes used in the same window.
            plans: the query plans of the costliest statements.
            objective: its ``slow_ms`` is the scale for a pool's waits; the default objective when None.
        """
        from tenfold.measure.diagnosis.ranking import rank

        return rank(evidence, resources, plans=plans, objective=objective, limits=self._limits)


_ORDER: dict[str, int] = {"critical": 0, "high": 1, "medium": 2, "low": 3}


def _bottleneck(rule: _Rule, value: float, limit: float) -> Bottleneck:
    return Bottleneck(
        kind=rule.kind,
        title=rule.title,
        severity=rule.severity,
        remedy=rule.solution,
        evidence=(f"{value:g}{rule.unit}, more than {limit:g}{rule.unit}",),
    )


def _require_number(what: str, name: str, value: object) -> float:
    if name not in _RULES:
        near = difflib.get_close_matches(str(name), _RULES, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]}?" if near else f"the names are {', '.join(_RULES)}"
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
