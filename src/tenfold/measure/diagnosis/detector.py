"""Bottleneck detection: from six plain metrics, or from everything that a measurement recorded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tenfold.measure.diagnosis.bottleneck import Analysis
from tenfold.measure.diagnosis.diagnose import diagnose
from tenfold.measure.diagnosis.facts import Facts, Window
from tenfold.measure.machine.resources import Resources
from tenfold.measure.postgresql.explain import Plan
from tenfold.measure.probe.evidence import Evidence
from tenfold.measure.settings import Objective
from tenfold.measure.thresholds import analyze_metrics, limits_with


@dataclass(frozen=True, slots=True)
class BottleneckDetector:
    """Find what limits a service, and list what was not measured.

    Args:
        thresholds: limits by metric name, in place of the defaults: ``cpu_usage`` 80 %, ``memory_usage``
            85 %, ``db_query_time_avg`` 100 ms, ``disk_io_wait`` 20 %, ``network_usage`` 80 %,
            ``db_connection_pool_usage`` 90 %. Only a value strictly above its limit is a bottleneck.

    Raises:
        MeasurementError: a threshold has an unknown name, or is negative or not a finite number.
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
            Bottlenecks by severity, each with ``type``, ``severity`` and ``solution``; metrics that were not
            given are listed in ``not_measured``.

        Raises:
            MeasurementError: a metric has an unknown name, or is negative or not a finite number.
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
        """Find the limit of a measured service, and rank what uses it up.

        Args:
            evidence: what the probes recorded, near the service's capacity.
            resources: what the processes used in the same window.
            plans: the query plans of the costliest statements.
            objective: its ``slow_ms`` is the scale for a pool's waits; the default objective when None.
        """
        facts = Facts(
            limit=Window(evidence, resources),
            plans={plan.fingerprint: plan for plan in plans},
            slow_ms=(objective or Objective()).slow_ms,
        )
        return self.diagnose(facts)

    def diagnose(self, facts: Facts) -> Analysis:
        """Find the limit from two windows of a measurement; see :class:`Facts`."""
        return diagnose(facts, limits=self._limits)
