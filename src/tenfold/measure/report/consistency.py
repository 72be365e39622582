"""Consistency of a report: what must hold between its numbers, and claims that its own trials bear out. Pure.

:func:`contradictions` states one invariant for each pair of numbers that a reader compares. A measurement
passes its capacity through :func:`consistent_capacity`, which makes the claim smaller where a trial refutes
it, so that no report that it returns has a contradiction.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from tenfold.measure.report.report import Latency, Report, TrialReport
from tenfold.measure.search.capacity import Capacity

SEARCHED = ("ramp", "search", "confirm")  # purposes of the trials from which the capacity follows
FEW = 20  # requests: below, no percentile is reported …
FEW_P99 = 100  # … and below this, no p99
FAILED_REASON = "fix that before measuring"

# ---------------------------------------------------------------- claims that the trials bear out


def consistent_capacity(found: Capacity, trials: Sequence[TrialReport], *, bad_share: float) -> Capacity:
    """Return the capacity, or less of a claim where one of ``trials`` refutes it.

    A trial refutes a rate when it was decisively bad there and no trial at that rate or a higher one passed.
    If one did, the service changed between the two, and the interval has to cover both.
    """
    trials = [one for one in trials if is_counted(one)]
    if found.outcome == "found":
        return _consistent_interval(found, trials, bad_share)
    if found.outcome == "at_least":
        return _consistent_minimum(found, trials, bad_share)
    if found.outcome == "below" and any(one.rate >= (found.high or 0) for one in _passed(trials)):
        return _undecided(found, "slow rates missed the objective and faster ones passed")
    return found


def _consistent_interval(found: Capacity, trials: Sequence[TrialReport], bad_share: float) -> Capacity:
    assert found.low is not None and found.high is not None
    low, high = found.low, min([found.high, *refuted_rates(trials, bad_share)])
    unsteady = [one.rate for one in unsteady_trials(trials, bad_share)]
    if low >= high or any(rate < low for rate in unsteady):
        slowest = min([high, *unsteady])
        below = [one.rate for one in _passed(trials) if one.rate < slowest]
        if not below:
            return _undecided(found, f"at {slowest:.3g}/s the objective was missed, and no lower rate passed")
        low = min(low, max(below))
    return replace(found, low=low, high=high) if (low, high) != (found.low, found.high) else found


def _consistent_minimum(found: Capacity, trials: Sequence[TrialReport], bad_share: float) -> Capacity:
    """Return a minimum at which a trial passed as a whole, and at or below which none was decisively bad."""
    bad = [one.rate for one in trials if is_decisively_bad(one, bad_share)]
    good = [
        one.rate
        for one in _passed(trials)
        if _bad(one) <= bad_share * one.offered and all(one.rate < rate for rate in bad)
    ]
    if not good:
        return _undecided(found, "no rate passed clearly")
    return replace(found, low=max(good), clean_rate=max(good)) if max(good) != found.low else found


def _undecided(found: Capacity, reason: str) -> Capacity:
    reason = f"{reason}: give the search more seconds (--budget-s)"
    return replace(found, outcome="undecided", low=None, high=None, clean_rate=None, reason=reason)


def is_counted(trial: TrialReport) -> bool:
    """Return whether the trial says something about the capacity."""
    return trial.purpose in SEARCHED and trial.offered > 0 and trial.verdict != "generator limited"


def is_decisively_bad(trial: TrialReport, bad_share: float) -> bool:
    """Return whether the trial rules out that its rate meets the objective."""
    return is_counted(trial) and trial.bad_share_low > bad_share


def refuted_rates(trials: Iterable[TrialReport], bad_share: float) -> list[float]:
    """Return the rates that were decisively bad and that no trial as fast contradicts."""
    trials = list(trials)
    fastest = max((one.rate for one in _passed(trials)), default=-math.inf)
    return [one.rate for one in trials if is_decisively_bad(one, bad_share) and one.rate > fastest]


def unsteady_trials(trials: Iterable[TrialReport], bad_share: float) -> list[TrialReport]:
    """Return the decisively bad trials at rates at which, or above which, another trial passed."""
    trials = list(trials)
    fastest = max((one.rate for one in _passed(trials)), default=-math.inf)
    return [one for one in trials if is_decisively_bad(one, bad_share) and one.rate <= fastest]


def unsteady_notice(trial: TrialReport) -> str:
    """Return a notice about a trial that a faster one contradicts."""
    return (
        f"at {trial.rate:.3g}/s {_bad(trial):,} of {trial.offered:,} arrivals missed the objective, and a "
        "trial as fast or faster passed: the service or its machine changed meanwhile"
    )


def _passed(trials: Iterable[TrialReport]) -> list[TrialReport]:
    return [one for one in trials if is_counted(one) and one.verdict == "passed"]


def _bad(trial: TrialReport) -> int:
    return trial.offered - trial.good


# ---------------------------------------------------------------- percentiles beside a claim


def missed_percentile(
    latency: Latency | None, *, slow_ms: float, bad_share: float
) -> tuple[str, float] | None:
    """Return the name and value of a percentile that the objective excludes; None when all agree with it."""
    if latency is None:
        return None
    values = (("p50", 0.50, latency.p50), ("p95", 0.95, latency.p95), ("p99", 0.99, latency.p99))
    for name, quantile, value in values:
        if value is not None and quantile <= 1 - bad_share + 1e-9 and value > slow_ms:
            return name, value
    return None


# ---------------------------------------------------------------- invariants


def contradictions(report: Report) -> tuple[str, ...]:
    """Return a sentence for each pair of numbers in the report that cannot both be right."""
    return tuple(sentence for invariant in INVARIANTS for sentence in invariant(report))


def _interval_has_its_ends(report: Report) -> Iterator[str]:
    capacity = report.capacity
    if capacity is None:
        return
    ends = {"found": (True, True), "at_least": (True, False), "undecided": (False, False)}
    has = (capacity.low is not None, capacity.high is not None)
    if capacity.outcome in ends and has != ends[capacity.outcome]:
        yield f"the capacity is {capacity.outcome} with ends {capacity.low} and {capacity.high}"
    if capacity.low is not None and capacity.high is not None and not 0 < capacity.low <= capacity.high:
        yield f"the interval's ends are {capacity.low} and {capacity.high}"


def _no_bad_rate_inside_the_interval(report: Report) -> Iterator[str]:
    capacity, allowed = report.capacity, report.objective.bad_share
    if capacity is None or capacity.low is None:
        return
    refuted = refuted_rates(report.trials, allowed)
    top = capacity.high if capacity.high is not None else capacity.low
    yield from (
        f"the interval ends at {top:g}/s, and {rate:g}/s was decisively bad" for rate in refuted if rate < top
    )
    for one in unsteady_trials(report.trials, allowed):
        if one.rate < capacity.low or (capacity.high is None and one.rate <= capacity.low):
            yield f"the capacity is at least {capacity.low:g}/s, and {one.rate:g}/s was decisively bad"
        if unsteady_notice(one) not in report.notices:
            yield f"{one.rate:g}/s was decisively bad and a faster rate passed, without a notice"


def _minimum_has_a_passed_trial(report: Report) -> Iterator[str]:
    capacity = report.capacity
    if capacity is None or capacity.outcome != "at_least" or capacity.low is None:
        return
    low = capacity.low
    allowed = report.objective.bad_share
    if not any(math.isclose(t.rate, low) and _bad(t) <= allowed * t.offered for t in _passed(report.trials)):
        yield f"the capacity is at least {low:g}/s, and no trial passed at that rate"


def _no_passed_trial_above_the_capacity(report: Report) -> Iterator[str]:
    capacity = report.capacity
    if capacity is not None and capacity.outcome == "below" and capacity.high is not None:
        for one in _passed(report.trials):
            if one.rate >= capacity.high:
                yield f"no rate holds the objective, and {one.rate:g}/s passed"


def _passed_trials_are_not_bad(report: Report) -> Iterator[str]:
    for one in _passed(report.trials):
        if is_decisively_bad(one, report.objective.bad_share):
            yield f"the trial at {one.rate:g}/s passed, and {_bad(one)} of {one.offered} arrivals were bad"


def _percentiles_have_enough_requests(report: Report) -> Iterator[str]:
    rows = [("all endpoints", report.latency_ms, report.samples)]
    rows += [(one.name, one.corrected_ms, one.requests) for one in report.endpoints]
    for name, latency, requests in rows:
        if latency is None:
            continue
        if requests < FEW or (latency.p99 is not None and requests < FEW_P99):
            yield f"percentiles of {name} come from {requests} requests"
        if not latency.p50 <= latency.p95 <= (latency.p95 if latency.p99 is None else latency.p99):
            yield f"percentiles of {name} fall: {latency}"


def _percentiles_agree_with_the_objective(report: Report) -> Iterator[str]:
    capacity, objective = report.capacity, report.objective
    if capacity is None or capacity.outcome not in ("found", "at_least") or report.latency_note:
        return
    missed = missed_percentile(report.latency_ms, slow_ms=objective.slow_ms, bad_share=objective.bad_share)
    if missed is not None:
        yield f"{missed[0]} is {missed[1]:g} ms beside a capacity within {objective.slow_ms:g} ms"
    bad = (report.error_share or 0) + (report.refused_share or 0)
    if bad > objective.bad_share:
        yield f"{100 * bad:.1f} % failed or were refused beside a capacity"


def _percentiles_say_their_rate(report: Report) -> Iterator[str]:
    if report.latency_ms is not None and report.measured_rate is None:
        yield "percentiles have no rate"


def _counts_add_up(report: Report) -> Iterator[str]:
    for one in report.trials:
        parts = one.good + one.slow + one.failed + one.refused + one.unsent
        if one.offered != parts:
            yield f"the trial at {one.rate:g}/s offered {one.offered} arrivals, and {parts} have a result"
    requests = sum(one.requests for one in report.endpoints)
    refused = sum(one.refused for one in report.endpoints)
    if report.endpoints and report.samples not in (requests, requests - refused):  # refusals have no latency
        yield f"the endpoints' requests do not add up to {report.samples}"
    for name, share, count in (
        ("failed", report.error_share, sum(one.failed for one in report.endpoints)),
        ("were refused", report.refused_share, refused),
    ):
        if report.endpoints and share is not None and not math.isclose(share * requests, count, abs_tol=0.5):
            yield f"{100 * share:.1f} % of {requests} requests {name}, and {count} did"


def _overload_is_beyond_the_capacity(report: Report) -> Iterator[str]:
    overload, capacity = report.overload, report.capacity
    if overload is None:
        return
    if capacity is None or capacity.low is None or capacity.high is None:
        yield "an overload probe without a capacity"
        return
    middle = (capacity.low + capacity.high) / 2
    if overload.rate <= middle:
        yield f"the overload probe ran at {overload.rate:g}/s, within the capacity"
    if not math.isclose(overload.kept, overload.goodput / middle, rel_tol=0.01):
        yield f"goodput is {overload.goodput:g}/s, and not {overload.kept:.0%} of {middle:g}/s"
    if overload.recovered_s is not None and overload.recovered_s > overload.watched_s:
        yield f"recovery took {overload.recovered_s:g} s of {overload.watched_s:g} s"


def _reason_agrees_with_the_trials(report: Report) -> Iterator[str]:
    capacity = report.capacity
    if capacity is None:
        return
    if capacity.outcome in ("found", "at_least") and FAILED_REASON in capacity.reason:
        yield "most arrivals failed, beside a capacity"
    failed = any(one.verdict == "failed" for one in report.trials if is_counted(one))
    if failed and "no rate failed" in capacity.reason:
        yield "no rate failed, beside a failed trial"


def _shares_are_shares(report: Report) -> Iterator[str]:
    shares = [("errors", report.error_share), ("refused", report.refused_share)]
    shares += [(one.title, one.share) for one in report.bottlenecks]
    for name, share in shares:
        if share is not None and not 0 <= share <= 1:
            yield f"{name}: {share:.0%}"
    for group in report.resources:
        if group.cpu_cores_mean > group.cpu_cores_max + 1e-9:
            yield f"{group.name} used more cores on average than at most"


INVARIANTS: tuple[Callable[[Report], Iterator[str]], ...] = (
    _interval_has_its_ends,
    _no_bad_rate_inside_the_interval,
    _minimum_has_a_passed_trial,
    _no_passed_trial_above_the_capacity,
    _passed_trials_are_not_bad,
    _percentiles_have_enough_requests,
    _percentiles_agree_with_the_objective,
    _percentiles_say_their_rate,
    _counts_add_up,
    _overload_is_beyond_the_capacity,
    _reason_agrees_with_the_trials,
    _shares_are_shares,
)
