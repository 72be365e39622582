"""The measurement: warm up, search, diagnose, overload. The one module that uses all parts of ``measure``."""

from __future__ import annotations

import math
import os
import platform
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Protocol

from tenfold import __version__
from tenfold.measure import overload, recovery, refusals
from tenfold.measure.load.target import without_credentials
from tenfold.measure.machine.machine_speed import SpeedGauge
from tenfold.measure.observer import Diagnosis, StackObserver
from tenfold.measure.optional_steps import OptionalSteps
from tenfold.measure.report import summary
from tenfold.measure.report.consistency import consistent_capacity, unsteady_notice, unsteady_trials
from tenfold.measure.report.report import (
    BottleneckReport,
    ObjectiveReport,
    OverloadReport,
    Report,
    TrialReport,
)
from tenfold.measure.search.capacity import Capacity, CapacitySearch
from tenfold.measure.service_log import names_failure
from tenfold.measure.settings import MeasureSettings
from tenfold.measure.trial import Block, Trial, TrialRequest

# The report mentions CPU time that other machines took above this share.
STEAL_NOTICED = 0.02
# The report mentions a core whose speed for the same work changes by this factor.
UNSTEADY = 1.25
UNSENT_NOTICED = 0.005
TRACE_LOAD, TRACE_S = 0.1, 4.0  # of the highest rate; seconds …
TRACED = 40  # … or more, for as many requests
LEAST_LOGIN_S = 0.5  # for the logins before a trial, when the budget ends
LONG_TASK_S = 2.0  # a task of this length is mentioned in the report
# The search requests no more than this share of the generator's ceiling.
CEILING_SHARE = 0.9


class LoadGenerator(Protocol):
    """The part of :class:`tenfold.measure.load.generator.Generator` that a measurement needs."""

    def run(self, request: TrialRequest, on_block: Callable[[Block], None] | None = None) -> Trial:
        """Run one trial."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Progress of a measurement, for a progress line."""

    phase: str
    rate: float
    elapsed_s: float
    budget_s: float
    verdicts: tuple[tuple[float, str], ...]  # (rate, "passed" | "failed" | "undecided"), in order


class Measurement:
    """A measurement of one service; it runs once.

    Args:
        settings: objective, budget and the rest of ``[measure]``.
        generator: a started generator whose users are logged in.
        service: the service's name in the report.
        target: the URL that is loaded.
        inside: the entered observer of the stack; None when only the target's answers can be seen.
        ceiling: the generator's highest rate, arrivals per second; None when it was not calibrated.
        restart: starts the service's instances again and logs the users in; None where tenfold does not
            run them. A service that does not recover from overload ends the search then.
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
        restart: Callable[[], None] | None = None,
        progress: Callable[[Progress], None] = lambda progress: None,
    ) -> None:
        self._settings = settings
        self._generator = generator
        self._service = service
        self._target = without_credentials(target)
        self._inside = inside
        self._restart = restart
        self._spent_s = 0.0
        self._findings: list[BottleneckReport] = []
        self._sent: list[refusals.SentTrial] = []  # those of the search, and the waits between them
        self._limited = False  # by a rate limit that refuses single requests
        self._progress = progress
        self._ceiling = ceiling or None
        self._search = CapacitySearch(settings, ceiling=CEILING_SHARE * ceiling if ceiling else math.inf)
        self._trials: list[Trial] = []
        self._reports: list[TrialReport] = []
        self._verdicts: Sequence[tuple[float, str]] = ()
        self._interrupted = False
        self._gauge = SpeedGauge()
        self._steps = OptionalSteps()
        self._begun = time.monotonic()

    def run(self, *, spent_s: float = 0.0) -> Report:
        """Search for the capacity, diagnose the bottlenecks, and run the overload trials.

        ``spent_s``: seconds of the budget that were spent already, on logins.
        Ctrl-C ends it early: the report says so and holds what is known by then.

        Raises:
            MeasurementError: the generator itself failed.
        """
        self._begun, self._spent_s = time.monotonic(), spent_s
        started = datetime.now(UTC)
        with self._gauge:
            return self._measure(started)

    def _measure(self, started: datetime) -> Report:
        diagnosis, overloaded = Diagnosis(not_measured=("what stops it: interrupted before that",)), None
        try:
            self._search_capacity()
            diagnosis = self._steps.run(
                "what stops it", lambda: self._diagnose(self._capacity()), otherwise=Diagnosis()
            )
            overloaded = self._steps.run("overload", lambda: self._overload(self._capacity()), otherwise=None)
        except KeyboardInterrupt:
            # It came between two trials; within one, the generator ends the trial and returns its blocks.
            self._interrupted = True
        _, limit = refusals.limited_capacity(self._search.result(), self._sent, limited=self._limited)
        if limit is not None:
            each = summary.requests_per_arrival(self._trials)
            self._findings.append(refusals.finding(limit, requests_per_arrival=each))
        return self._report(started, self._capacity(), diagnosis, overloaded)

    def _capacity(self) -> Capacity:
        """The search's capacity, or less of a claim where refusals or a trial refute it."""
        found, _ = refusals.limited_capacity(self._search.result(), self._sent, limited=self._limited)
        return consistent_capacity(found, self._reports, bad_share=self._settings.objective.bad_share)

    def _search_capacity(self) -> None:
        """Run the trials that the search requests."""
        self._search.spend(self._spent_s)
        while not self._interrupted and (request := self._search.next_trial()) is not None:
            began_s = time.monotonic()
            trial = self._run(request)
            recovered = self._recover(trial)
            restarted = not recovered and not self._limited and self._restart_service(trial)
            elapsed_s = time.monotonic() - began_s
            self._search.record(trial, elapsed_s=elapsed_s, recovered=recovered)
            self._note_verdict()
            if not recovered and not restarted:
                self._search.stop("refusals" if self._limited else "recovery")

    def _recover(self, trial: Trial) -> bool:
        """Wait until the service is idle and answers as before; False when it does not."""
        objective = self._settings.objective
        if self._interrupted or not recovery.is_needed(trial, objective):
            return True
        limit_s = recovery.limit_s(objective, task_s=trial.task_s)
        seconds = min(limit_s, self._settings.budget_s - self._elapsed_s())
        if seconds < recovery.LEAST_S:
            return True
        request = recovery.wait_request(trial, seconds=seconds)
        waited = self._wait(request)
        assert request.rule is not None
        if request.rule.should_stop(waited.blocks):
            return True
        if not self._interrupted and self._is_limited(trial, waited):
            self._limited = True
            return False
        if self._interrupted or seconds < limit_s / 2 or trial.request.purpose == "warm-up":
            return True  # not known: the budget or Ctrl-C ended the wait
        if not self._findings:
            restarted = self._restart is not None
            self._findings.append(recovery.finding(trial, waited, restarted=restarted))
        return False

    def _wait(self, request: TrialRequest) -> Trial:
        """Send single arrivals; they are in no trial of the report."""
        started_s = time.monotonic() - self._begun
        self._show("wait")
        waited = self._generator.run(request, on_block=lambda block: self._show("wait"))
        self._interrupted = self._interrupted or waited.interrupted
        self._sent.append(refusals.SentTrial(started_s, waited))
        return waited

    def _is_limited(self, trial: Trial, waited: Trial) -> bool:
        """Return whether a rate limit refuses single requests; watch it until its rate is known."""
        only_refused = refusals.is_only_refused(trial.blocks)
        if not refusals.is_limited(waited.blocks) or not (only_refused or self._restart is None):
            return False
        seconds = self._settings.budget_s - self._elapsed_s()
        if seconds < recovery.LEAST_S:
            return only_refused
        watched = self._wait(refusals.watch_request(waited, seconds=seconds))
        # A service that is stuck refuses as well, but lets nothing through again.
        return only_refused or any(block.good for block in watched.blocks)

    def _restart_service(self, trial: Trial) -> bool:
        """Restart the service, if tenfold runs it, and return whether it answers then."""
        if self._restart is None:
            return False
        self._show("restart")
        self._restart()
        return self._recover(trial)

    def _elapsed_s(self) -> float:
        return time.monotonic() - self._begun + self._spent_s

    def _run(self, request: TrialRequest) -> Trial:
        """Run one trial and keep it; Ctrl-C makes it the last one."""
        if (inside := self._inside) is not None:
            self._steps.run(
                "the start of a trial's records", lambda: inside.begin_trial(request.rate), otherwise=None
            )
        started_s = time.monotonic() - self._begun
        self._show(request.purpose, request.rate)
        left_s = self._settings.budget_s - self._elapsed_s() - request.duration_s
        request = replace(request, login_s=min(request.login_s, max(left_s, LEAST_LOGIN_S)))
        trial = self._generator.run(request, on_block=lambda block: self._show(request.purpose, request.rate))
        if inside is not None:
            self._steps.run("the end of a trial's records", lambda: inside.end_trial(trial), otherwise=None)
        self._interrupted = self._interrupted or trial.interrupted
        self._trials.append(trial)
        if request.purpose not in ("overload", "recovery"):
            self._sent.append(refusals.SentTrial(started_s, trial))
        self._reports.append(summary.trial(trial, started_s=started_s, verdict=_verdict(trial)))
        return trial

    def _note_verdict(self) -> None:
        """Put the search's verdict on the newest trial into its report, if the trial was counted."""
        verdicts = self._search.progress().verdicts
        if len(verdicts) > len(self._verdicts):
            self._reports[-1] = replace(self._reports[-1], verdict=verdicts[-1][1])
        self._verdicts = verdicts

    def _show(self, phase: str, rate: float = 0.0) -> None:
        self._progress(
            Progress(
                phase,
                rate,
                self._elapsed_s(),
                self._settings.budget_s,
                tuple(self._verdicts),
            )
        )

    def _diagnose(self, capacity: Capacity) -> Diagnosis:
        if self._inside is None:
            return Diagnosis.from_outside()
        elapsed_s = time.monotonic() - self._begun
        self._progress(Progress("diagnosing", 0.0, elapsed_s, self._settings.budget_s, ()))
        if self._steps.run("memory", self._inside.leaks, otherwise=False):
            self._steps.run("lines that keep memory", self._trace_memory, otherwise=None)
        reached = capacity.outcome != "at_least"
        return self._inside.diagnose(capacity.low, capacity.high, begun=self._begun, reached=reached)

    def _trace_memory(self) -> None:
        """Load the service lightly while its allocations are traced, which makes it several times slower."""
        assert self._inside is not None
        rate = max(TRACE_LOAD * max((t.request.rate for t in self._trials), default=1.0), 1.0)
        seconds = min(max(TRACE_S, TRACED / rate), 3 * TRACE_S)
        request = TrialRequest(rate, seconds, "search", self._settings.seed + 7)
        self._show("memory", request.rate)
        self._inside.trace_memory(lambda: self._generator.run(request).requests)

    def _overload(self, capacity: Capacity) -> OverloadReport | None:
        settings = self._settings
        is_capacity = capacity.outcome == "found" and capacity.stopped_by != "refusals"
        if self._interrupted or not settings.overload_s or not is_capacity:
            return None
        assert capacity.low is not None and capacity.high is not None
        overload_request, recovery_request = overload.overload_requests(
            capacity.low,
            capacity.high,
            seconds=settings.overload_s,
            objective=settings.objective,
            seed=settings.seed + 1_000_003,
        )
        overloaded = self._run(overload_request)
        recovering = self._run(recovery_request)
        if self._interrupted:
            return None
        return overload.overload_report(overloaded, recovering, objective=settings.objective)

    def _report(
        self,
        started: datetime,
        capacity: Capacity,
        diagnosis: Diagnosis,
        overloaded: OverloadReport | None,
    ) -> Report:
        run, trials = self._steps.run, self._trials
        objective = self._settings.objective
        refusing = [one for one in self._findings if one.cause == "rate_limit"]
        others = [one for one in self._findings if one.cause != "rate_limit"]
        near = run(
            "trials near the capacity",
            lambda: summary.near_capacity(trials, capacity, bad_share=objective.bad_share),
            otherwise=(),
        )
        ends = run("endpoints", lambda: summary.endpoints(near), otherwise=())
        speed = self._gauge.spread
        requests, refused = sum(t.requests for t in near), sum(t.refused_requests for t in near)
        seconds = sum(t.seconds for t in near)
        rate = sum(t.request.rate * t.seconds for t in near) / seconds if seconds else None
        latency = run("latencies", lambda: summary.latency(t.corrected for t in near), otherwise=None)
        report = Report(
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
            machine=run("the machine", lambda: machine(trials, speed=speed), otherwise={}),
            capacity=summary.capacity(capacity, trials, settings=self._settings, ceiling=self._ceiling),
            latency_ms=latency,
            raw_latency_ms=run("raw latencies", lambda: summary.latency(t.raw for t in near), otherwise=None),
            latency_note=summary.latency_note(latency, capacity, near, objective=objective),
            measured_rate=rate,
            samples=requests - refused,
            error_share=sum(t.failed_requests for t in near) / requests if requests else None,
            refused_share=refused / requests if requests else None,
            achieved_rps=requests / seconds if seconds and sum(t.offered for t in near) else None,
            overload=overloaded,
            generator_cpu=max((t.generator.cpu_share for t in near), default=None),
            generator_late=max((t.generator.late_share for t in near), default=None),
            generator_ceiling=self._ceiling,
            endpoints=ends,
            trials=tuple(self._reports),
            resources=diagnosis.groups,
            series=diagnosis.series,
            limit=None if refusing else diagnosis.limit,
            parts=diagnosis.parts,
            stacks=diagnosis.stacks,
            present=diagnosis.present,
            bottlenecks=(*refusing, *diagnosis.bottlenecks, *others),
            notices=(
                *(unsteady_notice(t) for t in unsteady_trials(self._reports, objective.bad_share)),
                *shape_notice(self._generator),
                *run(
                    "notices",
                    lambda: notices(trials, near, speed=speed, settings=self._settings),
                    otherwise=(),
                ),
            ),
            errors=run("errors", lambda: summary.errors(trials), otherwise={}),
        )
        if self._inside is not None and names_failure(report.errors):
            logged = run("the service's log", self._inside.last_error, otherwise="")
            report = replace(report, notices=(*report.notices, *filter(None, [logged])))
        return replace(report, not_measured=(*diagnosis.not_measured, *self._steps.failures))


def shape_notice(generator: object) -> Iterator[str]:
    """Say that a locustfile's own course of load was not followed."""
    if shape := getattr(generator, "ignored_shape", ""):
        yield f"{shape} (a LoadTestShape) was not used: the search for the capacity decides each load"


def _verdict(trial: Trial) -> str:
    return "generator limited" if trial.generator.is_limited() else ""


def notices(
    trials: Sequence[Trial],
    near: Sequence[Trial],
    *,
    settings: MeasureSettings | None = None,
    speed: float | None = None,
) -> tuple[str, ...]:
    """Conditions of the measurement that limit what its numbers mean, one sentence each."""
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
    silent = sum((Counter(t.silent) for t in trials), Counter[str]())
    if silent:
        found.append(
            f"{silent.total()} arrivals sent no request that Locust knows "
            f"(task {silent.most_common(1)[0][0]}) and are left out; send with self.client"
        )
    task_s = max((t.task_s for t in trials), default=0.0)
    if task_s >= LONG_TASK_S:
        found.append(
            f"tasks last up to {task_s:.0f} s: each trial needs {2 * task_s:.0f} s of load before and after "
            "what is counted; give it more --budget-s, or put fewer requests into one task"
        )
    if failed := sum(t.notes.get("logins failed", 0) for t in trials):
        found.append(f"{failed} logins failed (see the errors): fewer users than asked for sent requests")
    unended = sum((Counter(t.unended) for t in trials), Counter[str]())
    if unended:
        found.append(f"the task {unended.most_common(1)[0][0]} did not end: its users were stopped")
    if sum(b.refused for t in trials for b in t.blocks):
        found.append("some requests were refused (429 or 503): they count as refusals, never as fast answers")
    unsent = sum(b.unsent for t in near for b in t.blocks)
    if unsent > UNSENT_NOTICED * sum(t.offered for t in near):
        found.append(_unsent_notice(near, unsent, settings or MeasureSettings()))
    return tuple(found)


def _unsent_notice(near: Sequence[Trial], unsent: int, settings: MeasureSettings) -> str:
    """Say why arrivals found no free user: more users help only while the service answers in time."""
    users = max(t.users for t in near)
    what = f"{unsent:,} arrivals found all {users:,} users busy and count as unsent"
    raw = summary.latency(t.raw for t in near)
    if raw is None or raw.p95 > settings.objective.slow_ms:
        return (
            f"{what}: the users waited for responses slower than the objective, and more would wait as well"
        )
    if users >= settings.max_users:
        return f"{what}, although the service answers in time; raise --max-users above {settings.max_users:,}"
    return f"{what}, although the service answers in time; log more of them in at the start (--users)"


def machine(trials: Sequence[Trial], *, speed: float | None = None) -> dict[str, str | int | float]:
    """The machine on which the trials ran."""
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
