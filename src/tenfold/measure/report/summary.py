"""From trials to the report's numbers. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from tenfold.measure.load import histogram
from tenfold.measure.report.report import CapacityReport, EndpointReport, Latency, TrialReport
from tenfold.measure.search.capacity import Capacity
from tenfold.measure.settings import MeasureSettings
from tenfold.measure.trial import Endpoint, Trial

# A trial counts as near the capacity from this share of the interval's lower end on.
NEAR = 0.85
# An endpoint whose median answer shrinks or grows by more than this share under load is noticed.
CHANGED = 0.25
FEW = 20
MOST = 0.5


def latency(encoded: Iterable[str]) -> Latency | None:
    """Percentiles of all the ``encoded`` histograms together, or None when nothing is in them."""
    whole = histogram.merge(one for one in encoded if one)
    if not histogram.count(whole):
        return None
    found = histogram.percentiles(whole, (50, 95, 99))
    return Latency(p50=found[50], p95=found[95], p99=found[99])


def near_capacity(trials: Sequence[Trial], capacity: Capacity | None) -> tuple[Trial, ...]:
    """The trials whose percentiles stand for the service: from just below the interval to its middle.

    Without an interval: the fastest trial that held the objective's share of good arrivals, else the slowest.
    """
    told = [t for t in trials if t.offered and t.request.purpose in ("ramp", "search", "confirm", "closed")]
    told = told or [t for t in trials if t.offered]
    if not told:
        return ()
    low = capacity.low if capacity is not None else None
    if low:
        high = capacity.high if capacity is not None and capacity.high else low
        near = [t for t in told if NEAR * low <= t.request.rate <= (low + high) / 2]
        if near:
            return tuple(near)
        below = [t.request.rate for t in told if t.request.rate <= low]
        if below:
            return tuple(t for t in told if t.request.rate == max(below))
    slowest = min(t.request.rate for t in told)
    return tuple(t for t in told if t.request.rate == slowest)


def endpoints(trials: Sequence[Trial]) -> tuple[EndpointReport, ...]:
    """Every endpoint of ``trials``, merged, the slowest p95 first."""
    parts: dict[str, list[Endpoint]] = {}
    for trial in trials:
        for endpoint in trial.endpoints:
            parts.setdefault(endpoint.name, []).append(endpoint)
    made = [one for name, many in parts.items() if (one := _endpoint(name, many)) is not None]
    return tuple(sorted(made, key=lambda e: -e.corrected_ms.p95))


def _endpoint(name: str, parts: Sequence[Endpoint]) -> EndpointReport | None:
    corrected, raw = latency(p.corrected for p in parts), latency(p.raw for p in parts)
    if corrected is None or raw is None:
        return None
    return EndpointReport(
        name=name,
        requests=sum(p.requests for p in parts),
        failed=sum(p.failed for p in parts),
        refused=sum(p.refused for p in parts),
        corrected_ms=corrected,
        raw_ms=raw,
        statuses=_sum(p.statuses for p in parts),
    )


def _sum(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for one in counts:
        for key, count in one.items():
            total[key] = total.get(key, 0) + count
    return total


def errors(trials: Iterable[Trial], *, most: int = 10) -> dict[str, int]:
    """The commonest error messages of ``trials``, commonest first."""
    total = _sum(t.errors for t in trials)
    return dict(sorted(total.items(), key=lambda item: -item[1])[:most])


def trial(one: Trial, *, started_s: float, verdict: str) -> TrialReport:
    """One trial as the report shows it."""
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
    )


def requests_per_arrival(trials: Sequence[Trial]) -> float:
    """How many requests one execution of a task sends, over all arrivals that were sent; 1 when none was."""
    counted = [t for t in trials if t.request.purpose in ("ramp", "search", "confirm")]
    sent = sum(t.offered - sum(b.unsent for b in t.blocks) for t in counted)
    requests = sum(t.requests for t in counted)
    return requests / sent if sent and requests else 1.0


def capacity(
    found: Capacity, trials: Sequence[Trial], *, settings: MeasureSettings, ceiling: float | None
) -> CapacityReport:
    """The interval as the report shows it."""
    return CapacityReport(
        outcome=found.outcome,
        low=found.low,
        high=found.high,
        confidence=found.confidence,
        reason=_failing(trials) or _reason(found, settings, ceiling),
        seconds=found.seconds,
        trials=found.trials,
        requests_per_arrival=requests_per_arrival(trials),
    )


def _failing(trials: Sequence[Trial]) -> str:
    """A sentence when most of what was asked failed: then there is no rate to look for."""
    offered = sum(t.offered for t in trials)
    failed = sum(b.failed for t in trials for b in t.blocks)
    if not offered or failed < MOST * offered:
        return ""
    commonest = next(iter(errors(trials)), "no answer")
    return f"{100 * failed / offered:.0f} % of the arrivals failed ({commonest}): mend that before measuring"


def _reason(found: Capacity, settings: MeasureSettings, ceiling: float | None) -> str:
    """Why the search stopped, and what that means for the number, in a sentence."""
    if found.reason:
        return found.reason
    if found.outcome == "below":
        return (
            f"more than {100 * settings.objective.bad_share:g} % of the arrivals are bad with one at a time: "
            "look at what stops it, or measure against a looser objective (--p95-ms)"
        )
    if found.outcome == "at_least":
        sends = f"; the generator sends at most {ceiling:,.0f}/s" if ceiling else ""
        limits = {"generator": f"limited by the generator{sends}", "interrupted": "interrupted"}
        budget = f"no rate failed within the budget of {settings.budget_s:g} s{sends}"
        return limits.get(found.stopped_by, budget)
    width = f"{100 * (found.width or 0):.0f} % wide"
    return {
        "width": f"{width}, as narrow as was asked for",
        "budget": f"{width} when the budget of {settings.budget_s:g} s ended; a longer --budget-s narrows it",
        "generator": f"{width}; limited by the generator",
    }.get(found.stopped_by, f"{width} when it was interrupted")


def changed_answers(trials: Sequence[Trial]) -> tuple[str, ...]:
    """Endpoints whose successful answers are of another size under load than at the lowest rate."""
    by_name: dict[str, list[tuple[float, Endpoint]]] = {}
    for one in trials:
        for endpoint in one.endpoints:
            if endpoint.requests - endpoint.failed - endpoint.refused >= FEW and endpoint.bytes_p50:
                by_name.setdefault(endpoint.name, []).append((one.request.rate, endpoint))
    notices = []
    for name, seen in sorted(by_name.items()):
        (calm_rate, calm), (busy_rate, busy) = (
            min(seen, key=lambda s: s[0]),
            max(seen, key=lambda s: s[0]),
        )
        if abs(busy.bytes_p50 - calm.bytes_p50) > CHANGED * calm.bytes_p50:
            notices.append(
                f"{name} answers {busy.bytes_p50:,} bytes at {busy_rate:.0f}/s "
                f"and {calm.bytes_p50:,} at {calm_rate:.0f}/s: look at what it leaves out under load"
            )
    return tuple(notices)
