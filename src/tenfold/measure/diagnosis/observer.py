"""Observation of a running stack from inside: its probes, its processes, its database's query plans."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from tenfold.errors import MeasurementError
from tenfold.measure.diagnosis.bottleneck import Analysis, Bottleneck
from tenfold.measure.diagnosis.detector import BottleneckDetector
from tenfold.measure.diagnosis.explain import Plan, explain
from tenfold.measure.diagnosis.optional_steps import OptionalSteps
from tenfold.measure.diagnosis.resources import Resources, ResourceSampler
from tenfold.measure.probe.collector import Collector
from tenfold.measure.probe.evidence import Evidence
from tenfold.measure.report.report import BottleneckReport, GroupReport, SeriesReport
from tenfold.measure.settings import Objective
from tenfold.types import Stack

GROUPS = {
    "app": ("app",),
    "database": ("primary", "replica"),
    "cache": ("redis",),
    "proxy": ("nginx",),
}


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Bottlenecks and resources as the report contains them."""

    bottlenecks: tuple[BottleneckReport, ...] = ()
    not_measured: tuple[str, ...] = ()
    groups: tuple[GroupReport, ...] = ()
    series: tuple[SeriesReport, ...] = ()

    @classmethod
    def from_outside(cls) -> Diagnosis:
        """Return the diagnosis of a service that is measured by URL only: nothing is known of its inside."""
        return cls(
            not_measured=(
                "anything inside the service: a URL shows only its responses; "
                "let tenfold start the app (set it in tenfold.toml, run tenfold measure without a URL)",
            )
        )


class StackObserver:
    """Observe ``stack`` while entered.

    Args:
        stack: a running stack whose app instances carry the probe.
        objective: what counts as slow.
        may_create_index: prove a missing index by creating it and dropping it again. Only for a stack whose
            data are thrown away afterwards.
    """

    def __init__(self, stack: Stack, *, objective: Objective, may_create_index: bool = False) -> None:
        self._stack = stack
        self._objective = objective
        self._may_create_index = may_create_index
        self._collector = Collector(stack.probe_address)
        self._sampler = ResourceSampler(
            {group: self._pids_of(kinds) for group, kinds in GROUPS.items() if self._has(kinds)}
        )
        self._open = ExitStack()

    def __enter__(self) -> StackObserver:
        with self._open:
            self._open.enter_context(self._collector)
            self._open.enter_context(self._sampler)
            self._open = self._open.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._open.close()

    def reset(self) -> None:
        """Discard the probes' evidence so far."""
        self._collector.reset()

    def diagnose(self, since: float, until: float, *, begun: float) -> Diagnosis:
        """Rank the bottlenecks between ``since`` and ``until``; the CPU series starts at ``begun``.

        All three are ``time.monotonic()``. A part that fails is listed in ``not_measured``; none raises.
        """
        steps = OptionalSteps()
        nothing = Evidence(seconds=0.0, workers=0, seen={})
        evidence = steps.run("the probes' records", self._collector.evidence, otherwise=nothing)
        whole = steps.run("CPU and memory", self._sampler.series, otherwise=Resources(1, ()))
        window = steps.run("the trials' samples", lambda: whole.between(since, until), otherwise=whole)
        plans = steps.run("query plans", lambda: self._plans(evidence), otherwise=())
        analysis = steps.run("the ranking", lambda: self._rank(evidence, window, plans), otherwise=Analysis())
        return Diagnosis(
            bottlenecks=tuple(_bottleneck(b) for b in analysis.bottlenecks),
            groups=steps.run("CPU by servers", lambda: _groups(window), otherwise=()),
            series=steps.run("CPU over time", lambda: _series(whole, begun), otherwise=()),
            not_measured=(*analysis.not_measured, *steps.failures),
        )

    def _rank(self, evidence: Evidence, window: Resources, plans: Sequence[Plan]) -> Analysis:
        return BottleneckDetector().rank(evidence, window, plans=plans, objective=self._objective)

    def _plans(self, evidence: Evidence) -> Sequence[Plan]:
        url = self._stack.database_url
        if url is None:
            raise MeasurementError("the stack has no database")
        return explain(
            url,
            evidence.statements,
            texts=self._collector.sql_examples(),
            may_create_index=self._may_create_index,
        )

    def _has(self, kinds: Sequence[str]) -> bool:
        return any(server.kind in kinds for server in self._stack.servers)

    def _pids_of(self, kinds: Sequence[str]) -> Callable[[], Sequence[int]]:
        return lambda: [pid for s in self._stack.servers if s.kind in kinds for pid in s.pids()]


def _bottleneck(one: Bottleneck) -> BottleneckReport:
    return BottleneckReport(
        kind=one.kind,
        title=one.title,
        severity=one.severity,
        proof=one.proof,
        evidence=tuple(one.evidence),
        where=one.where,
        remedy=one.remedy,
        share=one.share,
    )


def _groups(window: Resources) -> tuple[GroupReport, ...]:
    return tuple(
        GroupReport(
            name=name,
            cpu_cores_mean=use.mean.cpu_cores,
            cpu_cores_max=use.max.cpu_cores,
            rss_bytes_max=use.max.rss_bytes,
        )
        for name, use in window.groups.items()
    )


def _series(whole: Resources, begun: float) -> tuple[SeriesReport, ...]:
    names = list(dict.fromkeys(name for sample in whole.samples for name in sample.groups))
    return tuple(_one_series(whole, name, begun) for name in names)


def _one_series(whole: Resources, name: str, begun: float) -> SeriesReport:
    seen = [
        (s.at - begun, s.groups[name].cpu_cores) for s in whole.samples if name in s.groups and s.at >= begun
    ]
    return SeriesReport(
        name=name,
        seconds=tuple(round(at, 2) for at, _ in seen),
        values=tuple(round(cores, 3) for _, cores in seen),
    )
