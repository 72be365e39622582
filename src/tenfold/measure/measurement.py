"""The measurement: warm up, search, overload, diagnose. The one place where the instrument's parts meet."""

from __future__ import annotations

import math
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Protocol

from tenfold import __version__
from tenfold.measure import overload
from tenfold.measure.diagnosis.machine_speed import SpeedGauge
from tenfold.measure.diagnosis.observer import Diagnosis, StackObserver
from tenfold.measure.report import summary
from tenfold.measure.report.report import ObjectiveReport, OverloadReport, Report, TrialReport
from tenfold.measure.search.capacity import Capacity, CapacitySearch
from tenfold.measure.settings import MeasureSettings
from tenfold.measure.trial import Block, Trial, TrialRequest

# CPU time that other machines took is worth a word above this share.
STEAL_NOTICED = 0.02
# A core that takes so many times as long for the same work is worth a word.
UNSTEADY = 1.25
UNSENT_NOTICED = 0.005
# The search asks for no more than this share of what the generator can send at all.
CEILING = 0.9


class LoadGenerator(Protocol):
    """What a measurement needs of a generator; :class:`tenfold.measure.load.generator.Generator` is one."""

    def run(self, request: TrialRequest, on_block: Callable[[Block], None] | None = None) -> Trial:
        """Carry out one trial."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a measurement stands, for whoever shows it."""

    phase: str
    rate: float
    elapsed_s: float
    budget_s: float
    verdicts: tuple[tuple[float, str], ...]  # (rate, "passed" | "failed" | "undecided"), in order


class Measurement:
    """Measures one service, once.

    Args:
        settings: objective, budget and the rest of ``[measure]``.
        generator: a started generator whose users are logged in.
        service: the name that the report carries.
        target: the URL that is loaded.
        inside: what sees the stack from inside, entered; None when only the outside can be seen.
        ceiling: the fastest that the generator can go, arrivals per second; None when it is not known.
        progress: called at every change, at least with every block (0.5 s).
    """

    def __init__(
        self,
        settings: MeasureSettings,
        generator: LoadGenerator,
        *,
        service: str,
        target: str,
        inside: StackObserver | None = None,
        ceiling: float | None = None,
        progress: Callable[[Progress], None] = lambda progress: None,
    ) -> None:
        self._settings = settings
        self._generator = generator
        self._service = service
        self._target = target
        self._inside = inside
        self._progress = progress
        self._ceiling = ceiling or None
        self._search = CapacitySearch(settings, ceiling=CEILING * ceiling if ceiling else math.inf)
        self._trials: list[Trial] = []
        self._reports: list[TrialReport] = []
        self._verdicts: Sequence[tuple[float, str]] = ()
        self._interrupted = False
        self._gauge = SpeedGauge()
        self._begun = time.monotonic()
        self._window_from = self._begun

    def run(self) -> Report:
        """Search for the capacity, look at the overload, name what stops the service.

        Ctrl-C ends it early: the report says so and holds what is known by then.

        Raises:
            MeasurementError: the generator itself failed.
        """
        self._begun = self._window_from = time.monotonic()
        started = datetime.now(UTC)
        with self._gauge:
            return self._measure(started)

    def _measure(self, started: datetime) -> Report:
        diagnosis, pushed = Diagnosis(not_measured=("what stops it: interrupted before that",)), None
        try:
            self._seek()
            diagnosis = self._diagnose(time.monotonic())
            pushed = self._overload(self._search.result())
        except KeyboardInterrupt:
            # One that came between two trials; within one, the generator itself ends the trial in order.
            self._interrupted = True
        return self._report(started, self._search.result(), diagnosis, pushed)

    def _seek(self) -> None:
        """Run the trials that the search asks for."""
        while not self._interrupted and (request := self._search.next()) is not None:
            trial = self._trial(request)
            self._search.tell(trial)
            self._judged()

    def _trial(self, request: TrialRequest) -> Trial:
        """One trial, timed and kept; Ctrl-C makes it the last one."""
        confirming = bool(self._trials) and self._trials[-1].request.purpose == "confirm"
        if self._inside is not None and not (confirming and request.purpose == "confirm"):
            # What stops a service is read where it stops: over the trials that confirm its capacity.
            self._inside.reset()
            self._window_from = time.monotonic()
        started_s = time.monotonic() - self._begun
        self._show(request)
        trial = self._generator.run(request, on_block=lambda block: self._show(request))
        self._interrupted = self._interrupted or trial.interrupted
        self._trials.append(trial)
        self._reports.append(summary.trial(trial, started_s=started_s, verdict=_verdict(trial)))
        return trial

    def _judged(self) -> None:
        """Note what the search made of the newest trial, if it counted at all."""
        verdicts = self._search.state().verdicts
        if len(verdicts) > len(self._verdicts):
            self._reports[-1] = replace(self._reports[-1], verdict=verdicts[-1][1])
        self._verdicts = verdicts

    def _show(self, request: TrialRequest) -> None:
        self._progress(
            Progress(
                request.purpose,
                request.rate,
                time.monotonic() - self._begun,
                self._settings.budget_s,
                tuple(self._verdicts),
            )
        )

    def _diagnose(self, until: float) -> Diagnosis:
        if self._inside is None:
            return Diagnosis.from_outside()
        self._progress(Progress("diagnosing", 0.0, until - self._begun, self._settings.budget_s, ()))
        return self._inside.diagnose(self._window_from, until, begun=self._begun)

    def _overload(self, capacity: Capacity) -> OverloadReport | None:
        settings = self._settings
        if self._interrupted or not settings.overload_s or capacity.outcome != "found":
            return None
        assert capacity.low is not None and capacity.high is not None
        push, watch = overload.requests(
            capacity.low,
            capacity.high,
            seconds=settings.overload_s,
            objective=settings.objective,
            seed=settings.seed + 1_000_003,
        )
        pushed = self._trial(push)
        watched = self._trial(watch)
        if self._interrupted:
            return None
        return overload.judge(pushed, watched, objective=settings.objective)

    def _report(
        self,
        started: datetime,
        capacity: Capacity,
        diagnosis: Diagnosis,
        pushed: OverloadReport | None,
    ) -> Report:
        near = summary.near_capacity(self._trials, capacity)
        offered = sum(t.offered for t in near)
        objective = self._settings.objective
        ends = summary.endpoints(near)
        requests = sum(e.requests for e in ends)
        seconds = sum(t.seconds for t in near)
        return Report(
            tenfold=__version__,
            service=self._service,
            target=self._target,
            started=started.isoformat(timespec="seconds"),
            seconds=time.monotonic() - self._begun,
            mode="open",
            inside=self._inside is not None,
            interrupted=self._interrupted,
            objective=ObjectiveReport(
                slow_ms=objective.slow_ms,
                bad_share=objective.bad_share,
                achieved_share=objective.achieved_share,
            ),
            machine=machine(self._trials, speed=self._gauge.spread),
            capacity=summary.capacity(capacity, self._trials, settings=self._settings, ceiling=self._ceiling),
            latency_ms=summary.latency(t.corrected for t in near),
            raw_latency_ms=summary.latency(t.raw for t in near),
            measured_rate=sum(t.request.rate * t.seconds for t in near) / seconds if seconds else None,
            samples=requests,
            error_share=sum(e.failed for e in ends) / requests if requests else None,
            refused_share=sum(e.refused for e in ends) / requests if requests else None,
            achieved_rps=requests / seconds if seconds and offered else None,
            overload=pushed,
            generator_cpu=max((t.generator.cpu_share for t in near), default=None),
            generator_late=max((t.generator.late_share for t in near), default=None),
            generator_ceiling=self._ceiling,
            endpoints=ends,
            trials=tuple(self._reports),
            resources=diagnosis.groups,
            series=diagnosis.series,
            bottlenecks=diagnosis.bottlenecks,
            not_measured=diagnosis.not_measured,
            notices=notices(self._trials, near, speed=self._gauge.spread),
            errors=summary.errors(self._trials),
        )


def _verdict(trial: Trial) -> str:
    return "generator limited" if trial.generator.limited() else ""


def notices(trials: Sequence[Trial], near: Sequence[Trial], *, speed: float | None = None) -> tuple[str, ...]:
    """What a reader of the numbers has to know about how they came about."""
    found = list(summary.changed_answers(trials))
    if speed is not None and speed > UNSTEADY:
        found.append(
            f"this machine's own speed changed by a factor of {speed:.1f} meanwhile (fixed work, timed twice "
            "a second): the interval is as wide as that makes it; measure on a calmer one"
        )
    steal = max((t.generator.steal_share for t in trials), default=0.0)
    if steal > STEAL_NOTICED:
        found.append(
            f"other machines took up to {100 * steal:.0f} % of this one's CPU; the interval is wider"
        )
    if sum(b.refused for t in trials for b in t.blocks):
        found.append("some requests were refused (429 or 503): they count as refusals, never as fast answers")
    unsent = sum(b.unsent for t in near for b in t.blocks)
    if unsent > UNSENT_NOTICED * sum(t.offered for t in near):
        found.append("some arrivals found no free user in time and count as unsent; raise --max-users")
    return tuple(found)


def machine(trials: Sequence[Trial], *, speed: float | None = None) -> dict[str, str | int | float]:
    """The conditions of a measurement: a number without them means nothing."""
    steal = max((t.generator.steal_share for t in trials), default=0.0)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "cores": os.cpu_count() or 0,
        "memory GiB": round(memory, 1),
        "system": f"{platform.system()} {platform.release()}",
        "Python": platform.python_version(),
        "CPU taken by others, most": f"{100 * steal:.1f} %",
        "speed, slowest over fastest": "not measured" if speed is None else f"{speed:.2f}",
    }
