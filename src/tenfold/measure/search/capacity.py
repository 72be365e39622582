"""The capacity search: it requests trials and ends with an interval of the capacity. Pure.

    search = CapacitySearch(settings)
    while (request := search.next_trial()) is not None:
        search.record(generator.run(request))
    capacity = search.result()

It has five steps, within its budget:

1. *warm up*: fill pools and caches; a service that misses its objective here is tried one request at a time,
   each sent when the one before is answered, on an idle service;
2. *ramp*: double the rate every three seconds until a trial fails or the number in flight grows steadily;
3. *search*: bisect the logarithm of the rate with a sequential probability ratio test per trial;
4. *confirm*: longer trials below and above in turn, where the posterior of the capacity is widest;
5. *stop* when the interval is narrow enough, or when the budget ends.

The interval comes from all trials together (``capacity_model.py``). Exact binomial limits decide where
arrivals are independent, at one request at a time; near the capacity they would need more arrivals than a
budget has: 72 independent ones without a bad one only to say "below 5 %", while runs of bad ones last a
second or more.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from math import floor, sqrt
from statistics import stdev
from typing import Literal

from tenfold.measure.search.capacity_model import CapacityEstimate, TrialCounts, estimate_capacity
from tenfold.measure.search.sequential import (
    ArrivalCount,
    RateVerdict,
    SequentialTest,
    join_blocks,
    share_limits,
    skip_start,
    uncompleted,
)
from tenfold.measure.settings import MeasureSettings
from tenfold.measure.trial import Block, Purpose, StopRule, Trial, TrialRequest

CapacityOutcome = Literal["found", "at_least", "below", "undecided"]
StopCause = Literal["width", "budget", "generator", "interrupted", "objective", "recovery", "refusals"]

SKIP_S = 1.0  # not counted: the service is empty when a trial begins
WARM_UP_RATE, WARM_UP_S = 5.0, 3.0
RAMP_START, RAMP_S = 20.0, 3.0
SEARCH_S, SEARCH_LEAST_S = 10.0, 4.0  # the longest trial, and the least that is counted of one
CONFIRM_S = 10.0
_ENDS: dict[str, str] = {
    "budget": "the budget ended: give it more seconds",
    "generator": "the generator became the limit: give it more of a core",
    "interrupted": "the search was interrupted: let it run on",
    "refusals": "the service refused single requests: lift its rate limit",
    "recovery": "the service stopped recovering from a trial: see what stops it",
}
CLOSE = 1.2  # a bracket that needs no more bisecting: high / low
LEAST_S = 3.0  # a shorter trial is not worth its settling
REPEATS = 2  # of a trial that the generator limited


@dataclass(frozen=True, slots=True)
class Capacity:
    """Arrivals per second that the service sustains within its objective.

    ``found``: between ``low`` and ``high``. ``at_least``: ``low`` or more. ``below``: less than ``high``,
    which is one request at a time. ``undecided``: neither, for the ``reason``.
    """

    outcome: CapacityOutcome
    stopped_by: StopCause
    low: float | None = None
    high: float | None = None
    confidence: float = 0.95
    reason: str = ""
    seconds: float = 0.0
    trials: int = 0
    clean_rate: float | None = None  # fastest rate that passed and that the interval does not exclude
    floor: float = 0.0  # share of arrivals that is bad at any rate
    run_s: float = 0.0  # duration of runs of bad arrivals at the capacity
    steal_share: float = 0.0  # CPU time that went to other machines on the same host, mean over the trials
    steal_width: float = 0.0  # relative move of either end for it

    @property
    def width(self) -> float | None:
        """``(high - low) / middle``, or None without both ends."""
        if self.low is None or self.high is None:
            return None
        return 2 * (self.high - self.low) / (self.high + self.low)


@dataclass(frozen=True, slots=True)
class SearchProgress:
    """Phase, verdicts and time of a running search, for a progress line."""

    phase: Purpose
    verdicts: tuple[tuple[float, RateVerdict], ...]  # rate and verdict, in order
    spent_s: float
    budget_s: float
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class StopWhenOverloaded:
    """A stop rule: ends a trial when most arrivals of the last two seconds were bad."""

    share: float = 0.7

    def should_stop(self, blocks: Sequence[Block]) -> bool:
        """Return whether the service is overloaded."""
        end = blocks[-1].start_s + blocks[-1].seconds
        last = [block for block in blocks if block.start_s >= end - 2 - 1e-6]
        offered, bad = sum(block.offered for block in last), sum(block.bad for block in last)
        return end - blocks[0].start_s >= LEAST_S - 1e-6 and offered >= 10 and bad > self.share * offered


@dataclass(frozen=True, slots=True)
class StopWhenDecided:
    """A stop rule: ends a trial once its rate has passed or failed, or the service is overloaded."""

    test: SequentialTest
    achieved_share: float

    def should_stop(self, blocks: Sequence[Block]) -> bool:
        """Return whether the rate has passed or failed."""
        counted = skip_start(blocks, skip_s=SKIP_S)
        if sum(block.seconds for block in counted) < SEARCH_LEAST_S - 1e-6:
            return StopWhenOverloaded().should_stop(blocks)
        if uncompleted(counted, achieved_share=self.achieved_share):
            return False
        return self.test.decide(counted) != "undecided" or StopWhenOverloaded().should_stop(blocks)


class CapacitySearch:
    """A search for the capacity of a service; it uses neither clocks nor sockets.

    ``ceiling``: the highest rate that the generator can send. ``correlated=False`` treats arrivals as
    independent coin flips; it is there to show how far the interval is off then.
    """

    def __init__(self, settings: MeasureSettings, *, ceiling: float = 1e6, correlated: bool = True) -> None:
        self._settings, self._objective = settings, settings.objective
        self._ceiling, self._correlated = ceiling, correlated
        limit = self._objective.bad_share
        self._test = SequentialTest(0.6 * limit, 1.6 * limit, inflate=correlated)
        self._slow_s = self._objective.slow_ms / 1000
        self._lone_rate = min(1.0, 1 / self._slow_s)
        self._trials: list[Trial] = []
        self._counts: list[TrialCounts] = []
        self._verdicts: list[tuple[float, RateVerdict]] = []
        self._verdict: RateVerdict = "undecided"  # on the newest trial, counted or not
        self._spent_s, self._asked, self._settling_s = 0.0, 0, 0.5
        self._stopped_by: StopCause = "budget"
        self._objective_missed = self._alone_passed = False
        self._recovered = True  # from the newest trial
        self._extra_s = 0.0  # of every further trial, beyond its own length
        self._last_estimate: CapacityEstimate | None = None
        self._plan = self._steps()
        self._request: TrialRequest | None = next(self._plan, None)

    def next_trial(self) -> TrialRequest | None:
        """Return the next trial to run, or None when the search has ended."""
        return self._request

    def record(self, trial: Trial, *, elapsed_s: float | None = None, recovered: bool = True) -> None:
        """Record the trial that ``next_trial`` requested.

        ``elapsed_s``: its whole duration, where that is more than its seconds and its settling.
        ``recovered``: False for a trial from which the service does not recover; its rate has failed. An
        interrupted trial ends the search. Raises ValueError when the search has ended already.
        """
        if self._request is None:
            raise ValueError("the search has ended and requested no trial")
        took_s = trial.seconds + trial.settled_s if elapsed_s is None else elapsed_s
        self._spent_s += took_s
        self._settling_s = 0.7 * self._settling_s + 0.3 * max(took_s - trial.seconds, 0.0)
        self._trials.append(trial)
        self._recovered, self._extra_s = recovered, trial.extra_s
        if trial.interrupted:
            if trial.request.purpose != "alone":
                self._count(trial)
            self._stopped_by, self._request = "interrupted", None
            return
        try:
            self._request = self._plan.send(trial)
        except StopIteration:
            self._request = None

    def stop(self, cause: StopCause) -> None:
        """End the search: the service cannot be tried any more."""
        if self._request is not None:
            self._stopped_by, self._request = cause, None

    def spend(self, seconds: float) -> None:
        """Count time outside the trials against the budget."""
        self._spent_s += seconds

    @property
    def trials(self) -> tuple[Trial, ...]:
        """All trials so far, in order."""
        return tuple(self._trials)

    def progress(self) -> SearchProgress:
        """Phase, verdicts and time so far."""
        phase = self._request.purpose if self._request else "confirm"
        low = self._last_estimate.low if self._last_estimate else None
        high = self._last_estimate.high if self._last_estimate else None
        return SearchProgress(phase, tuple(self._verdicts), self._spent_s, self._settings.budget_s, low, high)

    def result(self) -> Capacity:
        """The capacity as far as it is known; usable at any time."""
        cause: StopCause = "interrupted" if self._request is not None else self._stopped_by
        passed = [rate for rate, verdict in self._verdicts if verdict == "passed"]
        failed = [rate for rate, verdict in self._verdicts if verdict == "failed"]
        if self._objective_missed:
            return self._capacity("below", "objective", high=self._lone_rate)
        if failed and any(verdict != "failed" for _, verdict in self._verdicts):
            return self._found(cause)
        if failed and self._alone_passed:
            # At this rate so many arrivals find the service idle that the objective holds.
            idle_rate = self._objective.bad_share / self._slow_s
            return self._capacity("found", cause, low=min(idle_rate, *failed), high=min(failed))
        if passed:
            return self._capacity("at_least", cause, low=max(passed), clean_rate=max(passed))
        reason = f"no rate {'passed' if failed else 'could be judged'} before {_ENDS[cause]}"
        if failed and cause in ("budget", "generator"):
            return self._capacity("below", cause, high=min(failed))
        return self._capacity("undecided", cause, reason=reason)

    # The five steps: generators that yield a request and are sent the trial.

    def _steps(self) -> Generator[TrialRequest, Trial, None]:
        lone = yield from self._warm_up()
        if self._objective_missed:
            return
        low, high, guess = yield from self._ramp(2 * self._lone_rate if lone else RAMP_START)
        if high is None:
            return
        yield from self._bisect(low or self._lone_rate, high, guess)
        yield from self._confirm()

    def _warm_up(self) -> Generator[TrialRequest, Trial, bool]:
        """Warm up; return whether the service had to be tried at one request at a time."""
        trial = yield self._ask(WARM_UP_RATE, WARM_UP_S, "warm-up")
        limit = self._objective.bad_share
        if not trial.offered or share_limits(trial.bad, trial.offered)[0] <= limit:
            return False
        # Not counted in the estimate: at one request at a time no request waits, at any rate some do.
        lone = yield from self._run(
            self._lone_rate, 10 / self._lone_rate, "alone", StopWhenOverloaded(0.9), counted=False
        )
        if lone is not None and lone.offered:
            none_met = lone.bad == lone.offered  # a single request, when the service does not answer it
            self._objective_missed = none_met or share_limits(lone.bad, lone.offered)[0] > limit
            self._alone_passed = not self._objective_missed
        return True

    def _ramp(self, rate: float) -> Generator[TrialRequest, Trial, tuple[float | None, float | None, float]]:
        """Double the rate until one fails.

        Return the fastest rate that passed, the one that failed, and the arrivals completed per second there.
        """
        low = None
        while True:
            trial = yield from self._run(min(rate, self._ceiling), RAMP_S, "ramp", StopWhenOverloaded())
            if trial is None:
                return low, None, 0.0
            if self._verdict == "failed":
                return low, rate, (trial.offered - trial.blocks[-1].in_flight) / trial.seconds
            low = trial.request.rate
            if low >= self._ceiling:
                self._stopped_by = "generator"
                return low, None, 0.0
            rate *= 2

    def _bisect(self, low: float, high: float, guess: float) -> Generator[TrialRequest, Trial, None]:
        """Bisect until the bracket is close, or a rate is so near the capacity that the test is undecided.

        The first guess is the throughput of the overloaded service: often near; if not, one trial is lost.
        """
        rule = StopWhenDecided(self._test, self._objective.achieved_share)
        while high / low > CLOSE:
            rate = guess if low * 1.02 < guess < high / 1.02 else sqrt(low * high)
            guess = 0.0
            if (yield from self._run(rate, SEARCH_S, "search", rule)) is None:
                return
            verdict = self._verdict
            if verdict == "undecided":
                return
            low, high = (rate, high) if verdict == "passed" else (low, rate)

    def _confirm(self) -> Generator[TrialRequest, Trial, None]:
        """Run trials below and above the estimate in turn, one of each at the least."""
        done = 0
        while self._stopped_by == "budget":
            estimate = self._last_estimate = self._estimate()
            found = self._found("width")
            if done >= 2 and found.width is not None and found.width <= self._settings.width:
                self._stopped_by = "width"
                return
            rate = estimate.q30 if done % 2 == 0 else estimate.q70
            seconds = max(CONFIRM_S, min(8 * self._slow_s, 3 * CONFIRM_S))
            rate = min(max(rate, self._lone_rate), self._ceiling)
            if (yield from self._run(rate, seconds, "confirm", StopWhenOverloaded())) is None:
                return
            done += 1

    # Their parts.

    def _run(
        self, rate: float, seconds: float, purpose: Purpose, rule: StopRule, *, counted: bool = True
    ) -> Generator[TrialRequest, Trial, Trial | None]:
        """Run a trial that the generator does not limit; None without one, or when the budget is used up."""
        for _ in range(1 + REPEATS):
            left_s = self._settings.budget_s - self._spent_s - min(self._settling_s, 2.0) - self._extra_s
            if left_s < LEAST_S:
                return None
            whole_s = floor(2 * min(seconds, left_s)) / 2  # whole blocks within the budget
            trial = yield self._ask(rate, whole_s, purpose, rule)
            if not trial.generator.is_limited():
                if counted:
                    self._count(trial)
                return trial
        self._stopped_by = "generator"
        return None

    def _ask(
        self, rate: float, seconds: float, purpose: Purpose, rule: StopRule | None = None
    ) -> TrialRequest:
        self._asked += 1
        return TrialRequest(rate, seconds, purpose, self._settings.seed * 10_000 + self._asked, rule)

    def _count(self, trial: Trial) -> None:
        self._verdict = "undecided"
        counted = skip_start(trial.blocks, skip_s=SKIP_S)
        counts = join_blocks(counted, seconds=1.0)
        if trial.generator.is_limited() or not sum(count.offered for count in counts):
            return
        backlog = uncompleted(counted, achieved_share=self._objective.achieved_share)
        self._counts.append(TrialCounts(trial.request.rate, trial.seconds, _add_bad(counts, backlog)))
        if backlog or not self._recovered:
            self._verdict = "failed"
        else:
            self._verdict = self._test.decide(counted)
        self._verdicts.append((trial.request.rate, self._verdict))

    def _estimate(self) -> CapacityEstimate:
        return estimate_capacity(
            self._counts,
            limit=self._objective.bad_share,
            slow_s=self._slow_s,
            correlated=self._correlated,
        )

    def _found(self, cause: StopCause) -> Capacity:
        estimate = self._estimate()
        widened = self._steal_width()
        slowest, verdict = min(self._verdicts)
        low = estimate.low * (1 - widened)
        high = min(estimate.high * (1 + widened), max(counts.rate for counts in self._counts))
        if high <= slowest:
            return self._capacity("below", cause, high=slowest)
        lasted_s = max(counts.seconds for counts in self._counts if counts.rate == slowest)
        if verdict != "failed" and lasted_s - SKIP_S > self._slow_s:  # long enough for a slow arrival to show
            low = max(low, slowest)
        passed = [rate for rate, verdict in self._verdicts if verdict == "passed" and rate <= high]
        return self._capacity(
            "found",
            cause,
            low=low,
            high=high,
            clean_rate=max(passed, default=None),
            floor=estimate.floor,
            run_s=estimate.run_s,
        )

    def _capacity(
        self,
        outcome: CapacityOutcome,
        stopped_by: StopCause,
        *,
        low: float | None = None,
        high: float | None = None,
        reason: str = "",
        clean_rate: float | None = None,
        floor: float = 0.0,
        run_s: float = 0.0,
    ) -> Capacity:
        steal = [trial.generator.steal_share for trial in self._trials]
        return Capacity(
            outcome,
            stopped_by,
            low,
            high,
            reason=reason,
            seconds=self._spent_s,
            trials=len(self._trials),
            clean_rate=clean_rate,
            floor=floor,
            run_s=run_s,
            steal_share=sum(steal) / len(steal) if steal else 0.0,
            steal_width=self._steal_width(),
        )

    def _steal_width(self) -> float:
        """Relative widening for stolen CPU time: 1.96 standard errors of its mean over the trials.

        Steady steal widens nothing: it is part of the machine that was measured.
        """
        steal = [t.generator.steal_share for t in self._trials if t.request.purpose in ("search", "confirm")]
        return 1.96 * stdev(steal) / sqrt(len(steal)) if len(steal) > 1 else 0.0


def _add_bad(counts: Sequence[ArrivalCount], missing: int) -> tuple[ArrivalCount, ...]:
    """Count ``missing`` arrivals as bad, the last ones first."""
    result = []
    for count in reversed(counts):
        more = min(count.offered - count.bad, max(missing - count.bad, 0))
        missing -= count.bad + more
        result.append(ArrivalCount(count.offered, count.bad + more))
    return tuple(reversed(result))
