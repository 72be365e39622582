"""How a report's numbers are said, once, for the terminal and the page alike. Pure."""

from __future__ import annotations

from tenfold.measure.report.report import BottleneckReport, ObjectiveReport, Report
from tenfold.measure.settings import Objective


def number(value: float | None) -> str:
    """Three significant digits at the most, no exponent: 0.123, 4.57, 45.7, 457, 4,570."""
    if value is None:
        return "–"
    if value == 0:
        return "0"
    size = abs(value)
    for bound, places in ((100, 0), (10, 1), (1, 2)):
        if size >= bound:
            return f"{value:,.{places}f}"
    return f"{value:.3f}"


def share(value: float | None) -> str:
    """A share as per cent with one place."""
    return "–" if value is None else f"{100 * value:.1f} %"


def milliseconds(value: float | None) -> str:
    """A latency with its unit."""
    return "–" if value is None else f"{number(value)} ms"


def where(one: BottleneckReport) -> str:
    """Place and weight: ``shop/orders.py:48, 71 % of the time beyond p50``; empty when neither is known.

    "Beyond p50" are the requests slower than the median of their own route.
    """
    weight = "" if one.share is None else f"{100 * one.share:.0f} % of the time beyond p50"
    return ", ".join(part for part in (one.where, weight) if part)


def headline(report: Report) -> str:
    """The answer in a few words. Rates are requests per second; an arrival may be several requests."""
    capacity = report.capacity
    if capacity is None:
        return "closed loop: no capacity is claimed" if report.mode == "closed" else "nothing was concluded"
    scale = capacity.requests_per_arrival
    if capacity.outcome == "found" and capacity.low is not None and capacity.high is not None:
        return f"{_rate(capacity.low * scale)} – {_rate(capacity.high * scale)} requests/s"
    if capacity.outcome == "at_least" and capacity.low is not None:
        return f"at least {_rate(capacity.low * scale)} requests/s"
    if capacity.outcome == "below":
        return "misses its objective even at one request at a time"
    return "undecided"


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def objective(goal: Objective | ObjectiveReport) -> str:
    """The objective in words: ``p95 < 200 ms, errors < 5 %`` for the defaults."""
    quantile = 100 * (1 - goal.bad_share)
    return f"objective: p{quantile:g} < {goal.slow_ms:g} ms, errors < {100 * goal.bad_share:g} %"


def facts(report: Report) -> list[tuple[str, str]]:
    """The tiles under the headline: name and value."""
    latency = report.latency_ms
    rows = [
        ("p50", milliseconds(latency.p50 if latency else None)),
        ("p95", milliseconds(latency.p95 if latency else None)),
        ("p99", milliseconds(latency.p99 if latency else None)),
        ("requests per second", number(report.achieved_rps)),
        ("errors", share(report.error_share)),
    ]
    if report.refused_share:
        rows.append(("refused", share(report.refused_share)))
    if report.overload is not None:
        rows.append(("kept under overload", share(report.overload.kept)))
        rows.append(("recovers in", recovery(report)))
    rows.append(("generator", share(report.generator_cpu) + " of a core"))
    return rows


def recovery(report: Report) -> str:
    """How long the service took to come back from overload."""
    overload = report.overload
    if overload is None:
        return "–"
    if overload.recovered_s is None:
        return f"not within {overload.watched_s:.0f} s"
    return f"{overload.recovered_s:.1f} s"
