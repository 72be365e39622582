"""Bottleneck detection: from six plain metrics, or from the evidence of a measurement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tenfold.measure.diagnosis import ranking
from tenfold.measure.diagnosis.bottleneck import Analysis
from tenfold.measure.diagnosis.explain import Plan
from tenfold.measure.diagnosis.resources import Resources
from tenfold.measure.probe.evidence import Evidence
from tenfold.measure.settings import Objective
from tenfold.measure.thresholds import analyze_metrics, limits_with


@dataclass(frozen=True, slots=True)
class BottleneckDetector:
    """A detector of the bottlenecks of a service, which also lists what was not measured.

    Args:
        thresholds: limits by metric name, in place of the defaults: ``cpu_usage`` 80 %, ``memory_usage``
            85 %, ``db_query_time_avg`` 100 ms, ``disk_io_wait`` 20 %, ``network_usage`` 80 %,
            ``db_connection_pool_usage`` 90 %. Only a value strictly above its limit is a bottleneck.

    Raises:
        MeasurementError: a threshold has an unknown name, or is negative or no finite number.
    """

    thresholds: Mapping[str, float] | None = None
    _limits: Mapping[str, float] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_limits", limits_with(self.thresholds))

    def analyze_performance_metrics(self, metrics: Mapping[str, float]) -> Analysis:
        """Compare plain metrics with the thresholds.

        Args:
            metrics: any of the names above; percentages from 0, times in milliseconds.

        Returns:
            Bottlenecks by severity, each with ``type``, ``severity`` and ``solution``; names that were not
            given are in ``not_measured``.

        Raises:
            MeasurementError: a metric has an unknown name, or is negative or no finite number.
        """
        return analyze_metrics(metrics, self._limits)

    def rank(
        self,
        evidence: Evidence,
        resources: Resources | None = None,
        *,
        plans: Sequence[Plan] = (),
        objective: Objective | None = None,
    ) -> Analysis:
        """Rank the bottlenecks in a measurement's evidence by the share of the slow requests' time.

        Args:
            evidence: observations of the probes, near the service's capacity.
            resources: resource use of the processes in the same window.
            plans: plans of the costliest statements.
            objective: its ``slow_ms`` is the limit for waits for the pool and the event loop.
        """
        return ranking.rank(evidence, resources, plans=plans, objective=objective, limits=self._limits)
