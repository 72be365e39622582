"""Observation of a running stack from inside: its probes, its processes, its database's query plans."""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import psutil

from tenfold.errors import MeasurementError
from tenfold.measure.diagnosis.backlog import Backlog, QueueCounts, find_growing_queues, read_queues
from tenfold.measure.diagnosis.bottleneck import Bottleneck, Limit
from tenfold.measure.diagnosis.detector import BottleneckDetector
from tenfold.measure.diagnosis.facts import Facts, Window
from tenfold.measure.diagnosis.memory_growth import Kept, MemoryPoint, find_growth, leak
from tenfold.measure.load import histogram
from tenfold.measure.machine.priority import LowPriority
from tenfold.measure.machine.resources import Resources, ResourceSampler
from tenfold.measure.optional_steps import OptionalSteps
from tenfold.measure.postgresql.explain import Plan, explain
from tenfold.measure.postgresql.sessions import DatabaseStats, DatabaseView
from tenfold.measure.probe.aggregate import Aggregate
from tenfold.measure.probe.collector import MAYBE_POSTGRESQL, Collector
from tenfold.measure.probe.evidence import Evidence
from tenfold.measure.probe.probe_protocol import STOP_TRACING, TRACE_MEMORY
from tenfold.measure.report.report import (
    BottleneckReport,
    GroupReport,
    LimitReport,
    PartReport,
    SeriesReport,
)
from tenfold.measure.service_log import last_error
from tenfold.measure.settings import Objective
from tenfold.measure.trial import Trial
from tenfold.types import Stack

GROUPS = {
    "app": ("app",),
    "database": ("primary", "replica"),
    "cache": ("redis",),
    "proxy": ("nginx",),
    "workers": ("workers",),
}


TRIALS = 30  # whose records are kept
NEAR = 0.85  # of the capacity's lower end: from this rate on a trial shows the limit …
BEYOND = 1.5  # … up to this multiple of its upper end
WORKERS_S = 0.5
TRACE_S = 10.0  # longest wait for the lines that keep memory: they are counted in the worker
LEAST_PART_S = 0.0005  # of a request: a shorter part is not reported
LEAST_S = 1.5  # a shorter trial tells nothing of its own
LOW = 0.5  # of the capacity's lower end: up to this rate a trial shows the service at low load


@dataclass(frozen=True, slots=True)
class TrialRecord:
    """What the probes recorded in one trial. Times are ``time.monotonic()``."""

    rate: float  # arrivals per second
    start: float
    end: float  # of its load
    records: Aggregate
    ended: float  # ``time.perf_counter()``
    client_s: float = 0.0  # mean latency at the generator, of ``requests``
    requests: int = 0
    generator_cores: float = 0.0


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Bottlenecks and resources as the report contains them."""

    limit: LimitReport | None = None
    parts: tuple[PartReport, ...] = ()
    stacks: tuple[tuple[str, float], ...] = ()
    present: tuple[str, ...] = ()
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
        self._priority = LowPriority(self._pids_of(kinds) for kinds in GROUPS.values() if self._has(kinds))
        self._database = DatabaseView(stack.database_url) if stack.database_url else None
        self._open = ExitStack()
        self._trial: tuple[float, float] | None = None  # rate and start of the running one
        self._records: list[TrialRecord] = []
        self._queues_before: Mapping[str, QueueCounts] = {}
        self._backlogs: list[Backlog] = []
        self._count_queues = OptionalSteps()
        self._kept: Kept | None = None

    def __enter__(self) -> StackObserver:
        with self._open:
            self._open.enter_context(self._collector)
            self._open.enter_context(self._sampler)
            self._open.enter_context(self._priority)
            if self._database is not None:
                self._open.enter_context(self._database)
            self._open = self._open.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._open.close()

    def begin_trial(self, rate: float) -> None:
        """Start the records of a trial."""
        self._queues_before = self._read_queues()
        self._collector.reset()
        self._trial = (rate, time.monotonic())

    def end_trial(self, trial: Trial) -> None:
        """End the records of a trial, if one runs; CPU counts until its load ended."""
        if self._trial is None:
            return
        rate, start = self._trial
        end = max(time.monotonic() - trial.settled_s, start)
        latency = histogram.mean(trial.raw) / 1000 if trial.raw else 0.0
        self._records.append(
            TrialRecord(
                rate,
                start,
                end,
                *self._collector.cut(),
                client_s=latency,
                requests=histogram.count(trial.raw) if trial.raw else 0,
                generator_cores=trial.generator.cpu_share,
            )
        )
        self._trial = None
        if queues := self._read_queues(done_within_s=time.monotonic() - start):
            self._backlogs.append(Backlog(rate, end - start, self._queues_before, queues))
            del self._backlogs[:-TRIALS]
        if len(self._records) > TRIALS:  # the slowest one is the farthest from the limit
            self._records.remove(min(self._records, key=lambda one: one.rate))

    def _read_queues(self, *, done_within_s: float = 0.0) -> Mapping[str, QueueCounts]:
        url = self._stack.database_url
        if url is None or not self._has(["workers"]):
            return {}
        return self._count_queues.run(
            "queues of tasks", lambda: read_queues(url, done_within_s=done_within_s), otherwise={}
        )

    def last_error(self) -> str:
        """Return the last error in the logs of the app's instances; empty when there is none."""
        return last_error(self._stack)

    def diagnose(
        self, low: float | None, high: float | None, *, begun: float, reached: bool = True
    ) -> Diagnosis:
        """Find the limit from the trials at and beyond the capacity, compared with those at low load.

        ``low`` and ``high`` are the ends of the capacity, arrivals per second, where they are known; the CPU
        series starts at ``begun``, ``time.monotonic()``. Where no rate failed (``reached`` is false) there is
        no limit to find. A part that fails is listed in ``not_measured``; none raises.
        """
        steps = OptionalSteps()
        nothing = Evidence(seconds=0.0, workers=0, seen={})
        records = at_the_limit(self._records, low, high)
        evidence = steps.run("the probes' records", lambda: _evidence(records), otherwise=nothing)
        whole = steps.run("CPU and memory", self._sampler.series, otherwise=Resources(1, ()))
        windows = [(one.start, one.end) for one in records]
        window = steps.run("the trials' samples", lambda: whole.during(windows), otherwise=whole)
        plans = steps.run("query plans", lambda: self._plans(evidence), otherwise=())
        blind = Facts(limit=Window(evidence, window), slow_ms=self._objective.slow_ms)
        facts = steps.run("the windows", lambda: self._facts(records, low, whole, plans), otherwise=blind)
        analysis = BottleneckDetector().diagnose(facts)
        growing = tuple(find_growing_queues(self._backlogs, low))
        return Diagnosis(
            limit=_limit(analysis.limit) if reached else None,
            parts=steps.run("parts of a request", lambda: _parts(facts), otherwise=()),
            stacks=evidence.stacks,
            present=analysis.present if reached else (),
            bottlenecks=tuple(
                _bottleneck(b)
                for b in (*(analysis.bottlenecks if reached else ()), *growing, *self._leaks(steps, whole))
            ),
            groups=steps.run("CPU by servers", lambda: _groups(window), otherwise=()),
            series=steps.run("CPU over time", lambda: _series(whole, begun), otherwise=()),
            not_measured=(
                *analysis.not_measured,
                *steps.failures,
                *self._count_queues.failures,
                *self._unused_database(evidence),
                *self._unseen_database(),
            ),
        )

    def leaks(self) -> bool:
        """Return whether memory grows with every request, so far."""
        growth = find_growth(self._memory(self._sampler.series()))
        return growth is not None and growth.leaks

    def trace_memory(self, run: Callable[[], int]) -> None:
        """Find the lines that keep memory while ``run`` sends some requests; it returns how many."""
        self._collector.trace_memory(TRACE_MEMORY)
        requests = run()
        self._collector.trace_memory(STOP_TRACING)
        ends = time.monotonic() + TRACE_S
        while not self._collector.kept() and time.monotonic() < ends:
            time.sleep(0.05)
        time.sleep(WORKERS_S)  # the other workers count as long
        kept = self._collector.kept()
        self._kept = Kept(requests, kept) if kept else None

    def _leaks(self, steps: OptionalSteps, whole: Resources) -> Sequence[Bottleneck]:
        """Return the finding of memory that grows with every request, over the whole measurement."""
        growth = steps.run("growth of memory", lambda: find_growth(self._memory(whole)), otherwise=None)
        if growth is None or not growth.leaks or (self._kept is not None and not self._kept.confirms(growth)):
            return ()
        lines = self._kept.lines if self._kept is not None else ()
        return (leak(growth, memory_bytes=psutil.virtual_memory().total, lines=lines),)

    def _memory(self, whole: Resources) -> list[MemoryPoint]:
        """Join the memory of the app's processes with the requests that they had finished by then."""
        points, course = [], self._collector.memory()
        starts = [at for at, _, _ in course]
        for sample in whole.samples:
            number = bisect_right(starts, sample.at) - 1
            if number >= 0 and "app" in sample.groups:
                _, requests, blocks = course[number]
                points.append(MemoryPoint(sample.at, requests, sample.groups["app"].rss_bytes, blocks))
        return points

    def _unseen_database(self) -> Iterator[str]:
        if self._database is not None and self._database.failure:
            yield f"the database's sessions: {self._database.failure}"

    def _facts(
        self, limit: Sequence[TrialRecord], low: float | None, whole: Resources, plans: Sequence[Plan]
    ) -> Facts:
        calm = [one for one in self._records if low is not None and one.rate <= LOW * low]
        return Facts(
            limit=self._window(limit, whole),
            low=self._window(calm, whole) if sum(one.requests for one in calm) else None,
            plans={plan.fingerprint: plan for plan in plans},
            slow_ms=self._objective.slow_ms,
            generator_cores=max((one.generator_cores for one in limit), default=0.0),
            sources=self._sources(limit),
        )

    def _sources(self, records: Sequence[TrialRecord]) -> dict[str, str]:
        """Return the text of the lines on which requests were seen."""
        lines = {one.line for one in _evidence(records).samples if one.line}
        return {line: text for line in lines if (text := read_line(self._stack.app_folder, line))}

    def _window(self, records: Sequence[TrialRecord], whole: Resources) -> Window:
        windows = [(one.start, one.end) for one in records]
        requests = sum(one.requests for one in records)
        return Window(
            evidence=_evidence(records),
            resources=whole.during(windows),
            database=self._database.during(windows) if self._database is not None else DatabaseStats(),
            client_s=sum(one.client_s * one.requests for one in records) / requests if requests else 0.0,
            trials=tuple(_evidence([one]) for one in records if one.end - one.start >= LEAST_S),
        )

    def _plans(self, evidence: Evidence) -> Sequence[Plan]:
        url = self._stack.database_url
        if url is None:
            raise MeasurementError("the stack has no database")
        return explain(
            url,
            [one for one in evidence.statements if one.database in MAYBE_POSTGRESQL],
            texts=self._collector.sql_examples(),
            may_create_index=self._may_create_index,
        )

    def _unused_database(self, evidence: Evidence) -> Iterator[str]:
        """Say when the app's statements went somewhere else than to the stack's PostgreSQL."""
        used = sorted({one.database for one in evidence.statements} - {""})
        if used and "postgresql" not in used and self._stack.database_url is not None:
            yield (
                f"the stack's PostgreSQL: not used, the statements went to {' and '.join(used)}; "
                "give the app its address in [service.environment], or set [stack] database = false"
            )

    def _has(self, kinds: Sequence[str]) -> bool:
        return any(server.kind in kinds for server in self._stack.servers)

    def _pids_of(self, kinds: Sequence[str]) -> Callable[[], Sequence[int]]:
        return lambda: [pid for s in self._stack.servers if s.kind in kinds for pid in s.pids()]


def at_the_limit(
    records: Sequence[TrialRecord], low: float | None, high: float | None
) -> Sequence[TrialRecord]:
    """Return the trials that show the limit: from just below the capacity to well beyond it.

    If none is beyond it, the slowest one that is; all trials where the capacity is not known.
    """
    if low is None:
        return records
    near = [one for one in records if one.rate >= NEAR * low]
    beyond = sorted({one.rate for one in near if one.rate >= (high or low)})
    fastest = max(BEYOND * (high or low), beyond[0] if beyond else 0.0)
    return [one for one in near if one.rate <= fastest] or records


def _evidence(records: Sequence[TrialRecord]) -> Evidence:
    return Aggregate.merge([(one.records, one.ended) for one in records]).evidence(0.0)


def read_line(folder: Path, place: str) -> str:
    """Return one line of the service's code, ``shop/orders.py:48``; empty when it cannot be read."""
    name, _, number = place.rpartition(":")
    try:
        lines = (folder / name).read_text(errors="replace").splitlines()
        return lines[int(number) - 1]
    except (OSError, ValueError, IndexError):
        return ""


def _limit(one: Limit | None) -> LimitReport | None:
    if one is None:
        return None
    return LimitReport(
        resource=one.resource, title=one.title, chain=one.chain, evidence=one.evidence, remedy=one.remedy
    )


def _parts(facts: Facts) -> tuple[PartReport, ...]:
    """Return the parts of a request's time, the longest at the limit first."""
    low = facts.low.parts if facts.low is not None else None
    parts = sorted(facts.limit.parts.items(), key=lambda item: -item[1])
    return tuple(
        PartReport(name=name, low_ms=low[name] * 1000 if low else None, limit_ms=seconds * 1000)
        for name, seconds in parts
        if seconds >= LEAST_PART_S
    )


def _bottleneck(one: Bottleneck) -> BottleneckReport:
    return BottleneckReport(
        cause=one.cause,
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
