"""Computation of the report's numbers from the trials. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from tenfold.measure.load import histogram
from tenfold.measure.report.consistency import FAILED_REASON, FEW, FEW_P99, SEARCHED, missed_percentile
from tenfold.measure.report.report import CapacityReport, EndpointReport, Latency, TrialReport
from tenfold.measure.search.capacity import SKIP_S, Capacity
from tenfold.measure.search.sequential import join_blocks, share_limits, skip_start, variance_inflation
from tenfold.measure.settings import MeasureSettings, Objective
from tenfold.measure.trial import BUSY_CORE, Block, Endpoint, Trial

NEAR = 0.85  # of the interval's lower end: from this rate on a trial is near the capacity
CHANGED = 0.25  # an endpoint whose median response size changes by more under load is reported
TINY = 1e-9  # rates that differ by less are equal
BAD_CONFIDENCE = 0.998  # two-sided, of a trial's share of bad arrivals
MOST = 0.5  # of the arrivals failed: there is no rate to search for


def latency(encoded: Iterable[str]) -> Latency | None:
    """Return percentiles of the merged ``encoded`` histograms; None for fewer than 20 latencies in them."""
    whole = histogram.merge(one for one in encoded if one)
    count = histogram.count(whole)
    if count < FEW:
        return None
    found = histogram.percentiles(whole, (50, 95, 99))
    return Latency(p50=found[50], p95=found[95], p99=found[99] if count >= FEW_P99 else None)


def near_capacity(
    trials: Sequence[Trial], capacity: Capacity | None, *, bad_share: float = 0.05
) -> tuple[Trial, ...]:
    """Return the trials near the capacity whose percentiles stand beside it.

    They are those from just below the interval to its middle; if these miss the objective as a whole, those
    below the interval that meet it, the fastest first. Without any, the ones at the highest rate up to the
    interval's lower end, else at the lowest rate.
    """
    counted = [t for t in trials if t.offered and t.request.purpose in (*SEARCHED, "closed")]
    counted = counted or [t for t in trials if t.offered]
    if not counted:
        return ()
    low = capacity.low if capacity is not None else None
    if low:
        high = capacity.high if capacity is not None and capacity.high else low
        near = [t for t in counted if NEAR * low <= t.request.rate <= (low + high) / 2 + TINY]
        below = [t for t in counted if t.request.rate <= low + TINY]
        met = [t for t in below if t.bad <= bad_share * t.offered and t.requests >= FEW]
        for some in (near, [t for t in near if t in below], _fastest(met)):
            if some and bad_share_of(some) <= bad_share:
                return tuple(some)
        if near or below:
            return tuple(near or _fastest(below))
    lowest = min(t.request.rate for t in counted)
    return tuple(t for t in counted if t.request.rate == lowest)


def _fastest(trials: Sequence[Trial]) -> list[Trial]:
    rate = max((t.request.rate for t in trials), default=0.0)
    return [t for t in trials if t.request.rate == rate]


def bad_share_of(trials: Sequence[Trial]) -> float:
    """Return the share of bad arrivals of all trials together; 0 without arrivals."""
    offered = sum(t.offered for t in trials)
    return sum(t.bad for t in trials) / offered if offered else 0.0


def latency_note(
    found: Latency | None, capacity: Capacity, near: Sequence[Trial], *, objective: Objective
) -> str:
    """Return how percentiles that miss the objective go with the capacity; empty when none does."""
    missed = missed_percentile(found, slow_ms=objective.slow_ms, bad_share=objective.bad_share)
    if capacity.low is None or (missed is None and bad_share_of(near) <= objective.bad_share):
        return ""
    what = f"{missed[0]} is above the objective" if missed else "the objective was missed"
    if missed and bad_share_of(near) <= objective.bad_share:
        return f"{what}, which counts arrivals: {100 * bad_share_of(near):.1f} % of them were bad"
    if max(t.request.rate for t in near) > capacity.low + TINY:
        return f"{what} at this rate, which is inside the interval"
    return f"{what} in these trials, and met by all trials together"


def endpoints(trials: Sequence[Trial]) -> tuple[EndpointReport, ...]:
    """Return every endpoint of ``trials``, merged, the highest p95 first."""
    parts: dict[str, list[Endpoint]] = {}
    for trial in trials:
        for endpoint in trial.endpoints:
            parts.setdefault(endpoint.name, []).append(endpoint)
    made = [one for name, many in parts.items() if (one := _endpoint(name, many)) is not None]
    return tuple(sorted(made, key=lambda e: (-(e.corrected_ms.p95 if e.corrected_ms else e.mean_ms), e.name)))


def _endpoint(name: str, parts: Sequence[Endpoint]) -> EndpointReport | None:
    corrected, raw = latency(p.corrected for p in parts), latency(p.raw for p in parts)
    if not any(p.requests for p in parts):
        return None
    return EndpointReport(
        name=name,
        requests=sum(p.requests for p in parts),
        failed=sum(p.failed for p in parts),
        refused=sum(p.refused for p in parts),
        corrected_ms=corrected,
        raw_ms=raw,
        statuses=_sum(p.statuses for p in parts),
        mean_ms=histogram.mean(histogram.merge(p.corrected for p in parts if p.corrected)),
    )


def _sum(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for one in counts:
        for key, count in one.items():
            total[key] = total.get(key, 0) + count
    return total


def errors(trials: Iterable[Trial], *, most: int = 10) -> dict[str, int]:
    """Return the most frequent error messages of ``trials``, most frequent first."""
    total = _sum(t.errors for t in trials)
    return dict(sorted(total.items(), key=lambda item: -item[1])[:most])


def trial(one: Trial, *, started_s: float, verdict: str) -> TrialReport:
    """Convert a trial for the report."""
    blocks = one.blocks
    return TrialReport(
        purpose=one.request.purpose,
        rate=one.request.rate,
        seconds=one.seconds,
        offered=one.offered,
        good=one.good,
        slow=sum(b.slow for b in blocks),
        failed=sum(b.failed for b in blocks),
        refused=sum(b.refused for b in blocks),
        unsent=sum(b.unsent for b in blocks),
        in_flight_max=max((b.in_flight for b in blocks), default=0),
        corrected_ms=latency([one.corrected]),
        raw_ms=latency([one.raw]),
        generator_cpu=one.generator.cpu_share,
        generator_late=one.generator.late_share,
        steal=one.generator.steal_share,
        started_s=started_s,
        verdict=verdict,
        bad_share_low=bad_share_low(blocks),
    )


def bad_share_low(blocks: Sequence[Block]) -> float:
    """Return the lower 99.9 % limit of a trial's share of bad arrivals, without its first second.

    Bad arrivals come in runs: counts are divided by their variance inflation, as in the search.
    """
    counts = join_blocks(skip_start(blocks, skip_s=SKIP_S), seconds=1.0)
    inflation = variance_inflation(counts)
    offered, bad = sum(c.offered for c in counts), sum(c.bad for c in counts)
    return share_limits(bad / inflation, offered / inflation, confidence=BAD_CONFIDENCE)[0]


def requests_per_arrival(trials: Sequence[Trial]) -> float:
    """Return the mean number of requests that an arrival's task sends; 1 when no arrival was sent."""
    counted = [t for t in trials if t.request.purpose in ("ramp", "search", "confirm")]
    sent = sum(t.offered - sum(b.unsent for b in t.blocks) for t in counted)
    requests = sum(t.requests for t in counted)
    return requests / sent if sent and requests else 1.0


def capacity(
    found: Capacity, trials: Sequence[Trial], *, settings: MeasureSettings, ceiling: float | None
) -> CapacityReport:
    """Convert the capacity for the report."""
    return CapacityReport(
        outcome=found.outcome,
        low=found.low,
        high=found.high,
        confidence=found.confidence,
        reason=_failure_reason(found, trials) or _reason(found, trials, settings, ceiling),
        seconds=found.seconds,
        trials=found.trials,
        requests_per_arrival=requests_per_arrival(trials),
    )


def _failure_reason(found: Capacity, trials: Sequence[Trial]) -> str:
    """Return a sentence if most arrivals of the search failed and none of its rates passed."""
    trials = [t for t in trials if t.request.purpose not in ("overload", "recovery")]
    offered = sum(t.offered for t in trials)
    failed = sum(b.failed for t in trials for b in t.blocks)
    if found.outcome in ("found", "at_least") or not offered or failed < MOST * offered:
        return ""
    most_frequent = next(iter(errors(trials)), "no response")
    return f"{100 * failed / offered:.0f} % of the arrivals failed ({most_frequent}): {FAILED_REASON}"


def _at_which_rates(found: Capacity) -> str:
    return "even one at a time" if not found.high or found.high <= 1 else "at every rate that was tried"


def _slowest(trials: Sequence[Trial]) -> str:
    """Return the slowest endpoint of the lowest rate, in parentheses."""
    first = endpoints(near_capacity(trials, None))[:1]
    return "".join(f" (the slowest is {one.name}, {one.mean_ms:,.0f} ms on average)" for one in first)


def _reason(
    found: Capacity, trials: Sequence[Trial], settings: MeasureSettings, ceiling: float | None
) -> str:
    """Return one sentence: why the search stopped, and what that means for the interval."""
    if found.reason:
        return found.reason
    if found.outcome == "below":
        return (
            f"more than {100 * settings.objective.bad_share:g} % of the arrivals miss the objective "
            f"{_at_which_rates(found)}{_slowest(trials)}: fix that, or measure against a looser objective "
            "(--p95-ms)"
        )
    if found.outcome == "at_least":
        sends = f"; the generator sends at most {ceiling:,.0f}/s" if ceiling else ""
        limits = {"generator": f"{_generator_fault(trials)}{sends}", "interrupted": "interrupted"}
        limits["recovery"] = "the search ended when the service did not recover from overload"
        budget = f"no rate failed within the budget of {settings.budget_s:g} s{sends}"
        return limits.get(found.stopped_by, budget)
    width = f"{100 * (found.width or 0):.0f} % wide"
    return {
        "width": f"{width}, as narrow as required",
        "budget": f"{width} when the budget of {settings.budget_s:g} s ended; a longer --budget-s narrows it",
        "generator": f"{width}; {_generator_fault(trials)}",
        "recovery": f"{width}; the search ended when the service did not recover from overload",
    }.get(found.stopped_by, f"{width} when it was interrupted")


def _generator_fault(trials: Sequence[Trial]) -> str:
    """Return how the generator limited the last trial that it did."""
    limited = [trial.generator for trial in trials if trial.generator.is_limited()]
    if limited and limited[-1].fault == "blocked" and (stalls := limited[-1].stalls):
        where = f" at {stalls.blocked_at}" if stalls.blocked_at else ""
        return f"limited by the locustfile, which blocks all users{where}: use gevent's or the client's calls"
    if limited and limited[-1].cpu_share >= BUSY_CORE:
        return f"limited by the generator, which used {limited[-1].cpu_share:.0%} of its core"
    return "limited by the generator"


def changed_answers(trials: Sequence[Trial]) -> tuple[str, ...]:
    """Return a notice for each endpoint whose successful responses change their size under load."""
    by_name: dict[str, list[tuple[float, Endpoint]]] = {}
    for one in trials:
        for endpoint in one.endpoints:
            if endpoint.requests - endpoint.failed - endpoint.refused >= FEW and endpoint.bytes_p50:
                by_name.setdefault(endpoint.name, []).append((one.request.rate, endpoint))
    notices = []
    for name, seen in sorted(by_name.items()):
        (low_rate, low), (high_rate, high) = (
            min(seen, key=lambda s: s[0]),
            max(seen, key=lambda s: s[0]),
        )
        if abs(high.bytes_p50 - low.bytes_p50) > CHANGED * low.bytes_p50:
            notices.append(
                f"{name} responds with {high.bytes_p50:,} bytes at {high_rate:.0f}/s "
                f"and {low.bytes_p50:,} at {low_rate:.0f}/s: check what it leaves out under load"
            )
    return tuple(notices)
